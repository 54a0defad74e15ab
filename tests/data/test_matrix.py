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

import siglightning.data
from siglightning.commands.embed import EmbedOptions, embed
from siglightning.data import BaseDataModule, EmbeddingDataModule
from siglightning.models import TowerConfig, TwoTower
from siglightning.optim import Schedule
from siglightning.tasks import ContrastiveTask, FineTuneTask, MultiLabelTask


@functools.cache
def network(freeze_image):
    torch.manual_seed(0)
    image = TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1], "groups": 4})
    text = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2})
    return TwoTower(image, text, embed_dim=16, context_length=12, image_size=32, freeze_image=freeze_image)


LEARNT = {ContrastiveTask: "network.image_projection.weight", FineTuneTask: "head.weight"}
TASKS = [*LEARNT, MultiLabelTask]
STORED = {  # features of these kinds, as `siglightning embed` writes them
    "features of captions": "table of captions",
    "features of captions and classes": "synthetic",
    "features of several labels": "Million-AID, several labels",
}
ALL = KINDS | {name: KINDS[of] for name, of in STORED.items()}


def refusal(kind, task):
    """Why these data cannot serve a task, as it is said first; ``None`` where they can."""
    if not kind.trains and task in LEARNT:
        return "imagenet_a is for tests alone. "
    needed = "label" if task is not ContrastiveTask else "text"
    if kind.labels == "none" and not (kind.captions and needed == "text"):
        return f"{task.__name__} needs {needed} in every batch, but MODULE gives only "
    return None


PAIRS = [(name, task) for name in ALL for task in TASKS]
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


def fit(module, task, folder, **options):
    """One step and one validation; what was seen, and the metrics."""
    witness = Witness()
    short = trainer(folder, max_steps=1, limit_train_batches=1, limit_val_batches=2, callbacks=[witness])
    towers = copy.deepcopy(network(freeze_image=isinstance(module, EmbeddingDataModule)))
    short.fit(task(towers, schedule=Schedule(kind="constant"), **options), copy.deepcopy(module))
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


@pytest.mark.parametrize(("name", "task"), [(name, task) for name, task in WORKING if task in LEARNT])
def test_it_learns(data, name, task, tmp_path):
    several = task is FineTuneTask and ALL[name].labels == "several"
    witness, metrics = fit(data(name), task, tmp_path, **({"loss": "bce"} if several else {}))
    assert math.isfinite(witness.loss)
    assert not torch.equal(witness.before, witness.after)
    assert math.isfinite(metrics["val/loss"])
    assert ("val/mAP" in metrics) == several
    if task is ContrastiveTask:  # by captions, or by what templates say of the classes
        assert 0 <= metrics["val/t2i_recall@1"] <= metrics["val/t2i_recall@10"] <= 1
        has_classes = ALL[name].labels != "none"
        assert 0 <= metrics.get("val/zeroshot_acc", -1) <= 1 if has_classes else "val/zeroshot_acc" not in metrics


def measure(module, folder):
    """Labels by prompts of the classes, on some validation pictures."""
    towers = copy.deepcopy(network(freeze_image=isinstance(module, EmbeddingDataModule)))
    short = trainer(folder, limit_val_batches=2)
    short.validate(MultiLabelTask(towers, prompts="classes"), copy.deepcopy(module), verbose=False)
    return {key: value.item() for key, value in short.callback_metrics.items()}


@pytest.mark.parametrize("name", [name for name, task in WORKING if task is MultiLabelTask])
def test_its_labels_are_measured(data, name, tmp_path):
    metrics = measure(data(name), tmp_path)
    assert math.isfinite(metrics["val/nll"])
    assert 0 <= metrics["val/ece"] <= 1


@pytest.mark.parametrize(("name", "task"), REFUSED)
def test_it_is_refused_in_a_line(data, name, task, tmp_path):
    with pytest.raises(ValueError) as caught:
        measure(data(name), tmp_path) if task is MultiLabelTask else fit(data(name), task, tmp_path)
    said, reason = str(caught.value), refusal(ALL[name], task).replace("MODULE", type(data(name)).__name__)
    assert said.startswith(reason)
    assert "\n" not in said
