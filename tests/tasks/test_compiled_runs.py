"""Runs with compiled towers: the losses of plain ones, checkpoints of which either goes on, evaluation and export."""

from functools import partial
from itertools import pairwise

import pytest
import torch
import torch._dynamo
from finetuning import pictures, trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from torch._dynamo.utils import counters

from siglightning.cli import main
from siglightning.data import PictogramDataModule
from siglightning.models import ImageEncoder, TowerConfig, TwoTower
from siglightning.models.compiled import require_compiler
from siglightning.models.export import onnx_format
from siglightning.optim import Schedule
from siglightning.tasks import ContrastiveTask, FineTuneTask, MultiLabelTask
from siglightning.tasks.unfreezing import LastBlocks

pytestmark = pytest.mark.slow
VIT = TowerConfig(
    "timm:vit_base_patch16_siglip_224", kwargs={"patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2}
)
TEXT = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2})
ADAMW = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95))


@pytest.fixture(autouse=True)
def _from_nothing():
    try:
        require_compiler(torch.device("cpu"))
    except ValueError as error:
        pytest.skip(str(error))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Losses(Callback):
    def __init__(self):
        self.values, self.graphs = [], []

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())
        self.graphs.append(counters["stats"]["unique_graphs"])


def two_tower(compiled, **options):
    torch.manual_seed(0)
    options = {"embed_dim": 16, "context_length": 12, "image_size": 32, "micro_batch_size": 8} | options
    return TwoTower(VIT, TEXT, compile_towers=compiled, **options)


def contrastive(compiled, **options):
    return ContrastiveTask(two_tower(compiled, **options), optimizer=ADAMW, schedule=Schedule(kind="constant"))


def fine_tuning(compiled):
    torch.manual_seed(0)
    network = ImageEncoder(VIT, image_size=32, compile_towers=compiled)
    stages = [LastBlocks(1), LastBlocks(2, from_epoch=1)]
    return FineTuneTask(network, train=stages, optimizer=ADAMW, schedule=Schedule(kind="constant"))


def losses_of(folder, task, epochs=2, ckpt_path=None, **options):
    seen = Losses()
    callbacks = [seen, *options.pop("callbacks", [])]
    used = trainer(folder, *callbacks, epochs=epochs, **options)
    data = PictogramDataModule if isinstance(task, ContrastiveTask) else pictures
    used.fit(task, data(global_batch_size=16, eval_batch_size=20), ckpt_path=ckpt_path)
    return seen, used


@pytest.mark.parametrize("kind", [contrastive, fine_tuning])
def test_losses_are_those_of_a_plain_run_and_either_goes_on_with_the_others_checkpoint(tmp_path, kind):
    """Training, a validation whose last batch is ragged, training; then a third epoch from the other's checkpoint."""
    runs = {how: losses_of(tmp_path / str(how), kind(how), limit_val_batches=1.0) for how in (False, True)}
    # fp32: some 1e-7 of a loss a step; AdamW's first steps are as large whatever the gradient, rounding included
    assert runs[True][0].values == pytest.approx(runs[False][0].values, rel=1e-4)
    graphs = runs[True][0].graphs
    assert graphs[-1] <= 8, graphs
    assert [b for a, b in pairwise(graphs) if b > a] in ([], [graphs[3]]), "only validation and stages add graphs"
    files = {how: tmp_path / f"{how}.ckpt" for how in runs}
    for how, (_, used) in runs.items():
        used.save_checkpoint(files[how])
    longer = {
        how: losses_of(tmp_path, kind(how), epochs=3, ckpt_path=files[not how])[0].values for how in (False, True)
    }
    assert longer[True] == pytest.approx(longer[False], rel=1e-3)
    assert len(longer[True]) == 3


def test_averaged_weights_and_a_frozen_tower_in_bf16(tmp_path):
    options = {"callbacks": [WeightAveraging()], "precision": "bf16-mixed", "limit_val_batches": 2}
    runs = {}
    for how in (False, True):
        runs[how], _ = losses_of(tmp_path, contrastive(how, freeze_image=True), **options)
        assert torch.isfinite(torch.tensor(runs[how].values)).all()
    # bf16 has steps of 2^-8 in the embeddings; the loss is a mean over all pairs
    assert runs[True].values == pytest.approx(runs[False].values, rel=1e-2)
    assert runs[True].graphs[-1] <= 8


def test_a_compiled_network_is_exported(tmp_path):
    pytest.importorskip("onnxruntime")
    task = contrastive(True)
    losses_of(tmp_path, task, epochs=1)
    assert task.network.image_tower._compiled_call_impl is not None
    network, folder = task.network.eval(), tmp_path / "onnx"
    folder.mkdir()
    onnx_format.write(network, folder)
    found = onnx_format.reload(folder)
    captions, pictures_ = ["a cat", "two dogs"], torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = network.encode_image(pictures_), network.encode_text(network.tokenizer(captions))
    outputs = found.outputs(found.pixels(list(pictures_)), network.tokenizer(captions))
    torch.testing.assert_close((outputs.image, outputs.text), expected, atol=1e-5, rtol=0)


def test_several_labels_are_predicted_uncompiled(tmp_path):
    task = MultiLabelTask(two_tower(True), prompts=["a cat", "a dog"])
    used = trainer(tmp_path, epochs=1)
    assert used.predict(task, PictogramDataModule(global_batch_size=16, eval_batch_size=20))
    assert counters["stats"]["unique_graphs"] == 0


def test_plan_and_doctor_look_at_such_a_run_without_compiling(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(
        "trainer: {max_steps: 4, accelerator: cpu}\ndata: {init_args: {global_batch_size: 16}}\n"
    )
    compiled = ["--config", "quickstart", "--config", "small.yaml", "--model.network.init_args.compile_towers", "true"]
    assert main(["plan", *compiled]) == 0
    assert main(["doctor", *compiled]) == 0
    assert counters["stats"]["unique_graphs"] == 0
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    capsys.readouterr()
    assert main(["doctor", *compiled]) == 2
    assert "compile_towers: false" in "".join(capsys.readouterr())
