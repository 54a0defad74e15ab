"""Features of the embedded drawings by real pre-trained towers, stored once by `siglightning embed` and shared.

``english`` holds pictures and three views of English captions. ``noise`` holds the same with every picture and every
caption corrupted, from which runs with any share of noise are put together. ``languages`` holds pictures and captions
in twelve languages, for text towers that learn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer

from benchmarks.paper.study import Workspace
from siglightning.batch import InputSpec
from siglightning.commands.embed import EmbedOptions, embed
from siglightning.data import CaptionChoice, EmbeddingDataModule, LabelNoise, NoisyDataset, PictogramDataModule
from siglightning.data.collate import Sample
from siglightning.data.dataset import SampleDataset, of_one_epoch
from siglightning.data.feature_store import StoreIndex
from siglightning.data.sampler import SampleKey
from siglightning.data.sources.embeddings import StoredDataset
from siglightning.data.transforms import Augmentation
from siglightning.models import TowerConfig, TwoTower
from siglightning.tasks import ContrastiveTask

IMAGE_TOWER, TEXT_TOWER = "package:efficientnet_lite0", "package:all-minilm-l6-v2"
STILL = Augmentation(crop=0, stretch=0, rotation=0, flip=0, brightness=0, contrast=0, saturation=0, hue=0)
ENGLISH = CaptionChoice({"name": 0.3, "name_and_keywords": 0.4, "keywords": 0.3})  # as recipe/siglit_demo
LANGUAGES = CaptionChoice({"name": 1, "locale": 11})
ALL_STYLES, ONE_STYLE = ("noto", "fluent_color", "fluent_flat", "clipart"), ("fluent_flat",)
NOISE_SEED = 0


@dataclass(frozen=True)
class Store:
    """What is embedded.

    Attributes:
        captions: how training captions are chosen.
        views: of them.
        locked_text: store features of captions, too.
        eval_captions: see PictogramDataModule.
        noise: of the training set.
    """

    captions: CaptionChoice
    views: int
    locked_text: bool = True
    eval_captions: str = "description"
    noise: LabelNoise | None = None


STORES = {
    "english": Store(ENGLISH, views=3),
    "noise": Store(ENGLISH, views=1, noise=LabelNoise(["image", "text"], 1.0, NOISE_SEED)),
    "languages": Store(LANGUAGES, views=12, locked_text=False, eval_captions="name"),
}


def image_size(workspace: Workspace) -> int:
    """The drawings have 64 pixels; 160 is what recipe/siglit_demo takes."""
    return workspace.pick(160, 32)


def locked_network(workspace: Workspace, text_tower: TowerConfig | str = TEXT_TOWER, **options: Any) -> TwoTower:
    """Two towers, of which the image tower is locked and, unless another is given, the text tower, too."""
    return TwoTower(
        IMAGE_TOWER,
        text_tower,
        freeze_image=True,
        freeze_text=text_tower == TEXT_TOWER,
        image_size=image_size(workspace),
        **{"embed_dim": 128, "context_length": 32, **options},
    )


def small_text_tower(bottleneck: int | None = 64, width: int = 256) -> TowerConfig:
    """A bag of words, as in configs/quickstart.yaml: what five thousand captions can fill."""
    return TowerConfig(
        "local:text_transformer", kwargs={"width": width, "depth": 0, "heads": 4, "bottleneck": bottleneck}
    )


def pictograms(workspace: Workspace, store: Store, **options: Any) -> PictogramDataModule:
    """The drawings as they are, plainly resized."""
    styles = workspace.pick(ALL_STYLES, ONE_STYLE)
    return PictogramDataModule(
        train_styles=styles,
        captions=store.captions,
        eval_captions=store.eval_captions,  # type: ignore[arg-type]
        augmentation=STILL,
        noise=store.noise,
        **options,
    )


def store_features(name: str, workspace: Workspace) -> None:
    """Embed one of ``STORES``, unless it is whole already."""
    store, root = STORES[name], features_of(name, workspace)
    found = StoreIndex.read(root)
    if found is not None and found.complete:
        return
    root.mkdir(parents=True, exist_ok=True)
    text = TEXT_TOWER if store.locked_text else small_text_tower()
    trainer = Trainer(
        default_root_dir=root, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    task = ContrastiveTask(locked_network(workspace, text))
    embed(trainer, task, pictograms(workspace, store), EmbedOptions(views=workspace.pick(store.views, 1)))


def features_of(name: str, workspace: Workspace) -> Path:
    """Where they lie."""
    return workspace.root / f"features-{workspace.scale}" / name


def preparing(*names: str) -> Any:
    """A study's preparation: these stores."""
    return partial(_prepare, names)


def _prepare(names: Sequence[str], workspace: Workspace) -> None:
    for name in names:
        store_features(name, workspace)


class NoisyFeatures(NoisyDataset):
    """Label noise on stored features, equal to features of noisy data.

    Alignment is that of its parent. A struck picture or caption has the features, and the match id, that the store
    with noise on everything holds for it: what noise puts there depends on the noise's seed and the sample only.

    Args:
        dataset: stored features without noise.
        noise: which samples, and how.
        corrupted: stored features of the same samples, all corrupted with the same seed.
    """

    def __init__(self, dataset: SampleDataset, noise: LabelNoise, corrupted: StoredDataset) -> None:
        super().__init__(dataset, noise)
        self._corrupted = corrupted

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[Sample]:
        """The samples with their noise."""
        epoch, index = of_one_epoch(keys)
        samples = self.dataset.__getitems__(keys)
        self._misalign(samples, index, epoch)
        self._put(samples, index, "image", ("image_embed",))
        self._put(samples, index, "text", ("text_embed", "captions", "match_id"))
        return samples

    def _put(self, samples: list[Sample], index: Any, kind: Any, names: Sequence[str]) -> None:
        rows = np.flatnonzero(self.noise.struck(kind, index))
        if not len(rows):
            return
        others = self._corrupted.__getitems__([int(i) for i in index[rows]])
        for row, other in zip(rows, others, strict=True):
            samples[row].update({name: other[name] for name in names})  # type: ignore[typeddict-item, literal-required]


class StudyFeatures(EmbeddingDataModule):
    """Stored features with any kind of label noise.

    Args:
        root: the features.
        corrupted: features of the same data with noise on everything; ``None`` for runs without noise.
        label_noise: which samples, and how.
        others: of EmbeddingDataModule.
    """

    def __init__(
        self, root: Path, corrupted: Path | None = None, label_noise: LabelNoise | None = None, **others: Any
    ) -> None:
        super().__init__(str(root), **others)
        self._corrupted, self._label_noise = corrupted, label_noise

    def build(self, spec: InputSpec) -> None:
        """As its parent, and the noise."""
        super().build(spec)
        if self._label_noise is None or self._corrupted is None:
            return
        index = StoreIndex.read(self._corrupted)
        assert index is not None
        corrupted = StoredDataset(self._corrupted, "train", index.parts["train"], with_texts=True)
        self.train_set = NoisyFeatures(self.train_set, self._label_noise, corrupted)

    def teardown(self, stage: str) -> None:
        """Without the parent's remark on truncated captions, which every cell would repeat."""


def stored(name: str, workspace: Workspace, seed: int, batch: int, noise: LabelNoise | None = None) -> StudyFeatures:
    """A store as data to train on."""
    root = features_of(name, workspace)
    corrupted = features_of("noise", workspace) if noise is not None else None
    return StudyFeatures(root, corrupted, noise, global_batch_size=batch, eval_batch_size=1024, seed=seed)


def read_part(name: str, part: str, workspace: Workspace) -> list[Sample]:
    """All samples of one part of a store."""
    root = features_of(name, workspace)
    index = StoreIndex.read(root)
    assert index is not None
    found = StoredDataset(root, part, index.parts[part], with_texts=False)
    return found.__getitems__(list(range(len(found))))


def image_features(samples: Sequence[Sample]) -> torch.Tensor:
    """Stored features ``[N, d]``."""
    return torch.stack([sample["image_embed"] for sample in samples])
