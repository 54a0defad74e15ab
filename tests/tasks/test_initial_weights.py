"""A run begins with another one's weights: what is taken, resized, left out and refused, in numbers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from finetuning import pictures
from PIL import Image
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from siglightning.batch import InputSpec
from siglightning.models import ImageEncoder, TowerConfig, TwoTower
from siglightning.models.lora import Lora
from siglightning.runtime.checkpoint import AtomicCheckpointIO, DamagedCheckpointError
from siglightning.tasks import ContrastiveTask, FineTuneTask, begin_from

TEXT = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2})
TABLE = "image_tower.trunk.pos_embed"


def vit(side=32, patch=8, **kwargs):
    options = {"img_size": side, "patch_size": patch, "embed_dim": 16, "depth": 2, "num_heads": 2, **kwargs}
    return TowerConfig("timm:vit_tiny_patch16_224", kwargs=options)


def scrambled(module, seed):
    """Every weight random: initial ones are alike, or zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.eval()


def two_towers(side=32, patch=8, seed=0, text=TEXT, **kwargs):
    network = TwoTower(vit(side, patch), text, embed_dim=12, context_length=12, **kwargs)
    return scrambled(network, seed)


def encoder(side=32, seed=0, **kwargs):
    return scrambled(ImageEncoder(vit(side), **kwargs), seed)


def contrastive(*args, loss="sigmoid", **kwargs):
    return ContrastiveTask(two_towers(*args, **kwargs), loss=loss)


def classifier(names=("cat", "dog", "owl"), seed=0, network=None):
    """A task whose data have these classes, before anybody trains it."""
    task = FineTuneTask(network or encoder(seed=seed), seed=seed)
    tell(task, names)
    return task


def tell(task, names):
    """What Lightning does when the data are there."""
    task._trainer = SimpleNamespace(datamodule=SimpleNamespace(class_names=list(names)))
    task.configure_model()


def saved(task, folder, name="run/checkpoints/step-00000007.ckpt", **more):
    """A checkpoint as runs write them."""
    content = {"state_dict": task.state_dict(), "global_step": 7, "optimizer_states": [], **more}
    if isinstance(task, FineTuneTask):
        task.on_save_checkpoint(content)
    AtomicCheckpointIO().save_checkpoint(content, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def photographs():
    """Eight real pictograms of 32 pixels, uint8, and the ids of their captions."""
    data = pictures(eval_batch_size=8)
    data.input_spec = InputSpec(image_size=32, tokenizer=two_towers().tokenizer)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    return data.on_after_batch_transfer(batch, 0)


@torch.no_grad()
def test_embeddings_are_those_of_the_checkpoint_to_the_bit(tmp_path, photographs):
    before, task = contrastive(seed=0), contrastive(seed=1)
    begun = begin_from(task, saved(before, tmp_path))
    for one, other in zip(
        *(each.network(photographs["image"], photographs["text"]) for each in (before, task)), strict=True
    ):
        assert torch.equal(one, other)
    torch.testing.assert_close(task.state_dict(), before.state_dict(), rtol=0, atol=0)
    lines = "\n".join(begun.lines())
    assert f"t' = {before.network.log_scale.item():.5g}, b = {before.network.bias.item():.5g}" in lines
    assert "left out" not in lines
    assert "as built" not in lines
    assert sum(begun.taken.values()) == len(task.state_dict())


@torch.no_grad()
@pytest.mark.parametrize("side", [24, 48])
def test_the_next_resolution(tmp_path, photographs, side):
    """All weights stay but the table, resized plane by plane as pictures are; timm's own loader does the same."""
    before, task = contrastive(seed=0), contrastive(side, seed=1)
    begun = begin_from(task, saved(before, tmp_path))
    old, new = before.network.state_dict(), task.network.state_dict()
    assert {name for name in old if not (old[name].shape == new[name].shape and torch.equal(old[name], new[name]))} == {
        TABLE
    }
    grid = side // 8
    planes = np.moveaxis(old[TABLE][0, 1:].view(4, 4, -1).numpy(), 2, 0)
    expected = [np.asarray(Image.fromarray(plane).resize((grid, grid), Image.Resampling.BICUBIC)) for plane in planes]
    np.testing.assert_allclose(new[TABLE][0, 1:].view(grid, grid, -1).numpy(), np.stack(expected, 2), atol=2e-6)  # fp32
    assert torch.equal(new[TABLE][:, 0], old[TABLE][:, 0])
    assert begun.resized == [f"network.{TABLE}, 4 x 4 to {grid} x {grid} patches"]

    twin = encoder(side, seed=2)
    twin.image_tower.trunk.load_state_dict(
        checkpoint_filter_fn(before.network.image_tower.trunk.state_dict(), twin.image_tower.trunk)
    )
    images = nn.functional.interpolate(photographs["image"].float(), size=(side, side)).to(torch.uint8)
    assert torch.equal(task.network.image_features(images), twin.image_features(images))


@torch.no_grad()
def test_from_pairs_to_classes(tmp_path, photographs):
    """The image tower goes into a classifier; captions' side, t' and b stay behind, and it is said."""
    before = contrastive(seed=0)
    task = FineTuneTask(encoder(seed=1))
    begun = begin_from(task, saved(before, tmp_path))
    images = photographs["image"]
    assert torch.equal(task.network.image_features(images), before.network.image_features(images))
    assert list(begun.taken) == ["image tower"]
    text = [name for name in before.state_dict() if "text" in name or "projection" in name]
    assert begun.left_out == {"text side": len(text), "t'": 1, "b": 1}
    assert begun.as_built == {"classifier": 2}
    tell(task, ["cat", "dog"])
    assert task.head.out_features == 2


@torch.no_grad()
def test_from_classes_to_pairs(tmp_path, photographs):
    """The paper's pre-trained, unlocked tower (section 4.5): all of the captions' side is new."""
    before, task = classifier(seed=0), contrastive(seed=1)
    kept = {name: value.clone() for name, value in task.state_dict().items() if "image_tower" not in name}
    begun = begin_from(task, saved(before, tmp_path))
    images = photographs["image"]
    assert torch.equal(task.network.image_features(images), before.network.image_features(images))
    for name, value in kept.items():
        assert torch.equal(task.state_dict()[name], value), name
    assert begun.as_built.keys() == {"text side", "t'", "b"}
    assert begun.left_out == {"classifier": 2}


def test_from_one_loss_to_the_other(tmp_path):
    """The softmax loss has no b."""
    sigmoid, softmax = contrastive(seed=0), contrastive(seed=1, init_bias=None, loss="softmax")
    assert begin_from(softmax, saved(sigmoid, tmp_path)).left_out == {"b": 1}
    back = contrastive(seed=2)
    begun = begin_from(back, saved(softmax, tmp_path))
    assert (begun.as_built, begun.bias_by_rule) == ({}, True)
    assert any("b = -log(B - 1) of the batch" in line for line in begun.lines())
    back.network.set_auto_bias(9)  # as a task does once it knows its batch
    assert back.network.bias.item() == pytest.approx(-math.log(8))
    assert torch.equal(back.network.log_scale, sigmoid.network.log_scale)


def test_a_bias_that_was_learnt_is_not_matched_to_the_batch(tmp_path):
    path = saved(contrastive(seed=0), tmp_path)
    task = contrastive(seed=1, init_bias="auto")
    begin_from(task, path)
    learnt = task.network.bias.item()
    task.network.set_auto_bias(64)
    assert task.network.bias.item() == learnt
    untouched = contrastive(seed=1, init_bias="auto")
    untouched.network.set_auto_bias(64)
    assert untouched.network.bias.item() == pytest.approx(-np.log(63))


CLASSES = {
    "same": (("cat", "dog", "owl"), "taken: classifier, the same 3 classes"),
    "more": (("cat", "dog", "elk", "owl"), "classifier (3 classes there, 4 here; only one of both has 'elk')"),
    "another order": (("dog", "cat", "owl"), "classifier (3 classes there, 3 here; in another order)"),
}


@pytest.mark.parametrize("case", CLASSES)
@pytest.mark.parametrize("counted", [False, True])
def test_the_classifier_goes_with_its_classes(tmp_path, capsys, case, counted):
    """Whether its size was given, or the data tell it."""
    names, told = CLASSES[case]
    before = scrambled(classifier(seed=0), seed=5)
    task = FineTuneTask(encoder(seed=1), num_classes=len(names) if counted else None, seed=1)
    built = None if task.head is None else task.head.weight.clone()
    begin_from(task, saved(before, tmp_path))
    tell(task, names)
    assert told in capsys.readouterr().out
    assert task.head.out_features == len(names)
    was_taken = task.head.weight.shape == before.head.weight.shape and torch.equal(task.head.weight, before.head.weight)
    assert was_taken == (case == "same")
    assert built is None or torch.equal(task.head.weight, built) == (case != "same")
    trained = task.head.weight.detach().clone().add_(1)
    task.head.load_state_dict({"weight": trained, "bias": task.head.bias})
    tell(task, names)  # a second call, as for tests after training, must not take it back
    assert torch.equal(task.head.weight, trained)


@torch.no_grad()
def test_adapters_are_added_to_what_was_taken(tmp_path, photographs):
    before = classifier(seed=0)
    task = FineTuneTask(ImageEncoder(vit(), lora=Lora(rank=2)).eval())
    begun = begin_from(task, saved(before, tmp_path))
    images = photographs["image"]
    torch.testing.assert_close(  # a product with zeros is added
        task.network.image_features(images), before.network.image_features(images), rtol=0, atol=0
    )
    assert begun.as_built == {"adapters": sum("lora_" in name for name in task.state_dict())}
    with pytest.raises(ValueError, match=r"has adapters, the model has none\. Set the network's `lora`"):
        begin_from(classifier(seed=1), saved(task, tmp_path, "adapted.ckpt"))


def refused(task, path, message, error=ValueError):
    weights = {name: value.clone() for name, value in task.state_dict().items()}
    with pytest.raises(error, match=message) as caught:
        begin_from(task, path)
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(task.state_dict(), weights, rtol=0, atol=0)  # nothing was half loaded


def test_what_does_not_fit_is_refused_in_one_line(tmp_path):
    path = saved(contrastive(seed=0), tmp_path)
    refused(
        contrastive(side=64, patch=16),
        path,
        r"step-00000007.ckpt has patches of 8 pixels, the model of 16: position embeddings can be resized, patches "
        r"cannot. Take a tower with patches of 8 pixels",
    )
    deeper = ContrastiveTask(TwoTower(vit(depth=3), TEXT, embed_dim=12, context_length=12))
    refused(
        deeper, path, r"blocks\.2\.norm1\.weight is missing from the checkpoint; .*; and \d+ more\. Take the network"
    )
    wider = ContrastiveTask(TwoTower(vit(embed_dim=32), TEXT, embed_dim=12, context_length=12))
    refused(wider, path, r"cls_token is \[1, 1, 32\] in the model and \[1, 1, 16\] in the checkpoint")
    longer = ContrastiveTask(TwoTower(vit(), TEXT, embed_dim=12, context_length=16))
    refused(longer, path, r"text_tower.position_embedding is \[16, 16\] in the model and \[12, 16\] in the checkpoint")
    shallow = ContrastiveTask(TwoTower(vit(depth=1), TEXT, embed_dim=12, context_length=12))
    refused(shallow, path, r"blocks\.1\.norm1\.weight is unknown to the model")
    other_projection = ContrastiveTask(TwoTower(vit(), TEXT, context_length=12))  # captions into the tower's own space
    refused(other_projection, path, r"text_projection.weight is \[16, 16\].*image_projection.weight is unknown")


def test_what_no_part_explains_must_be_on_both_sides(tmp_path):
    """No image tower in the checkpoint, or weights that nobody knows."""
    task, path = contrastive(seed=0), tmp_path / "odd.ckpt"
    whole = task.state_dict()
    half = {name: value for name, value in whole.items() if "image_tower" not in name}
    AtomicCheckpointIO().save_checkpoint({"state_dict": half}, path)
    refused(contrastive(seed=1), path, r"image_tower\.trunk\.cls_token is missing from the checkpoint; .* more\. Take")
    AtomicCheckpointIO().save_checkpoint({"state_dict": whole | {"layer.weight": torch.zeros(2)}}, path)
    refused(contrastive(seed=1), path, "layer.weight is unknown to the model")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    task = contrastive()
    refused(task, tmp_path / "gone", "init_from expects a checkpoint file or a directory, got .*gone")
    refused(task, tmp_path, "is no checkpoint: expected config.json .* or the folder checkpoints of a run")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    refused(task, tmp_path / "empty", "which has none that is intact. Give the directory of a trained run")
    torch.save(task.state_dict(), tmp_path / "bare.pt")
    refused(task, tmp_path / "bare.pt", "is of no library that is known.*got network.bias")
    torch.save({"state_dict": task.state_dict(), "x": SimpleNamespace()}, tmp_path / "code.ckpt")
    refused(task, tmp_path / "code.ckpt", "holds objects that only running its code", DamagedCheckpointError)
    path = saved(task, tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    refused(task, path, "is truncated", DamagedCheckpointError)
    refused(task, tmp_path / "run", r"none that is intact \(.*is truncated")


def test_a_run_stands_for_its_best_weights_else_its_newest(tmp_path):
    newest, best = contrastive(seed=0), contrastive(seed=1)
    saved(newest, tmp_path, "run/checkpoints/step-00000009.ckpt", global_step=9)
    path = saved(best, tmp_path, "run/checkpoints/best-00000007.ckpt")
    task = contrastive(seed=2)
    assert begin_from(task, tmp_path / "run").checkpoint == path
    assert torch.equal(task.network.log_scale, best.network.log_scale)
    path.write_bytes(path.read_bytes()[:-100])
    assert begin_from(task, tmp_path / "run").global_step == 9
    assert torch.equal(task.network.log_scale, newest.network.log_scale)
