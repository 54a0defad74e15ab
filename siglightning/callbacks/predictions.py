"""Writes what `predict` makes, one table for each set."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from siglightning.callbacks.table_files import PARTS, Format, TablePart, clean_text, join_parts
from siglightning.evaluation.label_scores import LabelScores

_PART = re.compile(r"\.(?P<name>.+)\.part-(?P<rank>\d+)")


class PredictionWriter(Callback):
    """Streams predictions into ``<run directory>/<set>.<format>``, one whole file for each set.

    Embeddings, the best class and logits are columns beside ``id``, one row a picture; the logits' order is that of
    ``class_names.json``, written beside them. Labels have one row a picture and label, best
    first: ``id``, ``label``, ``score``, ``passed`` (the threshold) and ``rank``. Several processes write their parts
    beside each other, into a directory that all of them see; the first one joins them in the order of the set.

    Args:
        format: ``parquet``, ``csv`` (vectors as JSON within it) or ``jsonl``.
        labels_per_image: best labels of each picture to write; all by default.

    Raises:
        ValueError: another format, or no labels.
    """

    def __init__(self, format: Format = "parquet", labels_per_image: int | None = None) -> None:
        if format not in PARTS:
            raise ValueError(f"Predictions are written as {', '.join(PARTS)}, got {format!r}.")
        if labels_per_image is not None and labels_per_image < 1:
            raise ValueError(f"Expected at least one label a picture, got labels_per_image {labels_per_image}.")
        self.format: Format = format
        self.labels_per_image = labels_per_image
        self._parts: dict[Path, TablePart] = {}
        self._class_names: list[str] = []
        self._writes_logits = False

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what a killed process left, lest it be joined."""
        if trainer.is_global_zero:
            for part in _found(Path(trainer.default_root_dir)):
                part.unlink()
            self._class_names = list(getattr(pl_module, "class_names", None) or ())
        trainer.strategy.barrier("predictions: leftovers removed")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append one batch; nothing where a task keeps its predictions for itself."""
        if not outputs:
            return
        self._writes_logits = "logits" in outputs if isinstance(outputs, dict) else False
        columns = outputs.columns(self.labels_per_image) if isinstance(outputs, LabelScores) else outputs
        arrays = {name: _column(value) for name, value in columns.items() if value is not None}
        rows = len(next(array for name, array in arrays.items() if name != "text_embed"))  # captions may be more
        if not rows:
            return
        table = pa.table({name: array for name, array in arrays.items() if len(array) == rows})
        path = Path(trainer.default_root_dir) / (
            f".{set_name(trainer, dataloader_idx)}.{self.format}.part-{trainer.global_rank}"
        )
        if path not in self._parts:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._parts[path] = PARTS[self.format](path)
        self._parts[path].write(table)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the parts and say where the files are."""
        self._close()
        trainer.strategy.barrier("predictions: parts written")
        if not trainer.is_global_zero:
            return
        parts: dict[str, list[Path]] = {}
        for part in _found(Path(trainer.default_root_dir)):
            parts.setdefault(_match(part)["name"], []).append(part)
        if self._writes_logits:
            path = Path(trainer.default_root_dir) / "class_names.json"
            path.write_text(json.dumps(self._class_names, ensure_ascii=False, indent=1) + "\n")
        for name, of_set in parts.items():
            path = Path(trainer.default_root_dir) / name
            join_parts(of_set, path, self.format)
            print(f"Wrote {path}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the parts; the next start removes them."""
        self._close()

    def _close(self) -> None:
        for part in self._parts.values():
            part.close()
        self._parts.clear()


def set_name(trainer: Trainer, dataloader_idx: int) -> str:
    """Name of the set that a loader reads, as the data module says, fit for a file."""
    names = getattr(getattr(trainer, "datamodule", None), "test_set_names", None)
    return re.sub(r"[^\w.-]+", "_", str(names[dataloader_idx])) if names else f"set_{dataloader_idx}"


def _match(part: Path) -> dict[str, str]:
    match = _PART.fullmatch(part.name)
    assert match is not None  # `_found` returns no others
    return match.groupdict()


def _found(folder: Path) -> list[Path]:
    """Parts in a folder, in the order of their processes."""
    parts = [path for path in folder.glob(".*.part-*") if _PART.fullmatch(path.name)]
    return sorted(parts, key=lambda part: int(_match(part)["rank"]))


def _column(value: Tensor | list[Any]) -> pa.Array:
    if not isinstance(value, Tensor):
        return pa.array([clean_text(item) if isinstance(item, str) else item for item in value])
    if value.ndim == 1:
        return pa.array(value.cpu().numpy())
    flat = value.detach().float().cpu().contiguous().view(-1).numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), value.shape[1])
