"""Where the pictures and their words come from: names, versions, checksums, and how to fetch them.

Every source is an immutable release of a package registry; the clients (`npm`, `apt-get`) decide which mirror
serves it. The checksum makes the mirror irrelevant.
"""

import hashlib
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Source:
    """One package of a registry.

    Attributes:
        name: the package's name.
        version: the exact release.
        registry: which client fetches it.
        filename: the file that the client leaves behind.
        sha256: checksum of that file, lower-case hexadecimal.
        licence: licence of what we take from it.
        members: the part of an npm archive that is needed, as path prefixes; empty means all.
    """

    name: str
    version: str
    registry: Literal["npm", "debian"]
    filename: str
    sha256: str
    licence: str
    members: tuple[str, ...] = ()


NOTO = Source(
    "emoji-datasource-google",
    "16.0.0",
    "npm",
    "emoji-datasource-google-16.0.0.tgz",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    "Apache-2.0 (pictures), MIT (table)",
    ("package/emoji.json", "package/img/google/64/"),
)
TWEMOJI = Source(
    "emoji-datasource-twitter",
    "16.0.0",
    "npm",
    "emoji-datasource-twitter-16.0.0.tgz",
    "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
    "CC-BY-4.0 (pictures), MIT (table)",
    ("package/emoji.json", "package/img/twitter/64/"),
)
FLUENT = Source(
    "fluentui-emoji",
    "1.3.0",
    "npm",
    "fluentui-emoji-1.3.0.tgz",
    "ec892e607e854859b812c7d827801756adc19955b0ef56d4ae8afcddd19492c5",
    "MIT",
    ("package/icons/",),
)
CLDR = Source(
    "cldr-annotations-full",
    "48.2.0",
    "npm",
    "cldr-annotations-full-48.2.0.tgz",
    "28576e51225deb51e3ddd734b0f824a0079682cb5d8c27faa9f68149317a14d1",
    "Unicode-3.0",
    ("package/annotations/",),
)
CLIPART_SVG = Source(
    "openclipart-svg",
    "1:0.18+dfsg-19",
    "debian",
    "openclipart-svg_1%3a0.18+dfsg-19_all.deb",
    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    "public domain",
)
CLIPART_PNG = Source(
    "openclipart-png",
    "1:0.18+dfsg-19",
    "debian",
    "openclipart-png_1%3a0.18+dfsg-19_all.deb",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "public domain",
)
SOURCES = (NOTO, TWEMOJI, FLUENT, CLDR, CLIPART_SVG, CLIPART_PNG)


def obtain(source: Source, work: Path) -> Path:
    """Fetches (unless it lies there already), checks and unpacks one source.

    Args:
        source: what to fetch.
        work: a scratch directory outside the checkout.

    Returns:
        The directory that holds the unpacked files.

    Raises:
        ValueError: the file's checksum is not the recorded one.
        subprocess.CalledProcessError: the registry client failed.
    """
    archive = work / source.filename
    if not archive.exists():
        _download(source, work)
    check(archive, source.sha256)
    unpacked = work / source.name
    if not unpacked.exists():
        partial = work / f".{source.name}.partial"
        _unpack(source, archive, partial)
        partial.rename(unpacked)
    return unpacked


def check(archive: Path, sha256: str) -> None:
    """Compares a file's SHA-256 with the recorded one.

    Raises:
        ValueError: they differ.
    """
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ValueError(f"{archive.name} must have SHA-256 {sha256}, got {found}. Delete it and fetch it again.")


def _download(source: Source, work: Path) -> None:
    if source.registry == "npm":
        command = ["npm", "pack", "--silent", f"{source.name}@{source.version}"]
    else:
        command = ["apt-get", "download", f"{source.name}={source.version}"]
    subprocess.run(command, cwd=work, check=True, stdout=subprocess.DEVNULL)


def _unpack(source: Source, archive: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    if source.registry == "debian":
        subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)
        return
    with tarfile.open(archive) as tar:
        wanted = [m for m in tar if not source.members or m.name.startswith(source.members)]
        tar.extractall(target, members=wanted, filter="data")
