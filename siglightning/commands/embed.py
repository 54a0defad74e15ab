"""`siglightning embed`: run a locked tower over all data once and store its features (LiT).

Every process takes each n-th shard, computes it and writes it whole; a second start finds what is there and goes on.
Processes send each other nothing.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from siglightning.batch import Batch
from siglightning.data import BaseDataModule
from siglightning.data.collate import Collate, Sample
from siglightning.data.dataset import SampleDataset
from siglightning.data.feature_store import StoredPart, StoreIndex, shard_path, write_shard
from siglightning.data.sampler import SampleKey
from siglightning.data.source import digest
from siglightning.data.streamed import StreamDataset
from siglightning.models import TwoTower
from siglightning.runtime.processes import notice


@dataclass(frozen=True)
class EmbedOptions:
    """How features are stored.

    Attributes:
        views: epochs of training data to store: as many other captions and, with augmentation, other pictures.
        texts: store features of captions, too; ``None``: if the text tower is locked.
        shard_size: samples in a file.
        dtype: of the features.
    """

    views: int = 1
    texts: bool | None = None
    shard_size: int = 4096
    dtype: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.views < 1 or self.shard_size < 1:
            raise ValueError(f"views and shard_size must be at least 1, got {self.views} and {self.shard_size}.")


@dataclass(frozen=True)
class Request:
    """Consecutive samples of one shard of one view.

    Attributes:
        view: the epoch.
        shard: number of the file.
        rows: samples, by position.
        is_last: whether the shard is then whole.
    """

    view: int
    shard: int
    rows: range
    is_last: bool


class RequestedBatches(Dataset[tuple[Request, Batch, list[Sample]]]):
    """Answers requests with a batch, and with what of its samples is stored as it is."""

    def __init__(self, samples: SampleDataset, collate: Collate) -> None:
        self.samples, self.collate = samples, collate

    def __getitem__(self, request: Request) -> tuple[Request, Batch, list[Sample]]:
        samples = self.samples.__getitems__([SampleKey(row, request.view) for row in request.rows])
        kept = ("id", "captions", "match_id", "label")
        # Names of Sample all of them, which the type checker cannot see.
        rest = [{name: sample[name] for name in kept if name in sample} for sample in samples]  # type: ignore[literal-required]
        return request, self.collate(samples), rest  # type: ignore[return-value]


class EmbeddingData(LightningDataModule):
    """The parts of a data module, as requests for shards that are still missing."""

    def __init__(self, data: BaseDataModule, root: Path, options: EmbedOptions) -> None:
        super().__init__()
        self.data, self.root, self.options = data, root, options
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a process may find its shards written
        self.sets: dict[str, SampleDataset] = {}
        self.parts: dict[str, StoredPart] = {}

    @override
    def prepare_data(self) -> None:
        self.data.prepare_data()

    @override
    def teardown(self, stage: str) -> None:
        self.data.teardown(stage)

    @override
    def setup(self, stage: str) -> None:
        self.data.trainer = self.trainer
        self.data.setup(stage)
        if isinstance(self.data.train_set, StreamDataset):
            raise ValueError("A stream has no samples to come back to; embed tars with `resampled: false`.")
        self.sets = {"train": self.data.train_set, "val": self.data.val_set}
        self.sets |= {name: part for name, part in self.data.test_sets.items() if part is not self.data.val_set}
        self.parts = {name: self._part(name, samples) for name, samples in self.sets.items()}

    @property
    def identity(self) -> str:
        """Identity of the training data, and of what the other parts say at their ends, 16 hexadecimal digits."""
        ends = [samples[place] for samples in self.sets.values() for place in (0, len(samples) - 1)]
        seen = [f"{sample['id']} {sample.get('captions')}".encode() for sample in ends]
        noise = "" if self.data.noise is None else self.data.noise.identity
        return digest([f"{self.data.fingerprint} {self.data.seed} {noise}".encode(), *seen])

    @override
    def predict_dataloader(self) -> list[DataLoader[Any]]:
        collate = Collate(self.data.input_spec.tokenizer if self.data.input_spec is not None else None)
        loaders = []
        for name, samples in self.sets.items():
            samples.prepare()
            requests = RequestedBatches(samples, collate)
            missing = list(self._requests(name))
            loaders.append(DataLoader(requests, None, sampler=missing, num_workers=self.data.num_workers))
        return loaders

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        request, loaded, samples = batch
        return request, self.data.on_after_batch_transfer(loaded, dataloader_idx), samples

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        request, loaded, samples = batch
        return request, super().transfer_batch_to_device(loaded, device, dataloader_idx), samples

    def _part(self, name: str, samples: SampleDataset) -> StoredPart:
        views = self.options.views if name == "train" else 1
        return StoredPart(len(samples), self.options.shard_size, views, views if samples.pictures_vary else 1)

    def _requests(self, name: str) -> Iterator[Request]:
        """This process's share of what is missing, cut into batches that end where shards do."""
        part, size = self.parts[name], self.data.eval_batch_size
        assert self.trainer is not None
        places = [(view, shard) for view in range(part.views) for shard in range(part.shards)]
        for view, shard in places[self.trainer.global_rank :: self.trainer.world_size]:
            if shard_path(self.root, name, view, shard).is_file():
                continue
            rows = part.rows(shard)
            for first in range(rows.start, rows.stop, size):
                batch = range(first, min(first + size, rows.stop))
                yield Request(view, shard, batch, is_last=batch.stop == rows.stop)


class EmbeddingTask(LightningModule):
    """Runs the towers without their projections and writes shards as they become whole."""

    def __init__(self, network: TwoTower, data: EmbeddingData, with_texts: bool) -> None:
        super().__init__()
        self.network, self.data, self.with_texts = network, data, with_texts
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._pending: list[Sample] = []

    @override
    def setup(self, stage: str) -> None:
        """Say what is to be stored before any of it is, or check that it is the same as before."""
        self._index, root = self._describe(), self.data.root
        found, ours = StoreIndex.read(root), vars(self._index)
        if found is None:
            if self.trainer.is_global_zero:
                self._index.write(root)
            return
        others = [name for name in ("keys", "data", "dtype", "parts") if vars(found)[name] != ours[name]]
        if others:
            raise ValueError(
                f"{root} holds features with other {' and '.join(others)}. Choose another --run_dir, or remove it."
            )

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Embed one request, and write its shard if it was the last; nothing is handed back."""
        request, loaded, samples = batch
        name = list(self.data.sets)[dataloader_idx]
        dtype = getattr(torch, self.data.options.dtype)
        if request.view < self.data.parts[name].image_views:
            for sample, row in zip(samples, self.network.image_features(loaded["image"]).to("cpu", dtype), strict=True):
                sample["image_embed"] = row
        if self.with_texts and "text" in loaded:
            counts = [len(sample["captions"]) for sample in samples]
            rows = torch.split(self.network.text_features(loaded["text"]).to("cpu", dtype), counts)
            for sample, texts in zip(samples, rows, strict=True):
                sample["text_embed"] = texts
        self._pending += samples
        if request.is_last:
            assert len(self._pending) == len(self.data.parts[name].rows(request.shard))
            write_shard(shard_path(self.data.root, name, request.view, request.shard), self._pending)
            self._pending = []
        return {}

    @override
    def teardown(self, stage: str) -> None:
        """Once every process is done: the folder is complete, and says so. Also where one had nothing to do."""
        self.trainer.strategy.barrier("features are stored")
        if self.trainer.is_global_zero:
            replace(self._index, complete=True).write(self.data.root)
            rows = sum(part.count * part.views for part in self.data.parts.values())
            notice(f"Stored features of {rows:,} samples in {self.data.root}")

    def _describe(self) -> StoreIndex:
        keys, data = self.network.feature_keys(), self.data.data
        wanted = {name: keys[name] for name in ("image", "text") if name == "image" or self.with_texts}
        names = None if data.class_names is None else list(data.class_names)
        templates = list(data.prompt_templates)
        dtype = self.data.options.dtype
        return StoreIndex(wanted, self.data.identity, dtype, self.data.parts, names, templates)


def embed(
    trainer: Trainer,
    model: LightningModule,
    data: LightningDataModule,
    options: EmbedOptions,
    ckpt_path: str | None = None,
    weights_only: bool | None = None,
) -> None:
    """Store the features of every part of ``data`` in the trainer's root directory.

    Args:
        trainer: which starts the processes.
        model: a task with two towers.
        data: what to embed.
        options: how to store it.
        ckpt_path: a checkpoint of the task whose weights to use; ``None``: the model as it is.
        weights_only: as for :func:`torch.load`.

    Raises:
        ValueError: the model or the data are of another kind, a tower is to be trained, or the folder holds others.
    """
    network = getattr(model, "network", None)
    if not isinstance(network, TwoTower) or not isinstance(data, BaseDataModule):
        raise ValueError(
            f"Expected a task with two towers and a data module of siglightning, got {type(model).__name__} and "
            f"{type(data).__name__}."
        )
    frozen = network.feature_keys()
    with_texts = "text" in frozen if options.texts is None else options.texts
    for tower in ("image", *(["text"] if with_texts else [])):
        if tower not in frozen:
            raise ValueError(
                f"Features of a tower that is trained would be stale after one step: set the network's "
                f"`freeze_{tower}: true` to lock it."
            )
    if trainer.limit_predict_batches != 1.0 or trainer.fast_dev_run:  # type: ignore[attr-defined]  # its connector's
        raise ValueError("Features are stored whole: leave out limit_predict_batches and fast_dev_run.")
    if not with_texts and data.noise is not None and "text" in data.noise.corrupt:
        raise ValueError("Noise on texts is made of tokens, and only features of captions keep it: set --texts true.")
    data.input_spec = data.input_spec or getattr(model, "input_spec", None)
    if ckpt_path is not None:
        model.load_state_dict(torch.load(ckpt_path, map_location="cpu", weights_only=weights_only)["state_dict"])
    warnings.filterwarnings("ignore", message="Total length of `DataLoader` across ranks is zero")  # nothing is missing
    stored = EmbeddingData(data, Path(trainer.default_root_dir), options)
    trainer.predict(EmbeddingTask(network, stored, with_texts), datamodule=stored, return_predictions=False)
