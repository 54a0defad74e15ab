"""Writes the embeddings that `predict` makes, one table for each set."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class PredictionWriter(Callback):
    """Streams predictions into ``<run directory>/<set>.parquet``: columns ``id``, ``image_embed``, ``text_embed``.

    Embeddings are lists of float32, one row a picture; ``text_embed`` is there when the set has one caption a picture.
    With several processes each writes its own rows, into ``<set>.rank-<rank>.parquet``.
    """

    def __init__(self) -> None:
        self._writers: dict[Path, pq.ParquetWriter] = {}

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
        columns = {name: _column(value) for name, value in outputs.items() if value is not None}
        rows = len(columns["image_embed"])
        table = pa.table({name: column for name, column in columns.items() if len(column) == rows})
        path = self._path(trainer, dataloader_idx)
        if path not in self._writers:
            self._writers[path] = pq.ParquetWriter(path, table.schema)
        self._writers[path].write_table(table)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the files and say where they are."""
        for path, writer in self._writers.items():
            writer.close()
            print(f"Wrote {path}")
        self._writers.clear()

    @staticmethod
    def _path(trainer: Trainer, dataloader_idx: int) -> Path:
        names = getattr(getattr(trainer, "datamodule", None), "test_set_names", None)
        name = names[dataloader_idx] if names else f"set_{dataloader_idx}"
        rank = f".rank-{trainer.global_rank}" if trainer.world_size > 1 else ""
        return Path(trainer.default_root_dir) / f"{name}{rank}.parquet"


def _column(value: Tensor | list[str]) -> pa.Array:
    if not isinstance(value, Tensor):
        return pa.array(value)
    if value.ndim == 1:
        return pa.array(value.cpu().numpy())
    flat = value.detach().to("cpu", torch.float32).contiguous().view(-1).numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), value.shape[1])
