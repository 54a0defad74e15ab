"""Stored features: a folder of memory-mapped files that says whose features they are.

``features.json`` names the towers by their keys and lists the parts (``train``, ``val``, test sets). A part has one or
more *views*, which are what the data gave in as many epochs: other captions, other augmentation. Each view is cut into
shards, ``PART/view-00000/shard-00000.arrow``, of which each is written whole or not at all.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from siglightning.data.collate import Sample
from siglightning.runtime.files import write_text

INDEX = "features.json"
FORMAT = 1


@dataclass(frozen=True)
class StoredPart:
    """One set of samples.

    Attributes:
        count: samples.
        shard_size: samples in a shard; the last one may have fewer.
        views: how often every sample is there.
        image_views: in how many of them the picture differs: 1 or ``views``.
    """

    count: int
    shard_size: int
    views: int
    image_views: int

    @property
    def shards(self) -> int:
        """Files in a view."""
        return -(-self.count // self.shard_size)

    def rows(self, shard: int) -> range:
        """Samples of a shard, by position."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.count))


@dataclass(frozen=True)
class StoreIndex:
    """What ``features.json`` says.

    Attributes:
        keys: of the towers whose features are stored: ``image``, and perhaps ``text``.
        data: identity of the data.
        dtype: of the features, ``float32`` or ``float16``.
        parts: name -> samples.
        class_names: of the labels, if any.
        prompt_templates: sentences with ``{}`` in the place of a class name.
        complete: whether every shard is there.
    """

    keys: dict[str, str]
    data: str
    dtype: str
    parts: dict[str, StoredPart]
    class_names: list[str] | None = None
    prompt_templates: list[str] = field(default_factory=lambda: ["{}"])
    complete: bool = False

    def write(self, root: Path) -> None:
        """Write ``features.json``, whole or not at all."""
        write_text(root / INDEX, json.dumps({"format": FORMAT, **asdict(self)}, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, root: Path) -> "StoreIndex | None":
        """What the folder says of itself; ``None`` where nothing was stored.

        Raises:
            ValueError: it is of another format, or no such file.
        """
        path = root / INDEX
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError(f"{path} is of another format than {FORMAT}. Embed the data again.")
            content["parts"] = {name: StoredPart(**part) for name, part in content["parts"].items()}
            return cls(**content)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} does not describe stored features: {error!r}. Embed the data again.") from error


def shard_path(root: Path, part: str, view: int, shard: int) -> Path:
    """Where a shard lies."""
    return root / part / f"view-{view:05d}" / f"shard-{shard:05d}.arrow"


def write_shard(path: Path, samples: Sequence[Sample]) -> None:
    """Write samples with ``id``, ``captions``, features and labels, where they have them, whole or not at all."""
    columns = {
        "id": pa.array([str(sample["id"]) for sample in samples], pa.large_string()),
        "captions": pa.array([sample.get("captions", []) for sample in samples], pa.large_list(pa.large_string())),
    }
    first = samples[0]
    if "match_id" in first:
        columns["match_id"] = pa.array([sample["match_id"] for sample in samples], pa.int64())
    if "label" in first:
        columns["label"] = _rows(torch.stack([torch.as_tensor(sample["label"]) for sample in samples]))
    if "image_embed" in first:
        columns["image_embed"] = _rows(torch.stack([sample["image_embed"] for sample in samples]))
    if "text_embed" in first:
        flat = _rows(torch.cat([sample["text_embed"] for sample in samples]))
        ends = np.cumsum([0, *(len(sample["text_embed"]) for sample in samples)])
        columns["text_embed"] = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), flat)
    table = pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=len(table))
    temporary.replace(path)


class Shard:
    """A shard, mapped into memory.

    Args:
        path: of the file.

    Raises:
        ValueError: it is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path} cannot be read: {error}. Embed the data again; intact files are kept.") from error
        self._columns = {name: table[name].chunk(0) for name in table.column_names}
        self.ids, self.captions = self._columns["id"], self._columns["captions"]
        self.image_embed = self._matrix("image_embed")
        self.match_id = self._columns["match_id"].to_numpy() if "match_id" in self._columns else None
        self.label = self._matrix("label")
        texts = self._columns.get("text_embed")
        self.text_ends = None if texts is None else texts.offsets.to_numpy()
        self.text_embed = None if texts is None else _as_matrix(texts.values)

    def _matrix(self, name: str) -> NDArray[Any] | None:
        column = self._columns.get(name)
        return None if column is None else _as_matrix(column)


def _rows(values: Tensor) -> pa.Array:
    """``[N]`` as numbers, ``[N, d]`` as lists of fixed length."""
    array = values.detach().cpu().contiguous().numpy()
    flat = pa.array(array.reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


def _as_matrix(column: pa.Array) -> NDArray[Any]:
    """What :func:`_rows` stored, without a copy."""
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.to_numpy())
    return np.asarray(column.flatten().to_numpy()).reshape(-1, column.type.list_size)
