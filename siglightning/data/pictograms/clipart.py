"""Open Clip Art: titles and keywords from the SVG's metadata, pixels from the PNG of the same name, cleaned.

The collection holds generated series (stars, gradients, icon themes), works under other licences, copies, and
titles that say nothing. The rules below were found by looking at what each of them drops.
"""

import hashlib
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MAX_SAME_TITLE = 6  # a title used more often names a series, not a picture
MAX_KEYWORD_LENGTH = 40  # characters; longer ones are sentences or glued lists

FLAGS = "Flags"

_DC = "{http://purl.org/dc/elements/1.1/}"
_LI = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
_RESOURCE = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}resource"

_DROPPED_FOLDERS = (
    "computer/icons/",  # themes: the same arrows and folders many times over
    "shapes/stars/",  # 1,378 generated stars
    "shapes/jigsaw/",
    "special/",  # gradients, patterns, CD covers
    "recreation/games/cards/",
    "unsorted/duplicates/",
)
_EMPTY_TITLE = re.compile(r"^(clip ?art by|various|untitled|unnamed|openclipart|drawing|svg|test)\b|\btheme$", re.I)
_TRAILING_NUMBER = re.compile(r"[\s_#-]*\d{1,3}$")
_NOISE_KEYWORDS = frozenset(
    # "hash" is what a script left of Perl references; "sign" and "signs and symbols" name the folder.
    {"", "clip art", "clipart", "svg", "unsorted", "image", "png", "picture", "public domain"}
    | {"hash", "sign", "signs and symbols", "signs_and_symbols", "openclipart", "vector"}
    | {"architetto francesco rollandin", "networksym", "weathersym", "musicstuff", "media", "probing"}
)

# Where a folder of the collection corresponds to a group of the emoji; deeper prefixes come first.
_CATEGORIES = (
    ("people/smilies", "Smileys & Emotion"),
    ("people/clothing", "Objects"),
    ("recreation/music", "Objects"),
    ("animals", "Animals & Nature"),
    ("plants", "Animals & Nature"),
    ("food", "Food & Drink"),
    ("transportation", "Travel & Places"),
    ("buildings", "Travel & Places"),
    ("geography", "Travel & Places"),
    ("recreation", "Activities"),
    ("people", "People & Body"),
    ("signs_and_symbols", "Symbols"),
    ("shapes", "Symbols"),
    ("buttons", "Symbols"),
    ("logos", "Symbols"),
)


@dataclass(frozen=True)
class ClipArt:
    """One picture of the collection.

    Attributes:
        path: relative path without suffix, the picture's key.
        title: cleaned title, used as its name.
        concept: what equal titles share: the title in lower case.
        keywords: cleaned keywords in lower case, in the author's order.
        category: the nearest group of the emoji, ``Objects`` where nothing fits better.
        png: the picture.
    """

    path: str
    title: str
    concept: str
    keywords: tuple[str, ...]
    category: str
    png: Path


def read_clipart(svg_root: Path, png_root: Path) -> list[ClipArt]:
    """Reads and cleans the collection, ordered by path.

    Args:
        svg_root: folder with the SVG files (metadata).
        png_root: folder with the PNG files (pixels) under the same relative names.
    """
    files = sorted(path for path in png_root.rglob("*.png") if not path.is_symlink())
    found = [_read(svg_root, png_root, png) for png in files]
    kept = [art for art in found if art is not None]
    counts = Counter(art.concept for art in kept)
    return _without_copies(art for art in kept if counts[art.concept] <= MAX_SAME_TITLE)


def clean_title(title: str) -> str:
    """``"Tux_penguin_02 "`` -> ``"Tux penguin"``: one line of words, without a counter at the end."""
    words = " ".join(title.replace("_", " ").split())
    shorter = _TRAILING_NUMBER.sub("", words)
    return shorter or words


def _read(svg_root: Path, png_root: Path, png: Path) -> ClipArt | None:
    path = png.relative_to(png_root).with_suffix("").as_posix()
    svg = svg_root / f"{path}.svg"
    if path.startswith(_DROPPED_FOLDERS) or "theme" in path or not svg.exists():
        return None
    work = _metadata(svg)
    if work is None or not _is_public_domain(work):
        return None
    raw_title = (work.findtext(_DC + "title") or "").strip()
    title = clean_title(raw_title)
    if "@" in title or _EMPTY_TITLE.search(title) or not re.search(r"[^\W\d_]{2}", title):
        return None
    keywords = _keywords(work)
    return ClipArt(path, title, title.lower(), keywords, _category(path, title, keywords), png)


def _metadata(svg: Path) -> ElementTree.Element | None:
    try:
        elements = ElementTree.parse(svg).iter()
    except ElementTree.ParseError:
        return None
    return next((element for element in elements if element.tag.endswith("}Work")), None)


def _is_public_domain(work: ElementTree.Element) -> bool:
    licences = [e.get(_RESOURCE, "") for e in work.iter() if e.tag.endswith("}license")]
    return bool(licences) and all(licence.rstrip("/").endswith("PublicDomain") for licence in licences)


def _keywords(work: ElementTree.Element) -> tuple[str, ...]:
    words = (" ".join((li.text or "").replace("_", " ").lower().split()) for li in work.iter(_LI))
    kept = (word for word in words if word not in _NOISE_KEYWORDS and len(word) <= MAX_KEYWORD_LENGTH)
    return tuple(dict.fromkeys(kept))


def _category(path: str, title: str, keywords: tuple[str, ...]) -> str:
    if "/flags/" in path or {"flag", "flags"} & {*keywords, *re.findall(r"\w+", title.lower())}:
        return FLAGS
    return next((category for prefix, category in _CATEGORIES if path.startswith(prefix)), "Objects")


def _without_copies(clipart: Iterable[ClipArt]) -> list[ClipArt]:
    seen: set[bytes] = set()
    unique = []
    for art in clipart:
        digest = hashlib.sha256(art.png.read_bytes()).digest()
        if digest not in seen:
            seen.add(digest)
            unique.append(art)
    return unique
