"""Pocket SigLIP from scratch: a small vision transformer and a bag of words on the drawings themselves."""

from typing import Any

from benchmarks.paper.features import ALL_STYLES, ENGLISH, ONE_STYLE, STILL, small_text_tower
from benchmarks.paper.study import Settings, Workspace
from benchmarks.paper.training import build
from siglightning.data import PictogramDataModule
from siglightning.models import TowerConfig, TwoTower

PICTURE = 64  # pixels, as the drawings have
VIT = {"img_size": PICTURE, "patch_size": 16, "embed_dim": 128, "depth": 4, "num_heads": 4}
TINY_VIT = {"img_size": PICTURE, "patch_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}


def vit(workspace: Workspace) -> TowerConfig:
    """16 patches of 16 pixels, mean pooling as timm's tiny one has it."""
    return TowerConfig("timm:vit_tiny_patch16_224", kwargs=workspace.pick(VIT, TINY_VIT))


def bag_of_words(workspace: Workspace) -> TowerConfig:
    """A text tower as large as the captions can fill."""
    bottleneck, width = workspace.pick((64, 256), (16, 32))
    return small_text_tower(bottleneck, width)


def pocket_network(settings: Settings, workspace: Workspace, **options: Any) -> TwoTower:
    """Both towers from scratch, weights by the cell's seed."""
    options = {"embed_dim": 128, "context_length": 32, **options}
    return build(settings, TwoTower, vit(workspace), bag_of_words(workspace), **options)


def drawings(settings: Settings, workspace: Workspace) -> PictogramDataModule:
    """The drawings, not augmented, with English captions drawn anew in each epoch."""
    return PictogramDataModule(
        train_styles=workspace.pick(ALL_STYLES, ONE_STYLE),
        captions=ENGLISH,
        eval_captions="description",
        augmentation=STILL,
        global_batch_size=settings["batch"],
        seed=settings["seed"],
    )
