"""Features that `siglightning embed` stored, in the place of pictures: for towers that are locked (LiT)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from siglightning.batch import InputSpec
from siglightning.data.base import BaseDataModule
from siglightning.data.collate import Sample
from siglightning.data.dataset import SampleDataset, of_one_epoch
from siglightning.data.feature_store import Shard, StoredPart, StoreIndex, shard_path
from siglightning.data.sampler import SampleKey
from siglightning.data.source import digest


class StoredDataset(SampleDataset):
    """The samples of one part; epoch e gets view e, and after the last view the first one again.

    Args:
        root: the folder.
        name: of the part.
        part: its size.
        with_texts: hand out stored features of captions, too.
    """

    def __init__(self, root: Path, name: str, part: StoredPart, with_texts: bool) -> None:
        self.root, self.name, self.part, self.with_texts = root, name, part, with_texts
        self._opened: dict[tuple[int, int], Shard] = {}

    def __len__(self) -> int:
        return self.part.count

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[Sample]:
        """Samples with ``image_embed``, ``captions`` and what else was stored."""
        epoch, index = of_one_epoch(keys)
        view = epoch % self.part.views
        return [self._sample(view, *divmod(position, self.part.shard_size)) for position in index.tolist()]

    def _sample(self, view: int, number: int, row: int) -> Sample:
        shard = self._shard(view, number)
        images = self._shard(view % self.part.image_views, number)
        assert images.image_embed is not None
        sample = Sample(image_embed=_tensor(images.image_embed[row]), id=str(shard.ids[row].as_py()))
        captions: list[str] = shard.captions[row].as_py()
        if captions:
            sample["captions"] = captions
        if shard.match_id is not None:
            sample["match_id"] = int(shard.match_id[row])
        if shard.label is not None:
            sample["label"] = int(shard.label[row]) if shard.label.ndim == 1 else _tensor(shard.label[row])
        if self.with_texts and shard.text_embed is not None and shard.text_ends is not None:
            sample["text_embed"] = _tensor(shard.text_embed[shard.text_ends[row] : shard.text_ends[row + 1]])
        return sample

    def _shard(self, view: int, number: int) -> Shard:
        if (view, number) not in self._opened:
            self._opened[view, number] = Shard(shard_path(self.root, self.name, view, number))
        return self._opened[view, number]

    def __getstate__(self) -> dict[str, Any]:
        """Loading processes map the files themselves."""
        return {**self.__dict__, "_opened": {}}


class EmbeddingDataModule(BaseDataModule):
    """Stored features, as ``siglightning embed`` writes them; training on them equals training with the live tower.

    The features are those of a frozen tower. They are refused when the model's tower is another one: other weights,
    another picture size or normalisation, for texts another tokenizer; or when it is to be trained.

    Args:
        root: the folder.
        others: of :class:`~siglightning.data.base.BaseDataModule`; noise on pictures belongs into the embedding.
    """

    def __init__(self, root: str, **others: Any) -> None:
        super().__init__(**others)
        self.root = root
        self._index: StoreIndex | None = None
        self._wanted: Callable[[], Mapping[str, str]] | None = None
        self._towers: list[str] = []

    @override
    def build(self, spec: InputSpec) -> None:
        root, index = Path(self.root), StoreIndex.read(Path(self.root))
        if index is None or not index.complete:
            state = "is not complete" if index is not None else "holds no stored features"
            raise ValueError(f"{root} {state}. Run `siglightning embed` with this folder as its --run_dir.")
        keys = {} if spec.feature_keys is None else spec.feature_keys()
        require_locked(root, "image", keys)
        with_texts = "text" in index.keys and "text" in keys
        self._wanted, self._towers = spec.feature_keys, ["image", "text"] if with_texts else ["image"]
        sets = {name: StoredDataset(root, name, part, with_texts) for name, part in index.parts.items()}
        self.train_set, self.val_set = sets.pop("train"), sets.pop("val")
        self.test_sets = {**sets} or {"validation": self.val_set}
        self.class_names, self.prompt_templates = index.class_names, index.prompt_templates
        self._index = index

    @override
    def before_loading(self) -> None:
        """Compare the keys of the towers as they are now, with a checkpoint's weights."""
        assert self._index is not None
        keys = {} if self._wanted is None else self._wanted()
        for tower in self._towers:
            check_key(Path(self.root), tower, self._index.keys, keys)

    @property
    @override
    def fingerprint(self) -> str:
        """Identity of towers, data and views, 16 hexadecimal digits."""
        assert self._index is not None
        index = self._index
        parts = (sorted(index.keys.items()), index.data, index.dtype, index.parts["train"])
        return digest(repr(part).encode() for part in parts)


def require_locked(root: Path, tower: str, wanted: Mapping[str, str]) -> None:
    """Refuse features for a tower that is to be trained, which has no key.

    Raises:
        ValueError: it is.
    """
    if tower not in wanted:
        raise ValueError(
            f"The features in {root} are those of a locked {tower} tower, but this model trains its own: they would be "
            f"stale after one step. Set the network's `freeze_{tower}: true`, or train on the pictures."
        )


def check_key(root: Path, tower: str, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse features that are not the model's.

    Raises:
        ValueError: another tower made them.
    """
    if stored.get(tower) != wanted[tower]:
        raise ValueError(
            f"Expected features of the model's {tower} tower (key {wanted[tower]}), got those of another "
            f"({stored.get(tower)}) in {root}: its weights or its input differ. Embed the data again."
        )


def _tensor(row: Any) -> Tensor:
    """Numbers from a mapped file as a tensor of their own; half precision is widened."""
    return torch.from_numpy(row.astype("float32"))
