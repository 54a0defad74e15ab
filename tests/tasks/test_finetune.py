"""Fine-tuning: what is trained and when, what is logged, what is refused."""

import re
import sys

import pytest
import torch
from finetuning import STEPS, Weights, encoder, pictures, sgd, task, trainer, two_tower
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.nn import functional
from torchmetrics.functional.classification import multilabel_average_precision

from siglightning.callbacks import SampleWriter
from siglightning.data import PictogramDataModule
from siglightning.evaluation.collected import CollectedSet
from siglightning.losses.classification import ClassificationLoss
from siglightning.models import ImageEncoder, TowerConfig
from siglightning.models.layers import tower_layers
from siglightning.models.lora import Lora, is_adapter
from siglightning.optim import GroupRule, Schedule
from siglightning.runtime.checkpoint import AtomicCheckpointIO
from siglightning.runtime.run_checkpoint import RunCheckpoint
from siglightning.tasks import FineTuneTask
from siglightning.tasks.objective import Objective
from siglightning.tasks.unfreezing import LastBlocks, first_epochs, still_frozen

HEAD = {"head.weight", "head.bias"}


def fit(folder, trained, epochs=2, data=None, **kwargs):
    witness = Weights()
    module = trained if isinstance(trained, FineTuneTask) else task(train=trained)
    runner = trainer(folder, witness, epochs=epochs, **kwargs)
    runner.fit(module, data or pictures())
    return module, witness, runner


def parts(tower, numbers):
    layers = tower_layers(tower)
    names = {name for name, _ in tower.named_parameters() if layers.number(name) in numbers}
    return {f"network.image_tower.{name}" for name in names}


def trained_parts(tower, last_n):
    tail = tower_layers(tower).tail
    return parts(tower, range(tail - last_n, tail + 1))


@pytest.mark.parametrize(("trained", "last_n"), [("linear", None), (LastBlocks(2), 2), (LastBlocks(0), 0), ("full", 8)])
def test_what_is_trained_changes_and_nothing_else(tmp_path, trained, last_n):
    module, witness, _ = fit(tmp_path, trained)
    expected = HEAD | (trained_parts(module.network.image_tower, last_n) if last_n is not None else set())
    # The first step of a classifier near zero may leave a bias of the tower within rounding of where it was.
    assert set.union(*(witness.changed(step) for step in range(2 * STEPS))) == expected
    assert {name for name, p in module.named_parameters() if p.requires_grad} == expected


def test_frozen_parts_stay_in_evaluation_mode_and_the_rest_does_not(tmp_path):
    """Each step, also after a validation and an evaluation have come between."""
    module, witness, _ = fit(tmp_path, LastBlocks(2), val_check_interval=2)
    layers = tower_layers(module.network.image_tower)
    for training in witness.training:
        numbers = {layers.number(name) for name in training} - {None}
        assert numbers == {layers.tail - 2, layers.tail - 1, layers.tail}
        assert any(name.endswith("dropout") for name in training)


def test_stages_begin_in_their_epoch(tmp_path):
    stages = [LastBlocks(1), LastBlocks(2, from_epoch=1), LastBlocks(4, from_epoch=3)]
    module, witness, _ = fit(tmp_path, stages, epochs=4)
    tower = module.network.image_tower
    for epoch, last_n in enumerate([1, 2, 2, 4]):
        steps = range(epoch * STEPS, (epoch + 1) * STEPS)
        assert set.union(*(witness.changed(step) for step in steps)) == HEAD | trained_parts(tower, last_n)
        layers = tower_layers(tower)
        for step in steps:
            numbers = {layers.number(name) for name in witness.training[step]} - {None}
            assert numbers == set(range(layers.tail - last_n, layers.tail + 1))


def test_a_stage_begins_without_momentum(tmp_path):
    """As if the optimizer had met its weights in that epoch first: their change is -lr times the gradient alone."""
    seen = {}

    class Gradient(Weights):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            # Callbacks come before the module's own hook, which drops what is not yet trained.
            seen[trainer.global_step] = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    witness = Gradient()
    module = task(train=[LastBlocks(1), LastBlocks(2, from_epoch=1)])
    trainer(tmp_path, witness).fit(module, pictures())
    tower = module.network.image_tower
    new = trained_parts(tower, 2) - trained_parts(tower, 1)
    for name in new:
        change = witness.after[STEPS + 1][name] - witness.after[STEPS][name]
        # fp32 roundings of weights of order 1, and of a rate of 0.1
        torch.testing.assert_close(change, -0.1 * seen[STEPS][name], rtol=1e-4, atol=2e-7)


def test_the_gradient_norm_is_that_of_what_is_trained(tmp_path):
    """Clipping must not see what the optimizer does not."""
    logged = {}

    class Norm(Weights):
        def on_before_zero_grad(self, trainer, module, optimizer):
            gradients = [p.grad for p in module.parameters() if p.grad is not None]
            if gradients:
                logged[trainer.global_step] = torch.stack([g.norm() for g in gradients]).norm().item()

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.metrics.append(trainer.callback_metrics["train/grad_norm"].item())

    witness = Norm()
    module = task(train=[LastBlocks(1), LastBlocks(2, from_epoch=1)])
    trainer(tmp_path, witness).fit(module, pictures())
    steps = [1, 2, 4, 5]  # a validation, as after the third, clears gradients
    assert [witness.metrics[step - 1] for step in steps] == pytest.approx([logged[step] for step in steps], rel=1e-5)


def test_steps_equal_a_loop_by_hand(tmp_path):
    """Cross entropy of a linear layer on the frozen tower's features, with SGD and momentum."""
    data, module = pictures(), task()
    batches = []

    class Batches(Weights):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            batches.append({"image": batch["image"].clone(), "label": batch["label"].clone()})

    witness = Batches()
    trainer(tmp_path, witness).fit(module, data)
    network = encoder().eval()
    weight, bias = (witness.after[0][name].double() for name in ("head.weight", "head.bias"))
    assert weight.std() == pytest.approx(0.01, rel=0.2)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for step, batch in enumerate(batches):
        weight.requires_grad_(), bias.requires_grad_()
        with torch.no_grad():
            features = network.image_features(batch["image"]).double()
        loss = 0.0
        for row, label in zip(features, batch["label"].tolist(), strict=True):
            logits = weight @ row + bias
            loss = loss + torch.logsumexp(logits, 0) - logits[label]
        gradients = torch.autograd.grad(loss / len(features), (weight, bias))
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        weight, bias = weight.detach() - 0.1 * velocity[0], bias.detach() - 0.1 * velocity[1]
        # fp32 against fp64 over six steps
        torch.testing.assert_close(witness.after[step + 1]["head.weight"].double(), weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(witness.after[step + 1]["head.bias"].double(), bias, rtol=1e-4, atol=1e-6)
        assert witness.metrics[step]["train/loss"] == pytest.approx(loss.item() / len(features), rel=1e-5)


def test_epoch_means_and_validation_are_those_of_a_second_look(tmp_path):
    data, (module, witness, runner) = pictures(), fit(tmp_path, LastBlocks(1))
    means = [sum(row[key] for row in witness.metrics[STEPS:]) / STEPS for key in ("train/loss", "train/acc")]
    metrics = {name: value.item() for name, value in runner.callback_metrics.items()}
    assert [metrics["train/epoch_loss"], metrics["train/epoch_acc"]] == pytest.approx(means, rel=1e-6)
    data.input_spec = module.input_spec
    data.setup()
    module.eval()
    losses, right = [], 0
    for number, batch in enumerate(data.val_dataloader()):
        if number == 3:
            break
        with torch.no_grad():
            logits = module.head(module.network.image_features(batch["image"]))
        losses += functional.cross_entropy(logits, batch["label"], reduction="none").tolist()
        right += int((logits.argmax(1) == batch["label"]).sum())
    assert metrics["val/loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metrics["val/acc"] == pytest.approx(right / len(losses))
    assert list(module.predictions) == ["val"]
    assert len(module.predictions["val"].ids) == len(losses)


def test_the_dual_loss_is_the_weighted_sum_of_its_parts(tmp_path):
    """Against a dense sum over pairs, in which captions of one subject match (the A-CLIP report, section 3.3)."""
    module, expected = task(two_tower(), train="full", objective=Objective(0.5, 2.0)), []
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0

    class Parts(Weights):
        @torch.no_grad()
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            network = module.network
            images, texts = network.encode_image(batch["image"]), network.encode_text(batch["text"])
            signs = torch.where(batch["match_id"][:, None] == batch["match_id"][None], 1.0, -1.0)
            logits = network.log_scale.exp() * images @ texts.T + network.bias
            contrastive = -functional.logsigmoid(signs * logits).sum() / len(images)
            logits = module.head(network.image_features(batch["image"]))
            expected.append((functional.cross_entropy(logits, batch["label"]).item(), contrastive.item()))

    witness = Parts()
    trainer(tmp_path, witness).fit(module, pictures())
    for row, (classification, contrastive) in zip(witness.metrics, expected, strict=True):
        # fp32 sums in another order
        assert row["train/classification_loss"] == pytest.approx(classification, rel=1e-5)
        assert row["train/contrastive_loss"] == pytest.approx(contrastive, rel=1e-5)
        assert row["train/loss"] == pytest.approx(0.5 * classification + 2 * contrastive, rel=1e-5)
    changed = set.union(*(witness.changed(step) for step in range(2 * STEPS)))
    assert {"network.log_scale", "network.bias", "network.image_projection.weight"} < changed


def test_slices_are_the_whole_batch(tmp_path):
    """The A-CLIP report's 64 slices of 64 pictures, on a smaller scale: the weights of one undivided batch."""
    runs = []
    for micro in (None, 4):
        network = two_tower(micro_batch_size=micro)
        for layer in network.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        module = task(network, train=LastBlocks(2), objective=Objective(1.0, 1.0))
        runs.append(fit(tmp_path / str(micro), module)[1].after[-1])
    for name, weights in runs[0].items():
        # fp32 sums of three slices instead of one
        torch.testing.assert_close(runs[1][name], weights, rtol=1e-4, atol=1e-6)


def test_adapters_train_beside_the_classifier(tmp_path):
    tower = TowerConfig(
        "timm:vit_tiny_patch16_224",
        kwargs={"img_size": 64, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2},
    )
    torch.manual_seed(0)
    module = task(ImageEncoder(tower, image_size=64, lora=Lora(rank=2)))
    _, witness, _ = fit(tmp_path, module)
    changed = set.union(*(witness.changed(step) for step in range(2 * STEPS)))
    assert changed == HEAD | {name for name, _ in module.named_parameters() if is_adapter(name)}


class Bound:
    """What the command line makes of `optimizer`: it leads to open files, which cannot be copied."""

    def __init__(self):
        self.file = sys.stdin

    def __call__(self, params):
        return sgd(params)


def test_averaged_weights_are_validated_and_kept_as_the_best(tmp_path):
    """Lightning's own callback: with decay 0 the average is the newest weights, with 1 the first ones."""
    outcomes = {}
    for decay in (0.0, 0.5, 1.0):
        module = FineTuneTask(encoder(), LastBlocks(1), optimizer=Bound(), schedule=Schedule(kind="constant"))
        average = EMAWeightAveraging(decay=decay, update_every_n_steps=1)
        folder = tmp_path / str(decay)
        runner = trainer(folder, average, RunCheckpoint(), epochs=1, plugins=[AtomicCheckpointIO()])
        with pytest.warns(UserWarning, match="overrides the configure_model"):
            runner.fit(module, pictures())
        outcomes[decay] = runner.callback_metrics["val/loss"].item()
        (best,) = (folder / "checkpoints").glob("best-*.ckpt")
        kept = FineTuneTask.load_from_checkpoint(best, network=encoder(), train=LastBlocks(1))
        again = trainer(tmp_path / "again")
        again.validate(kept, pictures(), verbose=False)
        assert again.callback_metrics["val/loss"].item() == pytest.approx(outcomes[decay], rel=1e-6)
    plain = fit(tmp_path / "plain", LastBlocks(1), epochs=1)[2].callback_metrics["val/loss"].item()
    assert outcomes[0.0] == pytest.approx(plain, rel=1e-5)
    assert len(set(outcomes.values())) == 3


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_half_precision_trains(tmp_path, precision):
    module, witness, runner = fit(tmp_path, LastBlocks(2), precision=precision)
    assert all(torch.isfinite(weights).all() for weights in witness.after[-1].values())
    full = fit(tmp_path / "full", LastBlocks(2))[2].callback_metrics["val/loss"].item()
    # Logits of order .1 with 8 bits of mantissa
    assert runner.callback_metrics["val/loss"].item() == pytest.approx(full, rel=1e-2)
    assert module.head.weight.dtype == torch.float32


def test_the_best_weights_are_kept(tmp_path):
    """Those of the first epoch with the highest accuracy, not of the last."""
    data, accuracies = pictures(), []

    class Accuracy(Weights):
        def on_validation_end(self, trainer, module):
            accuracies.append((trainer.callback_metrics["val/acc"].item(), copied_head(module)))

    runner = trainer(tmp_path, Accuracy(), RunCheckpoint(), epochs=4, plugins=[AtomicCheckpointIO()])
    runner.fit(task(train="full"), data)
    best = max(range(4), key=lambda epoch: (accuracies[epoch][0], -epoch))
    (path,) = (tmp_path / "checkpoints").glob("best-*.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert path.name == f"best-{(best + 1) * STEPS:08d}.ckpt"
    assert torch.equal(checkpoint["state_dict"]["head.weight"], accuracies[best][1])
    assert checkpoint["class_names"] == data.class_names
    assert "optimizer_states" not in checkpoint


def copied_head(module):
    return module.head.weight.detach().clone()


def test_the_table_of_groups_tells_stages_and_rates(tmp_path, caplog):
    with caplog.at_level("INFO"):
        rules = [GroupRule(r"^head\.", lr_mult=10)]
        fit(tmp_path, task(train=[LastBlocks(1), LastBlocks(2, from_epoch=1)], rules=rules), epochs=1)
    lines = [re.split(r"  +", line.strip()) for record in caplog.records for line in record.getMessage().splitlines()]
    by_name = {line[0]: line[1:] for line in lines if len(line) == 6}
    assert by_name["image tower"][2:] == ["0.1", "0", "trained"]
    assert by_name["image tower from epoch 1"][2:] == ["0.1", "0", "trained"]
    assert by_name["image tower (frozen)"][2:] == ["-", "-", "frozen"]
    assert by_name[r"^head\."][2:] == ["1", "0", "trained"]


def test_losses_are_chosen_by_name(tmp_path):
    module = task(loss=ClassificationLoss("an_ls", label_smoothing=0.2))
    _, _, runner = fit(tmp_path, module)
    predictions = module.predictions["val"]
    one_hot = functional.one_hot(predictions.labels, len(predictions.class_names)).double()
    targets = one_hot * 0.8 + 0.1
    expected = functional.binary_cross_entropy_with_logits(predictions.logits.double(), targets)
    assert runner.callback_metrics["val/loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_checkpoint_brings_its_classes(tmp_path):
    """Where the data have none, as pictures to be classified have not."""
    module, _, runner = fit(tmp_path, "linear")
    module._guard.skipped = 3
    runner.save_checkpoint(tmp_path / "x.ckpt")
    loaded = FineTuneTask.load_from_checkpoint(tmp_path / "x.ckpt", network=encoder())
    assert loaded.class_names == module.class_names
    assert loaded._guard.skipped == 3
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    logits = loaded.eval().predict_step({"image": image, "id": ["a", "b"]}, 0)["logits"]
    assert torch.equal(logits, module.eval().predict_step({"image": image}, 0)["logits"])


def changed_checkpoint(tmp_path, **changes):
    _, _, runner = fit(tmp_path, "linear", epochs=1)
    runner.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    for key, change in changes.items():
        checkpoint[key] = change(checkpoint[key])
    torch.save(checkpoint, tmp_path / "y.ckpt")
    return tmp_path / "y.ckpt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names[::-1], "Expected the classes in the order that the classifier has"),
        (lambda names: [*names[:-1], "dragons"], r"only one of both has .*dragons"),
        (lambda names: [], "without. Weights of a pre-trained"),
    ],
)
def test_a_checkpoint_of_other_classes_is_refused(tmp_path, change, message):
    path = changed_checkpoint(tmp_path, class_names=change)
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).test(task(), datamodule=pictures(), ckpt_path=path, weights_only=True)


def test_a_checkpoint_of_another_tower_is_refused(tmp_path):
    path = changed_checkpoint(tmp_path, state_dict=lambda state: {k: v for k, v in state.items() if "norm" not in k})
    with pytest.raises(ValueError, match=r"checkpoint of another model: network.image_tower.*missing"):
        trainer(tmp_path).test(task(), datamodule=pictures(), ckpt_path=path, weights_only=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: task(num_classes=3), "Expected 3 classes, as `num_classes` says, got"),
        (lambda: task(train=LastBlocks(9)), "Expected last_n up to 8, the blocks of this tower, got 9"),
        (lambda: task(train=[LastBlocks(2), LastBlocks(1, 3)]), "begin at epoch 0 and rise in from_epoch and last_n"),
        (lambda: task(train=[LastBlocks(2, 1)]), "begin at epoch 0"),
        (lambda: task(objective=Objective(1, 1)), "needs a text tower, got ImageEncoder"),
        (lambda: Objective(0, 0), "one of them positive"),
        (lambda: Objective(-1, 2), "at least 0"),
        (lambda: task(encoder(freeze_image=True, lora=Lora())), "set `freeze_image: false`"),
        (lambda: task(encoder(micro_batch_size=5)), "12 samples cannot be cut into slices of 5"),
    ],
)
def test_impossible_settings_are_refused_before_training(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(make(), pictures())


def test_accumulation_is_refused_for_prompts_alone(tmp_path):
    with pytest.raises(ValueError, match="does not make the contrastive part see a larger batch"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(task(two_tower(), objective=Objective(1, 1)), pictures())
    trainer(tmp_path, accumulate_grad_batches=2).fit(task(), pictures())


def test_several_labels_a_picture_are_learnt_by_losses_that_ask_one_question_a_class(tmp_path):
    """Every number against torch's own loss and torchmetrics, the accuracy against a loop."""
    module = task(loss=ClassificationLoss("bce"))
    witness = Weights()
    runner = trainer(tmp_path, RunCheckpoint(), witness, epochs=2)
    runner.fit(module, pictures(targets="tags", min_tag_count=60))
    predictions, logged = module.predictions["val"], runner.callback_metrics
    logits, labels = predictions.logits, predictions.labels
    assert labels.shape == logits.shape
    assert labels.sum(1).max() > 1
    expected = functional.binary_cross_entropy_with_logits(logits.double(), labels.double())
    assert logged["val/loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    right = [labels[row, scores.index(max(scores))].item() for row, scores in enumerate(logits.tolist())]
    assert logged["val/acc"].item() == pytest.approx(sum(right) / len(right))
    has_positives = labels.sum(0) > 0
    theirs = multilabel_average_precision(
        logits[:, has_positives].sigmoid(), labels[:, has_positives].long(), int(has_positives.sum())
    )
    assert logged["val/mAP"].item() == pytest.approx(theirs.item(), abs=1e-5)  # fp32 sums of theirs
    assert 0 <= logged["train/epoch_acc"].item() <= 1
    assert witness.metrics[-1]["train/loss"] < witness.metrics[0]["train/loss"]
    (best,) = (tmp_path / "checkpoints").glob("best-*.ckpt")
    kept = torch.load(best, weights_only=True)
    assert kept["state_dict"].keys() == module.state_dict().keys()
    assert module.monitor == "val/mAP"
    tester = trainer(tmp_path, SampleWriter(num_samples=2))
    tester.test(module, pictures(targets="tags", min_tag_count=60), verbose=False)
    scores = module.label_scores(module.predictions["seen_concepts"])
    assert torch.equal(scores.passed, module.predictions["seen_concepts"].logits > 0)
    assert torch.equal(scores.truths, module.predictions["seen_concepts"].labels > 0)
    drawn = sorted(path.relative_to(tmp_path / "samples") for path in tmp_path.glob("samples/*/*/*.png"))
    assert [(path.parts[1], path.name) for path in drawn] == [
        (name, f"{number:02}.png") for name in ("seen_concepts", "unseen_concepts") for number in (1, 2)
    ]


@pytest.mark.parametrize(
    ("make", "what"),
    [(task, "the loss cross_entropy"), (lambda: prompted(ClassificationLoss("bce")), "`objective.contrastive`")],
)
def test_several_labels_are_refused_where_one_is_learnt(tmp_path, make, what):
    with pytest.raises(ValueError, match=f"{what} needs one class for each picture, but PictogramDataModule gives"):
        trainer(tmp_path).fit(make(), pictures(targets="tags"))


def prompted(loss):
    return task(two_tower(), objective=Objective(1, 1), loss=loss)


def test_a_picture_that_comes_twice_counts_once(tmp_path):
    """The data module puts the next picture in the place of one that it cannot read."""
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8)
    ids, labels = ["a", "b", "b", "c", "b", "d"], torch.tensor([0, 1, 1, 0, 2, 1])  # the last b has another label
    whole = CollectedSet()
    logits = torch.randn(6, 3)
    for rows in ([0, 1], [2, 3, 4], [5]):
        whole.add({"id": [ids[row] for row in rows], "label": labels[rows], "image": images[rows]}, logits[rows])
    found = whole.gathered(None)
    kept = [0, 1, 3, 4, 5]
    assert (found.ids, found.repeated) == ([ids[row] for row in kept], 1)
    predictions = found.predictions(["x", "y", "z"])
    assert torch.equal(predictions.logits, logits[kept])
    assert torch.equal(predictions.labels, labels[kept])
    for row, picture in predictions.picture_of.items():
        assert torch.equal(picture, images[kept[row]])
    without = CollectedSet()
    without.add({"label": labels, "image": images}, logits)  # nobody knows which they are
    assert without.gathered(None) is without


def test_batchnorm_and_slices_do_not_go_together(tmp_path):
    def network(micro):
        return ImageEncoder(TowerConfig("timm:tf_efficientnet_lite0"), image_size=32, micro_batch_size=micro)

    with pytest.raises(ValueError, match="the tower trains BatchNorm"):
        trainer(tmp_path).fit(task(network(4), train=LastBlocks(1)), pictures())
    trainer(tmp_path, epochs=1).fit(task(network(4)), pictures())


def test_frozen_modules_are_found_for_every_epoch():
    """A convolutional tower with BatchNorm: statistics of what is frozen must not move either."""
    tower = encoder().image_tower
    begins = first_epochs(tower, [LastBlocks(1), LastBlocks(2, 5)])
    layers = tower_layers(tower)
    for epoch, last_n in ((0, 1), (4, 1), (5, 2), (99, 2)):
        frozen = {id(module) for module in still_frozen(tower, begins, epoch)}
        for name, module in tower.named_modules():
            number = layers.number(name)
            if number is not None:
                assert (id(module) in frozen) == (number < layers.tail - last_n), name


def test_what_a_rule_freezes_stays_in_evaluation_mode(tmp_path):
    """Statistics of BatchNorm in a tower that a rule freezes must not move."""
    network = ImageEncoder(TowerConfig("timm:tf_efficientnet_lite0"), image_size=32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module = task(network, train="full", rules=[GroupRule("^network", freeze=True)])
    trainer(tmp_path, epochs=1).fit(module, pictures())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not module._trains_batchnorm()


def test_a_classifier_without_classes_is_refused_before_the_first_picture(tmp_path):
    module = task()
    with pytest.raises(ValueError, match="The classifier has no classes yet: give a checkpoint"):
        module.on_predict_start()


def test_wrong_labels_are_refused_before_they_leave_for_a_device(tmp_path):
    """There they would be checked by nobody: to look at them, the host would have to wait."""

    class Left(Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            raise AssertionError("the batch is on the device")

    class Wrong(PictogramDataModule):
        def train_dataloader(self):
            loader = super().train_dataloader()
            collate = loader.collate_fn
            loader.collate_fn = lambda samples: collate(samples) | {"label": torch.full((len(samples),), 99)}
            return loader

    with pytest.raises(ValueError, match=r"labels from 0 to .*got 99 in row 0"):
        trainer(tmp_path, Left(), epochs=1).fit(task(), Wrong(global_batch_size=12))
