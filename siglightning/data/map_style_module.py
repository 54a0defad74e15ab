"""What the data modules of all sources that are read by position share."""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from siglightning.batch import InputSpec
from siglightning.data.bad_samples import LOG_NAME, BadSampleLog
from siglightning.data.base import BaseDataModule
from siglightning.data.draws import permutation
from siglightning.data.images import ImageLimits
from siglightning.data.map_style import MapDataset, Preparation, PreparedDataset
from siglightning.data.orders import Order, as_they_are, balanced, in_blocks, shares
from siglightning.data.source import Samples, SampleStream, Source, digest
from siglightning.data.streamed import StreamDataset
from siglightning.data.transforms import Augmentation
from siglightning.evaluation.prompts import Templates, templates_of
from siglightning.runtime.processes import notice


@dataclass(frozen=True)
class Parts:
    """The sources of a data module.

    Attributes:
        train: to train on, and to validate on where ``val`` is missing. A stream cannot be shared out.
        val: to validate on.
        tests: name -> source.
    """

    train: Source | SampleStream
    val: Source | None = None
    tests: Mapping[str, Source] = field(default_factory=dict)


class MapStyleDataModule(BaseDataModule):
    """Pictures with captions, with labels, or with both, from files of the user.

    Labels serve contrastive training through ``templates``; captions serve retrieval.

    Args:
        val_fraction: share of the training samples that validates where there is no set for it.
        shots: pictures of each class to train on (few-shot learning), drawn by ``split_seed`` from those that do not
            validate; ``None`` trains on all.
        split_seed: of that division; leave it alone to compare runs.
        templates: sentences with ``{}`` in the place of a class name, for samples without captions and for zero-shot
            classification, or the name of known ones (:func:`~siglightning.evaluation.prompts.templates_of`).
        augmentation: how training pictures vary.
        limits: of the size of pictures.
        max_bad_fraction: of samples that may be unusable before training stops.
        language_temperature: how much rarer languages are drawn more often, where the source tells languages: 1 leaves
            them as they occur, large values make them equally frequent (see :func:`~siglightning.data.orders.shares`);
            ``None`` does not look at them.
        others: of :class:`~siglightning.data.base.BaseDataModule`.
    """

    def __init__(
        self,
        val_fraction: float = 0.1,
        shots: int | None = None,
        split_seed: int = 0,
        templates: Templates = ("a photo of a {}.",),
        augmentation: Augmentation | None = None,
        limits: ImageLimits | None = None,
        max_bad_fraction: float = 0.01,
        language_temperature: float | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        if not 0 < val_fraction < 1:
            raise ValueError(f"`data.init_args.val_fraction` must lie between 0 and 1, got {val_fraction}.")
        if shots is not None and shots < 1:
            raise ValueError(f"`data.init_args.shots` must be at least 1, or null for all, got {shots}.")
        self.val_fraction, self.split_seed, self.shots = val_fraction, split_seed, shots
        try:
            self.prompt_templates = templates_of(templates)
        except ValueError as error:
            raise ValueError(f"`data.init_args.templates` cannot be used: {error}") from error
        if language_temperature is not None and not language_temperature >= 1:
            raise ValueError(f"`data.init_args.language_temperature` must be at least 1, got {language_temperature}.")
        self.language_temperature = language_temperature
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
        if self.shots is not None:
            train_rows = _few(parts.train, train_rows, self.shots, self.split_seed)
        self._tell_absent_classes(parts, train_rows, val_rows)
        self._train_source, self._train_rows = parts.train, train_rows
        evaluation = Preparation(spec.image_size, self.prompt_templates, limits=self.limits, resizing=spec.resizing)
        training = Preparation(
            spec.image_size,
            self.prompt_templates,
            self.augmentation,
            self.seed,
            self.limits,
            self._language_shares(parts.train),
        )
        self.train_set = self._set(parts.train, train_rows, training)
        self.val_set = self._set(parts.val or parts.train, val_rows, evaluation)
        self.test_sets = {
            name: self._set(source, np.arange(len(source)), evaluation) for name, source in parts.tests.items()
        } or {"validation": self.val_set}
        self.class_names = [name.replace("_", " ").strip() for name in parts.train.class_names] or None
        settings = [self.prompt_templates, spec.image_size, asdict(self.limits), self.language_temperature]
        recipe = json.dumps([asdict(self.augmentation), *settings])
        self._fingerprint = digest([parts.train.fingerprint.encode(), train_rows.tobytes(), recipe.encode()])

    @property
    @override
    def fingerprint(self) -> str:
        return self._fingerprint

    @override
    def order(self) -> Order | None:
        train = self._train_source
        if isinstance(train, SampleStream):
            return as_they_are(len(train))
        if self.language_temperature is not None and train.row_languages is not None:
            return balanced(train.row_languages[self._train_rows], self.seed, self.language_temperature)
        if train.bounds is not None:
            # Rows of a file that validate are missing in it, so blocks are counted among the rows that are left.
            return in_blocks(np.searchsorted(self._train_rows, train.bounds), self.seed)
        return None

    def _language_shares(self, source: Samples) -> dict[str, float]:
        """How often captions are to be drawn in each language."""
        if self.language_temperature is None:
            return {}
        if not source.languages:
            raise ValueError(
                "`data.init_args.language_temperature` needs a source that tells the language of its captions; these "
                "data do not. Name the column, or leave the temperature out."
            )
        counts = np.array(list(source.languages.values()))
        return dict(zip(source.languages, shares(counts, self.language_temperature).tolist(), strict=True))

    def _divide(self, parts: Parts) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the training source to train on, and rows to validate on; streams have none."""
        count = 0 if isinstance(parts.train, SampleStream) else len(parts.train)
        if parts.val is not None:
            return np.arange(count), np.arange(len(parts.val))
        if isinstance(parts.train, SampleStream):
            raise ValueError("A stream to train on cannot be shared out: name a set to validate on (`val`).")
        order = permutation("split", self.split_seed, 0, count)
        held_out = max(1, round(self.val_fraction * count))
        if held_out >= count:
            raise ValueError(f"Expected at least two samples, one to train on and one to validate on, got {count}.")
        return np.sort(order[held_out:]), np.sort(order[:held_out])

    def _tell_absent_classes(self, parts: Parts, train_rows: NDArray[np.int64], val_rows: NDArray[np.int64]) -> None:
        """Say once which classes cannot be learnt. No error: prompts of a contrastive model may name unseen classes."""
        train = parts.train.class_counts(train_rows) if isinstance(parts.train, Source) else None
        if train is None or train.all():
            return
        names = list(parts.train.class_names)
        _tell("Classes without a training picture", train == 0, names)
        held_out = parts.train if parts.val is None else parts.val
        val = held_out.class_counts(val_rows) if isinstance(held_out, Source) else None
        if val is not None:
            _tell("Classes that validation shows and training never saw", (train == 0) & (val > 0), names)

    def _set(self, source: Samples, rows: NDArray[np.int64], preparation: Preparation) -> PreparedDataset:
        log = BadSampleLog(self._log_path(), self.max_bad_fraction)
        if isinstance(source, SampleStream):
            return StreamDataset(source, preparation, log)
        assert isinstance(source, Source)
        return MapDataset(source, rows, preparation, log)

    def _log_path(self) -> Path | None:
        """In the run directory, if there is a run."""
        if self.trainer is None or not Path(self.trainer.default_root_dir).is_dir():
            return None
        return Path(self.trainer.default_root_dir) / LOG_NAME


def _few(source: Samples, rows: NDArray[np.int64], shots: int, seed: int) -> NDArray[np.int64]:
    """So many rows of each class, in their order."""
    labels = source.row_labels if isinstance(source, Source) else None
    if labels is None:
        raise ValueError(
            "`data.init_args.shots` needs a source that tells the one class of each sample without reading it; these "
            "data do not. Leave it out, or take folders or a table."
        )
    order = rows[permutation("shots", seed, 0, len(rows))]
    of_class = [order[labels[order] == number] for number in range(len(source.class_names))]
    small = [f"{name} ({len(own)})" for name, own in zip(source.class_names, of_class, strict=True) if len(own) < shots]
    if small:
        raise ValueError(
            f"Expected at least {shots} pictures of every class to train on (`shots`), got fewer of "
            f"{', '.join(small[:5])}{' ...' if len(small) > 5 else ''}. Lower `shots`, or leave these classes out."
        )
    return np.sort(np.concatenate([own[:shots] for own in of_class]))


def _tell(what: str, which: NDArray[np.bool_], names: Sequence[str]) -> None:
    if found := [names[number] for number in np.flatnonzero(which).tolist()]:
        notice(f"{what} ({len(found)} of {len(names)}): {', '.join(found[:5])}{' ...' if len(found) > 5 else '.'}")


def _check_classes(parts: Parts) -> None:
    """Refuse a single class, and sets whose labels mean different classes."""
    if len(parts.train.class_names) == 1:
        raise ValueError(
            f"Expected at least two classes, found only {parts.train.class_names[0]!r}: nothing is to be told apart. "
            "Add pictures of others, or leave the labels out and train on captions."
        )
    others = {"val": parts.val, **parts.tests}
    for name, source in others.items():
        if source is not None and list(source.class_names) != list(parts.train.class_names):
            odd = sorted(set(source.class_names) ^ set(parts.train.class_names))
            raise ValueError(
                f"Expected the classes of the training set in {name!r}, too; only one of both has "
                f"{', '.join(odd[:5]) or 'this order'}{' ...' if len(odd) > 5 else ''}. Add or remove them, or give "
                "`class_names` where the source takes them."
            )
