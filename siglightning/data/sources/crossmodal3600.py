"""Crossmodal-3600: pictures of the world with captions in 36 languages, for retrieval in each of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from typing_extensions import override

from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.rows import Columns, RowSource

Captions = Mapping[str, Mapping[str, Sequence[str]]]
"""Key of a picture -> language -> captions."""

_FILE = "captions.jsonl"
_WORDS = pa.list_(pa.string())
_SCHEMA = pa.schema({"key": pa.string(), "path": pa.string(), "captions": _WORDS, "languages": _WORDS})


class Crossmodal3600Source(RowSource):
    """Pictures with captions in some languages; a sample's key is that of the data set.

    Pictures without a caption in these languages are left out. One that is missing on disk is a bad sample.

    Args:
        root: folder with ``captions.jsonl``, and pictures in ``images`` or beside it.
        languages: codes such as ``en`` or ``quz``; ``None``: all in the file.
        captions: of :func:`read_captions`, where several sources share them.

    Raises:
        ValueError: the file or all the pictures are missing, or nobody speaks a language.
    """

    def __init__(
        self, root: str | Path, languages: Sequence[str] | None = None, captions: Captions | None = None
    ) -> None:
        root = Path(root)
        captions = read_captions(root) if captions is None else captions
        chosen = _choose(languages, captions, root)
        rows = [_row(key, {name: said[name] for name in chosen if said.get(name)}) for key, said in captions.items()]
        table = pa.Table.from_pylist([row for row in rows if row["captions"]], _SCHEMA)
        columns = Columns("path", ["captions"], key="key", language="languages")
        super().__init__(table, columns, _pictures(root, captions), where=root / _FILE)


class Crossmodal3600DataModule(MapStyleDataModule):
    """Crossmodal-3600: one test set a language, by its code, and their mean.

    The data are meant for evaluation. Training takes all chosen languages, with the captions' languages for
    ``language_temperature``; since the test sets hold every picture, they then say nothing about unseen ones.

    Args:
        root: folder with ``captions.jsonl``, and pictures in ``images`` or beside it.
        languages: codes such as ``en`` or ``quz``, in the order of the test sets; ``None``: all, sorted.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(self, root: str, languages: Sequence[str] | None = None, **others: Any) -> None:
        super().__init__(**others)
        self.root, self.languages = root, languages

    @override
    def open_parts(self) -> Parts:
        root = Path(self.root)
        captions = read_captions(root)
        tests = {name: Crossmodal3600Source(root, [name], captions) for name in _choose(self.languages, captions, root)}
        return Parts(Crossmodal3600Source(root, self.languages, captions), tests=tests)

    @property
    @override
    def averaged_test_sets(self) -> list[str]:
        return list(self.test_sets)  # and not others' that are classified by prompts


def read_captions(root: Path) -> dict[str, dict[str, list[str]]]:
    """Key of a picture -> language -> captions, in the order of the file.

    Raises:
        ValueError: there is no such file, or a line is not what it should be.
    """
    path = root / _FILE
    if not path.is_file():
        raise ValueError(
            f"Expected {path}, which does not exist. It comes in captions.zip; pictures go to {root}/images."
        )
    captions = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                record = json.loads(line)
                spoken = {name: said["caption"] for name, said in record.items() if isinstance(said, dict)}
                captions[str(record["image/key"])] = spoken
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"Line {number} of {path} is not a picture with its captions: {error!r}.") from error
    return captions


def _choose(languages: Sequence[str] | None, captions: Captions, root: Path) -> list[str]:
    found = sorted({name for said in captions.values() for name in said})
    unknown = [name for name in languages or () if name not in found]
    if unknown or languages == []:
        raise ValueError(
            f"Expected `languages` among the {len(found)} of {root / _FILE} ({', '.join(found)}), got "
            f"{', '.join(unknown) or 'none'}."
        )
    return found if languages is None else list(languages)


def _row(key: str, said: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    texts = [text for captions in said.values() for text in captions]
    return {
        "key": key,
        "path": f"{key}.jpg",
        "captions": texts,
        "languages": [name for name, captions in said.items() for _ in captions],
    }


def _pictures(root: Path, captions: Captions) -> Path:
    """The folder of pictures."""
    folder = root / "images" if (root / "images").is_dir() else root
    if captions and not any((folder / f"{key}.jpg").is_file() for key in captions):
        raise ValueError(
            f"Expected pictures such as {next(iter(captions))}.jpg in {root / 'images'} or {root}, found none. Unpack "
            "images.tgz there."
        )
    return folder
