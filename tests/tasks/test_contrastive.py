"""`ContrastiveTask` on real rows: the trajectory of a plain loop, the validation loss, and what it refuses."""

import copy
import json
import math
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from open_clip.loss import SigLipLoss
from references import masked_weights, sigmoid_loss_loops, unit_pairs

from siglightning.data import CaptionChoice, PictogramDataModule
from siglightning.losses import Negatives, sigmoid_loss
from siglightning.models import TowerConfig, TwoTower
from siglightning.optim import GroupRule, Schedule
from siglightning.tasks import ContrastiveTask
from siglightning.tasks.embeddings import EmbeddedSet

OPEN_CLIP = {
    "embed_dim": 32,
    "init_logit_scale": math.log(10),
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


def tiny_network(**options):
    torch.manual_seed(0)
    image = TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1], "groups": 4})
    text = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2})
    return TwoTower(image, text, embed_dim=16, context_length=12, image_size=32, **options)


def quiet_trainer(tmp_path, **options):
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    defaults |= {"enable_model_summary": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    return Trainer(**(defaults | {"limit_val_batches": 0} | options))


class Recorder(Callback):
    """Keeps every batch and the loss that the trainer's step returned."""

    def __init__(self):
        self.batches, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append((batch["image"].clone(), batch["text"].clone()))
        self.losses.append(outputs["loss"].item())


def test_trajectory_equals_a_plain_loop_around_open_clip(tmp_path):
    """50 steps of our trainer and of open_clip's model, loss and hand-written loop: the same losses to 1e-5."""
    import open_clip

    config = tmp_path / "tiny-open-clip.json"
    config.write_text(json.dumps(OPEN_CLIP))
    torch.manual_seed(1)
    network = TwoTower(f"open_clip:{config}", f"open_clip:{config}", tokenizer="clip")
    start = copy.deepcopy(network)
    optimizer = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = Schedule(warmup_steps=5)
    task = ContrastiveTask(network, match="none", optimizer=optimizer, schedule=schedule)
    data = PictogramDataModule(global_batch_size=32, seed=3)
    recorder = Recorder()
    quiet_trainer(tmp_path, max_steps=50, callbacks=[recorder]).fit(task, data)

    theirs = open_clip.create_model(config.stem)
    theirs.visual.load_state_dict(start.image_tower.trunk.state_dict())
    theirs.text.load_state_dict(start.text_tower.trunk.state_dict())
    scalars = ("logit_scale", "logit_bias")
    embeddings = ("positional_embedding", "class_embedding")
    is_plain = {n: p.ndim < 2 or n in scalars or n.endswith(embeddings) for n, p in theirs.named_parameters()}
    groups = [
        {"params": [p for n, p in theirs.named_parameters() if is_plain[n] is plain], "weight_decay": decay}
        for plain, decay in ((True, 0.0), (False, 0.05))
    ]
    adamw = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    mean, std = (torch.tensor(network.image_tower.mean), torch.tensor(network.image_tower.std))
    losses = []
    for step, (image, text) in enumerate(recorder.batches):
        warm = (step + 1) / 5 if step < 5 else 0.5 * (1 + math.cos(math.pi * (step - 5) / 45))
        for group in adamw.param_groups:
            group["lr"] = 1e-3 * warm
        pixels = (image.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        loss = SigLipLoss()(*theirs(pixels, text)[:2], theirs.logit_scale.exp(), theirs.logit_bias)
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        losses.append(loss.item())

    assert len(losses) == 50
    assert losses[-1] < losses[0] - 3, "the two must agree on learning, not on standing still"
    assert recorder.losses == pytest.approx(losses, abs=1e-5, rel=0)


def test_equal_captions_in_a_batch_are_never_negatives(tmp_path):
    """`match` decides what repeated captions are; the loss of the first step shows it, on a real batch with repeats."""
    losses, batches = {}, None
    for match in ("positive", "ignore", "none"):
        recorder = Recorder()
        task = ContrastiveTask(tiny_network(), match=match, schedule=Schedule(warmup_steps=0))
        data = PictogramDataModule(global_batch_size=192, captions=CaptionChoice({"keyword": 1.0}))
        quiet_trainer(tmp_path, max_steps=1, callbacks=[recorder]).fit(task, data)
        losses[match], batches = recorder.losses[0], recorder.batches
    network = tiny_network().train()
    with torch.no_grad():
        x, y = (value.double() for value in network(*batches[0]))
    ids = torch.unique(batches[0][1], dim=0, return_inverse=True)[1].tolist()
    assert len(set(ids)) < len(ids)
    for match in losses:
        expected, _ = sigmoid_loss_loops(x, y, math.log(10), -10.0, None if match == "none" else ids, match)
        assert losses[match] == pytest.approx(expected["loss"], rel=1e-6), match
    assert losses["positive"] > losses["none"] > losses["ignore"]


def test_validation_loss_is_the_training_loss_over_fixed_groups(tmp_path):
    task = ContrastiveTask(tiny_network())
    data = PictogramDataModule(global_batch_size=64, eval_batch_size=50)
    trainer = quiet_trainer(tmp_path, max_steps=1, limit_val_batches=None, check_val_every_n_epoch=1)
    logged = trainer.validate(task, data, verbose=False)[0]

    network = task.network.eval()
    rows = [data.val_set[index] for index in range(len(data.val_set))]
    with torch.no_grad():
        images = network.encode_image(torch.stack([row["image"] for row in rows]))
        texts = network.encode_text(network.tokenizer([row["captions"][0] for row in rows]))
    ids = torch.tensor([row["match_id"] for row in rows])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    losses = [
        sigmoid_loss(images[g], texts[g], network.log_scale, network.bias, match_ids=ids[g]).item()
        for g in (order[start : start + 64] for start in range(0, len(rows) - 63, 64))
    ]
    assert len(losses) > 1
    assert logged["val/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_embedded_set_with_several_captions_per_picture():
    """Two batches of two pictures with 1 + 3 and 2 + 1 captions: owners and first captions run on over batches."""
    x, _ = unit_pairs(4, 8)
    y, _ = unit_pairs(7, 8, seed=1)
    owners = [torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1])]
    embedded = EmbeddedSet()
    for number, (pictures, captions) in enumerate(((x[:2], y[:4]), (x[2:], y[4:]))):
        batch = {
            "text": torch.zeros(len(captions), 3, dtype=torch.int64),
            "text_owner": owners[number],
            "match_id": torch.tensor([10, 11]) + 2 * number,
        }
        embedded.add(batch, pictures, captions)
    assert torch.cat(embedded.text_ids).tolist() == [10, 11, 11, 11, 12, 12, 13]
    assert torch.cat(embedded.first_texts).tolist() == [0, 1, 4, 6]
    (images, texts, ids), *others = embedded.loss_groups(4)
    assert not others
    pairs = {10: 0, 11: 1, 12: 4, 13: 6}
    for image, text, match in zip(images, texts, ids.tolist(), strict=True):
        assert torch.equal(image, x[match - 10].float())
        assert torch.equal(text, y[pairs[match]].float())
    assert [len(group[0]) for group in embedded.loss_groups(3)] == [3]  # the fourth does not fill a group
    assert [len(group[0]) for group in embedded.loss_groups(9)] == [4]


def test_tests_report_each_set_with_exact_chance_levels(tmp_path):
    task = ContrastiveTask(tiny_network())
    data = PictogramDataModule(global_batch_size=64)
    logged = {}
    for metrics in quiet_trainer(tmp_path).test(task, data, verbose=False):
        logged |= metrics
    assert set(task.evaluations) == {"seen_concepts", "unseen_concepts"}
    for name, evaluation in task.evaluations.items():
        metric = evaluation.metrics["t2i_recall@5"]
        assert logged[f"test/{name}/t2i_recall@5"] == pytest.approx(metric.value)
        # A few concepts share a name; each then has two right answers, and chance is a little above 5 / N.
        assert 5 / metric.count <= metric.chance < 5.2 / metric.count
        assert metric.low <= metric.value <= metric.high
        assert len(evaluation.examples) == 12
    assert task.evaluations["seen_concepts"].metrics["t2i_recall@1"].count >= 1000


def test_a_softmax_run_trains_and_has_no_bias(tmp_path):
    optimizer = partial(torch.optim.AdamW, lr=3e-3)
    task = ContrastiveTask(tiny_network(init_bias=None), loss="softmax", optimizer=optimizer)
    recorder = Recorder()
    data = PictogramDataModule(global_batch_size=64)
    quiet_trainer(tmp_path, max_steps=60, overfit_batches=1, callbacks=[recorder]).fit(task, data)
    # Untrained cosines of spread 1/4 (16 dimensions) times t = 10 put log-sum-exp some 3 above log(64).
    assert math.log(64) < recorder.losses[0] < math.log(64) + 5
    assert max(recorder.losses[-5:]) < math.log(64) - 0.1  # below it something is learnt
    with pytest.raises(ValueError, match=r"softmax loss has no bias.*init_bias: null"):
        ContrastiveTask(tiny_network(), loss="softmax")


def test_auto_bias_knows_the_global_batch(tmp_path):
    task = ContrastiveTask(
        tiny_network(init_bias="auto"), schedule=Schedule(0), rules=[GroupRule("bias$", freeze=True)]
    )
    quiet_trainer(tmp_path, max_steps=1).fit(task, PictogramDataModule(global_batch_size=100))
    assert task.network.bias.item() == pytest.approx(-math.log(99))


def test_accumulation_is_refused_with_its_price(tmp_path):
    data = PictogramDataModule(global_batch_size=64)
    trainer = quiet_trainer(tmp_path, max_steps=1, accumulate_grad_batches=64)
    with pytest.raises(ValueError, match=r"negatives per image stay 63, not 4095.*global_batch_size: 4096.*: 64`"):
        trainer.fit(ContrastiveTask(tiny_network(), schedule=Schedule(0)), data)
    trainer = quiet_trainer(tmp_path, max_steps=1, accumulate_grad_batches=2)
    trainer.fit(ContrastiveTask(tiny_network(), schedule=Schedule(0), allow_accumulation=True), data)


def test_micro_batches_train_like_the_whole_batch(tmp_path):
    """Slices of 8 of a batch of 64: the loss sees all 64, and five SGD steps end at the same weights."""
    weights = {}
    for micro in (None, 8):
        optimizer = partial(torch.optim.SGD, lr=0.05)
        task = ContrastiveTask(tiny_network(micro_batch_size=micro), optimizer=optimizer, schedule=Schedule(0))
        quiet_trainer(tmp_path, max_steps=5).fit(task, PictogramDataModule(global_batch_size=64))
        weights[micro] = torch.cat([p.detach().flatten() for p in task.network.parameters()])
    torch.testing.assert_close(weights[8], weights[None], rtol=0, atol=1e-6)  # order of summation only


@pytest.mark.skipif(find_spec("triton") is None, reason="without Triton")
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_a_fused_loss_trains_like_an_eager_one(loss, tmp_path):
    """Five SGD steps with matching captions in the batch end at the same weights, whichever code formed the tiles."""
    weights = {}
    for backend in ("eager", "triton"):
        network = tiny_network(init_bias=-10.0 if loss == "sigmoid" else None)
        optimizer = partial(torch.optim.SGD, lr=0.05)
        task = ContrastiveTask(network, loss=loss, backend=backend, optimizer=optimizer, schedule=Schedule(0))
        quiet_trainer(tmp_path, max_steps=5).fit(task, PictogramDataModule(global_batch_size=64))
        weights[backend] = torch.cat([p.detach().flatten() for p in task.network.parameters()])
    torch.testing.assert_close(weights["triton"], weights["eager"], rtol=0, atol=1e-6)  # rounding only
    assert not torch.equal(weights["triton"], weights["eager"])  # it was other code


class Logged(Callback):
    """Keeps what is logged at every step."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def test_a_run_in_double_precision_resumes_to_the_bit(tmp_path):
    """Lightning makes doubles of the weights after it has loaded them, which rounds those of a checkpoint."""

    def run(steps, **resume):
        sgd = partial(torch.optim.SGD, lr=0.01)
        task = ContrastiveTask(tiny_network(), optimizer=sgd, schedule=Schedule(kind="constant"))
        trainer = quiet_trainer(tmp_path, max_steps=steps, precision="64-true")
        trainer.fit(task, PictogramDataModule(global_batch_size=8), weights_only=True, **resume)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return task.state_dict()

    run(2)
    whole, resumed = run(4), run(4, ckpt_path=tmp_path / "2.ckpt")
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("kind", ["random", "hard", "easy"])
def test_training_masks_negatives_and_validation_does_not(tmp_path, kind):
    """Each step's loss is that of the sorted dense matrix, with another random mask at every step."""
    rule, recorder, logged = Negatives(kind, 5, seed=2), Recorder(), Logged()
    optimizer = partial(torch.optim.SGD, lr=0.0)
    task = ContrastiveTask(tiny_network(), negatives=rule, match="none", optimizer=optimizer)
    data = PictogramDataModule(global_batch_size=48)
    trainer = quiet_trainer(tmp_path, max_steps=2, log_every_n_steps=1, callbacks=[recorder, logged])
    trainer.fit(task, data)
    network = tiny_network().train()
    for step, batch in enumerate(recorder.batches):
        with torch.no_grad():
            x, y = (value.double() for value in network(*batch))
        weights, _ = masked_weights((10 * x @ y.T - 10).tolist(), kind, 5, seed=2, step=step)
        expected, _ = sigmoid_loss_loops(x, y, math.log(10), -10.0, weights=weights)
        assert recorder.losses[step] == pytest.approx(expected["loss"], rel=1e-6)
        assert logged.values[step]["train/pairs_seen"] == (step + 1) * 48 * 6
        assert logged.values[step]["train/loss_per_pair"] == pytest.approx(expected["loss"] / 6, rel=1e-6)

    images, texts = (value.float() for value in unit_pairs(48, 16))
    plain = task.loss(images, texts, None)
    assert torch.equal(plain, ContrastiveTask(task.network).loss(images, texts, None))
    assert task.loss(images, texts, None, step=0) < plain


def test_masks_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"belong to the sigmoid loss, got Negatives.*`model.init_args.loss: sigmoid`"):
        ContrastiveTask(tiny_network(init_bias=None), loss="softmax", negatives=Negatives("hard", 4))
    trainer = quiet_trainer(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match="at most 63, all that a global batch of 64 has"):
        trainer.fit(
            ContrastiveTask(tiny_network(), negatives=Negatives("hard", 64)), PictogramDataModule(global_batch_size=64)
        )
