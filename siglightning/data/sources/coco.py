"""COCO captions: the official files, or the splits by which retrieval is compared."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from typing_extensions import override

from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.rows import Columns, RowSource

CocoSplits = Literal[2014, 2017, "karpathy"]

_KARPATHY_FILE = "dataset_coco.json"
_KARPATHY = {"train": {"train", "restval"}, "val": {"val"}, "test": {"test"}}
_SCHEMA = pa.schema({"name": pa.string(), "path": pa.string(), "captions": pa.list_(pa.string())})


class CocoSource(RowSource):
    """Pictures with some five captions each; a sample's key is the name of its file.

    Pictures without captions are left out, be they in the annotations or on disk only. One that is annotated and not on
    disk is a bad sample.

    Args:
        root: folder of COCO, which holds ``annotations``, and pictures in folders such as ``val2017``.
        splits: the year of the official annotations; or ``karpathy``, whose file ``dataset_coco.json`` lies in the
            root or in ``annotations``.
        part: ``train`` or ``val``; of Karpathy's splits ``train`` (with ``restval``), ``val`` or ``test``.

    Raises:
        ValueError: a file or a folder of pictures is missing, or the file does not hold captions.
    """

    def __init__(self, root: str | Path, splits: CocoSplits, part: str) -> None:
        root = Path(root)
        places = [root / "annotations" / f"captions_{part}{splits}.json"]
        if splits == "karpathy":
            places = [root / _KARPATHY_FILE, root / "annotations" / _KARPATHY_FILE]
        file = _first(places)
        try:
            content = json.loads(file.read_bytes())
            rows = list(_karpathy(content, part) if splits == "karpathy" else _official(content, f"{part}{splits}"))
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{file} does not hold captions as COCO has them: {error!r}.") from error
        table = pa.Table.from_pylist([row for row in rows if row["captions"]], _SCHEMA)
        super().__init__(table, Columns("path", ["captions"], key="name"), root, where=file)
        for folder in sorted({str(row["path"]).partition("/")[0] for row in rows}):
            if not (root / folder).is_dir():
                raise ValueError(f"Expected the pictures of {file} in {root / folder}, which does not exist.")


class CocoCaptionsDataModule(MapStyleDataModule):
    """COCO captions: training draws one of a picture's captions, evaluation uses all.

    Published retrieval is on the 5,000 test pictures of Karpathy's splits; the official files have no captions of
    their test pictures, and validate only.

    Args:
        root: folder of COCO, which holds ``annotations`` and ``train2017``, ``val2017`` or those of 2014.
        splits: ``2014`` or ``2017``, the official annotations; or ``karpathy``, whose ``dataset_coco.json`` needs the
            pictures of 2014 and whose ``restval`` is trained on.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(self, root: str, splits: CocoSplits = 2017, **others: Any) -> None:
        super().__init__(**others)
        self.root, self.splits = root, splits

    @override
    def open_parts(self) -> Parts:
        parts = ["train", "val", *(["test"] if self.splits == "karpathy" else [])]
        train, val, *tests = (CocoSource(self.root, self.splits, part) for part in parts)
        return Parts(train, val, dict(zip(["test"], tests, strict=False)))


def _first(places: list[Path]) -> Path:
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise ValueError(
            f"Expected {' or '.join(map(str, places))}, which {'do' if len(places) > 1 else 'does'} not exist. `root` "
            "must hold `annotations` beside the folders of pictures."
        )
    return found


def _official(content: Any, folder: str) -> Iterator[dict[str, Any]]:
    """Rows of a file with a list of pictures, and one of captions that name their pictures by number."""
    said = defaultdict(list)
    for annotation in content["annotations"]:
        said[annotation["image_id"]].append(annotation["caption"])
    for image in content["images"]:
        name = image["file_name"]
        yield {"name": name, "path": f"{folder}/{name}", "captions": said[image["id"]]}


def _karpathy(content: Any, part: str) -> Iterator[dict[str, Any]]:
    """Rows of a file with a list of pictures, each with its split, its folder and its captions."""
    for image in content["images"]:
        if image["split"] in _KARPATHY[part]:
            path = f"{image['filepath']}/{image['filename']}"
            yield {"name": image["filename"], "path": path, "captions": [one["raw"] for one in image["sentences"]]}
