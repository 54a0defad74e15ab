"""What the data modules of all sources that are read by position share."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from siglightning.batch import InputSpec
from siglightning.data.bad_samples import LOG_NAME, BadSampleLog
from siglightning.data.base import BaseDataModule
from siglightning.data.draws import permutation
from siglightning.data.images import ImageLimits
from siglightning.data.map_style import MapDataset, Preparation
from siglightning.data.sources.base import Source, digest
from siglightning.data.transforms import Augmentation


@dataclass(frozen=True)
class Parts:
    """The sources of a data module.

    Attributes:
        train: to train on, and to validate on where ``val`` is missing.
        val: to validate on.
        tests: name -> source.
    """

    train: Source
    val: Source | None = None
    tests: Mapping[str, Source] = field(default_factory=dict)


class MapStyleDataModule(BaseDataModule):
    """Pictures with captions, with labels, or with both, from files of the user.

    Labels serve contrastive training through ``templates``; captions serve retrieval.

    Args:
        global_batch_size: samples in one optimiser step, over all processes.
        eval_batch_size: samples at a time in evaluation, on each process.
        num_workers: loading processes for each training process; 0 loads in the training process.
        seed: of the order, the augmentation and the choice of captions.
        val_fraction: share of the training samples that validates where there is no set for it.
        split_seed: of that division; leave it alone to compare runs.
        templates: sentences with ``{}`` in the place of a class name, for samples without captions and for zero-shot
            classification.
        augmentation: how training pictures vary.
        limits: of the size of pictures.
        max_bad_fraction: of samples that may be unusable before training stops.
    """

    def __init__(
        self,
        global_batch_size: int = 256,
        eval_batch_size: int = 256,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        templates: Sequence[str] = ("a photo of a {}.",),
        augmentation: Augmentation | None = None,
        limits: ImageLimits | None = None,
        max_bad_fraction: float = 0.01,
    ) -> None:
        super().__init__(global_batch_size, eval_batch_size, num_workers, seed)
        if not 0 < val_fraction < 1:
            raise ValueError(f"`data.init_args.val_fraction` must lie between 0 and 1, got {val_fraction}.")
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise ValueError(f"`data.init_args.templates` must each hold one '{{}}', got {list(templates)}.")
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.prompt_templates = list(templates)
        self.augmentation = augmentation or Augmentation()
        self.limits = limits or ImageLimits()
        self.max_bad_fraction = max_bad_fraction
        self._fingerprint = ""

    @abstractmethod
    def open_parts(self) -> Parts:
        """Open the sources.

        Raises:
            ValueError: something is missing, empty or unreadable.
        """

    @override
    def build(self, spec: InputSpec) -> None:
        parts = self.open_parts()
        _check_classes(parts)
        train_rows, val_rows = self._divide(parts)
        evaluation = Preparation(spec.image_size, self.prompt_templates, limits=self.limits)
        training = Preparation(spec.image_size, self.prompt_templates, self.augmentation, self.seed, self.limits)
        self.train_set = self._set(parts.train, train_rows, training)
        self.val_set = self._set(parts.val or parts.train, val_rows, evaluation)
        self.test_sets = {
            name: self._set(source, np.arange(len(source)), evaluation) for name, source in parts.tests.items()
        } or {"validation": self.val_set}
        self.class_names = [name.replace("_", " ").strip() for name in parts.train.class_names] or None
        recipe = json.dumps([asdict(self.augmentation), self.prompt_templates, spec.image_size, asdict(self.limits)])
        self._fingerprint = digest([parts.train.fingerprint.encode(), train_rows.tobytes(), recipe.encode()])

    @property
    @override
    def fingerprint(self) -> str:
        return self._fingerprint

    def _divide(self, parts: Parts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the training source to train on, and rows to validate on."""
        count = len(parts.train)
        if parts.val is not None:
            return np.arange(count), np.arange(len(parts.val))
        order = permutation("split", self.split_seed, 0, count)
        held_out = max(1, round(self.val_fraction * count))
        if held_out >= count:
            raise ValueError(f"Expected at least two samples, one to train on and one to validate on, got {count}.")
        return np.sort(order[held_out:]), np.sort(order[:held_out])

    def _set(self, source: Source, rows: NDArray[np.int64], preparation: Preparation) -> MapDataset:
        return MapDataset(source, rows, preparation, BadSampleLog(self._log_path(), self.max_bad_fraction))

    def _log_path(self) -> Path | None:
        """In the run directory, if there is a run."""
        if self.trainer is None or not Path(self.trainer.default_root_dir).is_dir():
            return None
        return Path(self.trainer.default_root_dir) / LOG_NAME


def _check_classes(parts: Parts) -> None:
    """Refuse sets whose labels mean different classes."""
    others = {"val": parts.val, **parts.tests}
    for name, source in others.items():
        if source is not None and list(source.class_names) != list(parts.train.class_names):
            odd = sorted(set(source.class_names) ^ set(parts.train.class_names))
            raise ValueError(
                f"Expected the classes of the training set in {name!r}, too; only one of both has "
                f"{', '.join(odd[:5]) or 'this order'}{' ...' if len(odd) > 5 else ''}. Add or remove them, or give "
                "`class_names` where the source takes them."
            )
