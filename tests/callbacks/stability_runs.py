"""A small vision transformer and a text transformer on the embedded drawings, sound or made to fail."""

from functools import partial

import torch
from lightning.pytorch import Trainer

from siglightning.data import PictogramDataModule
from siglightning.data.dataset import SampleDataset
from siglightning.models import TowerConfig, TwoTower
from siglightning.optim import Schedule
from siglightning.tasks import ContrastiveTask

BATCH = 64
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}


def pocket_task(lr=1e-3, warmup=0.1, **options):
    torch.manual_seed(0)
    image = TowerConfig("timm:vit_tiny_patch16_224", kwargs=VIT | {"class_token": False, "global_pool": "avg"})
    text = TowerConfig("local:text_transformer", kwargs={"width": 32, "depth": 1, "heads": 2})
    network = TwoTower(image, text, embed_dim=32, context_length=12, image_size=32, init_bias="auto")
    optimizer = partial(torch.optim.AdamW, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    return ContrastiveTask(network, optimizer=optimizer, schedule=Schedule(warmup), **options)


def trainer(folder, callbacks, **options):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"logger": False, "accelerator": "cpu", "default_root_dir": folder, "limit_val_batches": 0}
    return Trainer(callbacks=callbacks, **(quiet | options))


def pictograms(**options):
    return PictogramDataModule(global_batch_size=BATCH, **options)


class AllAlike(PictogramDataModule):
    """The drawings, each with the same caption, as a wrong column of a table gives them."""

    def build(self, spec):
        super().build(spec)
        self.train_set = _OneCaption(self.train_set)


class _OneCaption(SampleDataset):
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitems__(self, keys):
        samples = self.dataset.__getitems__(keys)
        for sample in samples:
            sample["captions"] = ["a drawing"]
        return samples
