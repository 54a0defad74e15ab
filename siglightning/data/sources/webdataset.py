"""The data module of tars in the layout of WebDataset and img2dataset."""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from siglightning.batch import InputSpec
from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.sources.members import Members
from siglightning.data.sources.tar_stream import TarStream, is_url, require_webdataset
from siglightning.data.sources.tars import TarSource
from siglightning.runtime.processes import notice


class WebDatasetDataModule(MapStyleDataModule):
    """Tars in the layout of WebDataset and img2dataset: ``KEY.jpg`` beside ``KEY.txt``, ``KEY.json``, ``KEY.cls``.

    Tars are named by a path with braces (``data/{00000..00099}.tar``), wildcards, a folder, or a list of these.

    By default they lie on a disk, are read by position, and a run can be stopped and continued exactly.

    With ``resampled`` they may also come from the web, and each loading process draws tars at random for ever. **A
    restart is then statistical:** a run that goes on sees samples of the same distribution, but not the ones that the
    undisturbed run would have seen, and none is sure to be seen once an epoch. Validation and test sets are always
    read by position.

    Args:
        train: tars to train on.
        val: tars to validate on; ``None``: a share of ``train``, which a stream cannot give.
        tests: name -> tars.
        members: which file of a sample holds what.
        class_names: of the labels, in the order of their numbers.
        resampled: stream ``train``: also URLs, and ``pipe:`` with a command that writes a tar.
        samples_per_epoch: of the stream; fixes the number of steps, whatever the tars hold.
        shuffle_buffer: samples of the stream that are mixed, in each loading process.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        tests: Mapping[str, str | list[str]] | None = None,
        members: Members | None = None,
        class_names: Sequence[str] | None = None,
        resampled: bool = False,
        samples_per_epoch: int | None = None,
        shuffle_buffer: int = 2000,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.train, self.val, self.tests = train, val, dict(tests or {})
        self.members, self.named_classes = members, class_names
        self.resampled, self.samples_per_epoch, self.shuffle_buffer = resampled, samples_per_epoch, shuffle_buffer
        if resampled == (samples_per_epoch is None):
            raise ValueError(
                "`data.init_args.samples_per_epoch` says how long an epoch of a stream is, and belongs to `resampled: "
                f"true`: got {samples_per_epoch} with `resampled: {str(resampled).lower()}`."
            )
        if resampled and self.noise is not None:
            raise ValueError(
                "`data.init_args.noise` strikes the same samples in every epoch, and a stream does not know them. Use "
                "`resampled: false`."
            )

    @override
    def build(self, spec: InputSpec) -> None:
        if self.resampled and bool(getattr(self.trainer, "overfit_batches", 0)):
            raise ValueError("`trainer.overfit_batches` needs the same samples again: use `resampled: false`.")
        super().build(spec)

    @override
    def open_parts(self) -> Parts:
        train = self._stream() if self.resampled else self._tars(self.train)
        val = None if self.val is None else self._tars(self.val)
        return Parts(train, val, {name: self._tars(tars) for name, tars in self.tests.items()})

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.resampled and (self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING):
            notice(
                "The training data are a stream of tars drawn at random: the samples from here on are not the ones "
                "that an undisturbed run would have seen. With `resampled: false` they would be."
            )

    def _stream(self) -> TarStream:
        assert self.samples_per_epoch is not None
        tars = find_tars(self.train)
        return TarStream(tars, self.samples_per_epoch, self.members, self.named_classes, self.shuffle_buffer)

    def _tars(self, tars: str | list[str]) -> TarSource:
        return TarSource(find_tars(tars), self.members, self.named_classes)


COMMAND = "pipe:"  # how WebDataset is told to run what follows


def find_tars(places: str | Sequence[str]) -> list[str]:
    """Tars that braces, wildcards and folders stand for; in the order of the list, and of their names in a folder.

    Raises:
        ValueError: a folder holds none, a pattern fits none, or braces hide a command.
    """
    found: list[str] = []
    for place in [places] if isinstance(places, str) else places:
        for path in [place] if os.path.exists(place) or "{" not in place else _expand(place):
            if os.path.isdir(path):
                found += _some(sorted(str(tar) for tar in Path(path).glob("*.tar")), path)
            elif not is_url(path) and glob.has_magic(path):
                found += _some(sorted(glob.glob(path)), path)
            else:
                found.append(path)
    return found


def _some(tars: list[str], place: str) -> list[str]:
    if not tars:
        raise ValueError(f"Expected tars in {place}, found none. Is it one level too high or too low?")
    return tars


def _expand(place: str) -> list[str]:
    require_webdataset()
    from braceexpand import braceexpand

    tars = list(braceexpand(place))
    if any(tar.startswith(COMMAND) for tar in tars) and not place.startswith(COMMAND):
        raise ValueError(f"Expected a command that begins with `{COMMAND}` for all to see, got {place}. Write it out.")
    return tars
