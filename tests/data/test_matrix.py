"""Every kind of data with every task: one step and a validation, or a refusal in one line."""

import copy
import functools
import importlib
import inspect
import math
import pkgutil

import pytest
import torch
from kinds import CHECKSUMS, KINDS, SIZES
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn import functional

import siglightning.data
from siglightning.batch import InputSpec
from siglightning.commands.embed import EmbedOptions, embed
from siglightning.data import BaseDataModule, EmbeddingDataModule
from siglightning.models import TowerConfig, TwoTower
from siglightning.optim import Schedule
from siglightning.tasks import ContrastiveTask
from siglightning.tasks.base import BaseTask, adamw


@functools.cache
def network(freeze_image):
    torch.manual_seed(0)
    image = TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1], "groups": 4})
    text = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2})
    return TwoTower(image, text, embed_dim=16, context_length=12, image_size=32, freeze_image=freeze_image)


class FineTuning(BaseTask):
    """One class for each picture, by a linear head on the features of the image tower, live or stored."""

    multi_hot, loss = False, staticmethod(functional.cross_entropy)

    def __init__(self, network, schedule):
        super().__init__(adamw, schedule, (), 1.0, 0)
        self.network = network
        self.input_spec = InputSpec(network.image_size, None, network.feature_keys)

    def setup(self, stage):
        super().setup(stage)
        self.require_labels(multi_hot=self.multi_hot)
        self.head = nn.Linear(self.network.image_tower.width, len(self.trainer.datamodule.class_names))

    def training_step(self, batch, batch_idx):
        features = batch["image_embed"] if "image_embed" in batch else self.network.image_features(batch["image"])
        return self.loss(self.head(features), batch["label"])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx), batch_size=len(batch["label"]))


class MultiLabel(FineTuning):
    multi_hot, loss = True, staticmethod(functional.binary_cross_entropy_with_logits)


LEARNT = {ContrastiveTask: "network.image_projection.weight", FineTuning: "head.weight", MultiLabel: "head.weight"}
STORED = {  # features of these kinds, as `siglightning embed` writes them
    "features of captions": "table of captions",
    "features of captions and classes": "synthetic",
    "features of several labels": "Million-AID, several labels",
}
ALL = KINDS | {name: KINDS[of] for name, of in STORED.items()}


def refusal(kind, task):
    """Why these data cannot serve a task; ``None`` where they can."""
    if task is ContrastiveTask:
        return None if kind.captions or kind.labels != "none" else "needs text in every batch, but MODULE gives only "
    if kind.labels == "none":
        return "needs label in every batch, but MODULE gives only "
    if (kind.labels == "several") == task.multi_hot:
        return None
    wanted, given = ("several classes", "one") if task.multi_hot else ("one class", "several")
    return f"needs {wanted} for each picture, but MODULE gives {given}. Choose a task for these labels, or other data."


PAIRS = [(name, task) for name in ALL for task in LEARNT]
WORKING = [pair for pair in PAIRS if refusal(ALL[pair[0]], pair[1]) is None]
REFUSED = [pair for pair in PAIRS if pair not in WORKING]


def trainer(folder, **options):
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    return Trainer(accelerator="cpu", default_root_dir=folder, num_sanity_val_steps=0, **quiet, **options)


def stored(module, folder):
    """The features of a data module."""
    folder.mkdir()
    embed(
        trainer(folder), ContrastiveTask(copy.deepcopy(network(freeze_image=True))), module, EmbedOptions(shard_size=16)
    )
    return EmbeddingDataModule(str(folder), **SIZES)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Writes a kind of data and opens it; the second time it is there already."""

    @functools.cache
    def opened(name):
        root = tmp_path_factory.mktemp("data")
        module = ALL[name].open(root)
        return stored(module, root / "features") if name in STORED else module

    yield opened
    CHECKSUMS.undo()


class Witness(Callback):
    """The weight that is to be learnt, before and after the step, and the step's loss."""

    def on_train_start(self, trainer, task):
        self.before = task.get_parameter(LEARNT[type(task)]).detach().clone()

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.after, self.loss = task.get_parameter(LEARNT[type(task)]).detach().clone(), outputs["loss"].item()


def fit(module, task, folder):
    """One step and one validation; what was seen, and the metrics."""
    witness = Witness()
    short = trainer(folder, max_steps=1, limit_train_batches=1, limit_val_batches=2, callbacks=[witness])
    towers = copy.deepcopy(network(freeze_image=isinstance(module, EmbeddingDataModule)))
    short.fit(task(towers, schedule=Schedule(kind="constant")), copy.deepcopy(module))
    return witness, {key: value.item() for key, value in short.callback_metrics.items()}


def test_no_data_module_is_forgotten(data):
    for found in pkgutil.walk_packages(siglightning.data.__path__, "siglightning.data."):
        importlib.import_module(found.name)

    def below(kind):
        return {kind}.union(*map(below, kind.__subclasses__()))

    written = {kind for kind in below(BaseDataModule) if kind.__module__.startswith("siglightning.")}
    exported = {getattr(siglightning.data, name) for name in siglightning.data.__all__} & written
    assert exported == written
    assert {type(data(name)) for name in ALL} == {kind for kind in written if not inspect.isabstract(kind)}


@pytest.mark.parametrize(("name", "task"), WORKING)
def test_it_learns(data, name, task, tmp_path):
    witness, metrics = fit(data(name), task, tmp_path)
    assert math.isfinite(witness.loss)
    assert not torch.equal(witness.before, witness.after)
    assert math.isfinite(metrics["val/loss"])
    if task is ContrastiveTask:  # by captions, or by what templates say of the classes
        assert 0 <= metrics["val/t2i_recall@1"] <= metrics["val/t2i_recall@10"] <= 1
        has_classes = ALL[name].labels == "one"
        assert 0 <= metrics.get("val/zeroshot_acc", -1) <= 1 if has_classes else "val/zeroshot_acc" not in metrics


@pytest.mark.parametrize(("name", "task"), REFUSED)
def test_it_is_refused_in_a_line(data, name, task, tmp_path):
    with pytest.raises(ValueError) as caught:
        fit(data(name), task, tmp_path)
    said, reason = str(caught.value), refusal(ALL[name], task).replace("MODULE", type(data(name)).__name__)
    assert said.startswith(f"{task.__name__} {reason}")
    assert "\n" not in said
