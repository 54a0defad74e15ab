"""``siglightning export SOURCE --format F --out DIR``: a network as files of transformers, open_clip or ONNX."""

import argparse
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from siglightning.commands.export.source import Source
    from siglightning.commands.export.verify import Verification
    from siglightning.models.export import Format

NAMES = ("transformers", "open_clip", "safetensors", "onnx")


def main(arguments: Sequence[str]) -> int:
    """Write a folder that another library reads.

    Returns:
        0; a wrong argument ends the process with 2.

    Raises:
        ValueError: an unknown format, a place that is taken, no such source, a network that the format cannot hold, or
            files that do not compute what the network does. Nothing is left behind then.
    """
    options = _parser().parse_args(arguments)
    name, out = _known(options.format), Path(options.out)
    out = out.resolve() if out.is_symlink() and out.exists() else out
    _require_free(out)
    from siglightning.commands.export.source import read_source
    from siglightning.models.export import FORMATS, refusal

    source = read_source(options.source, options.kind, options.architecture, options.config, options.tokenizer)
    reason = refusal(source.network, name)
    if reason is not None:
        raise ValueError(reason)
    print(f"Exporting {_told(source)} to {name}")
    _write(source, FORMATS[name], out, verified=options.verify)
    print(f"Written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return 0


def _told(source: "Source") -> str:
    found = source.checkpoint
    if found.origin is None:
        return f"{found.source} (of {found.kind})"
    return f"{found.path}, step {found.origin.global_step},"


def _write(source: "Source", form: "Format", out: Path, *, verified: bool) -> None:
    from siglightning.commands.export.card import model_card

    with _new_folder(out) as folder:
        form.write(source.network, folder, source.arguments)
        verification = _verified(source, form, folder) if verified else None
        names_its_place = form.settle(folder, out)
        card = model_card(source, form, verification, names_its_place)
        (folder / "README.md").write_text(card, encoding="utf-8")
        _share(folder)
    if names_its_place:
        print(f"{out} names its own place: README.md says which line to change when it is moved.")


def _share(folder: Path) -> None:
    """Give files the mode of any new one: safetensors writes for its user alone, whatever the umask."""
    mode = (folder / "README.md").stat().st_mode
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def _verified(source: "Source", form: "Format", folder: Path) -> "Verification":
    from siglightning.commands.export.verify import TOLERANCE, verify

    verification = verify(source.network, form.reload(folder))
    print(f"Read back by {form.library}:")
    print("\n".join(f"  {line}" for line in verification.lines()))
    if not verification.holds:
        raise ValueError(
            f"What {form.library} reads back is not what was trained: expected differences of at most {TOLERANCE:g} "
            f"and equal tokens, got {verification.worst:.3g} and {'equal' if verification.tokens else 'other'} tokens. "
            "Nothing was kept. Choose another format, or report it with what was exported."
        )
    return verification


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="siglightning export", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a run directory (its best, else newest checkpoint), a checkpoint, or whatever load_two_tower reads: "
        "hf:NAME, open_clip:NAME, a folder of transformers, open_clip or an export of ours, a .npz of big_vision",
    )
    parser.add_argument("--format", required=True, metavar="FORMAT", help=", ".join(NAMES))
    parser.add_argument("--out", required=True, metavar="DIR", help="a folder that does not exist yet")
    parser.add_argument("--config", metavar="FILE", help="config.yaml of the run, where the checkpoint lies elsewhere")
    parser.add_argument("--kind", help="whose SOURCE is, where that cannot be told from its files")
    parser.add_argument("--architecture", metavar="NAME", help="open_clip's name of the model, for weights alone")
    parser.add_argument("--tokenizer", metavar="TOKENIZER", help="for a SOURCE that does not bring its own")
    parser.add_argument(
        "--verify", action="store_true", help="read it back with the other library; keep it only if the numbers agree"
    )
    return parser


def _known(name: str) -> str:
    if name not in NAMES:
        from siglightning.models.towers import unknown_name

        raise unknown_name("format", name, NAMES, f"Formats: {', '.join(NAMES)}.")
    return name


def _require_free(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        if out.is_mount() or out.resolve() == Path.cwd():  # what is written is renamed to it, so it has to make way
            raise ValueError(
                f"--out {out} is the folder that this was started in, or a mount, and cannot be replaced. Give a new "
                f"folder, such as {out / 'export'}."
            )
        return
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out} exists already, and nothing is overwritten. Choose another --out, or remove it.")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A hidden neighbour that becomes ``out`` when all went well, and otherwise disappears with what was made for it.

    Raises:
        ValueError: the place cannot be written.
    """
    made = [parent for parent in out.absolute().parents if not parent.exists()]
    temporary = out.absolute().with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise ValueError(f"{out} cannot be written ({error.strerror}). Choose another --out.") from error
    try:
        yield temporary
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # of somebody else's file in it: what went wrong before is to be told
                parent.rmdir()
        raise
