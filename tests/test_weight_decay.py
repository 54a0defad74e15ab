"""What a step takes off a weight in each convention, and which weights of two towers it is taken off."""

from functools import partial

import pytest
import torch
from lion_pytorch import Lion
from timm.optim import AdafactorBigVision
from torch import nn

from siglightning.models import TowerConfig, TwoTower
from siglightning.models.lora import Lora
from siglightning.models.saliency import SaliencyMasking
from siglightning.optim import GroupRule, Schedule, build_optimizer, build_scheduler, describe_groups, parameter_groups
from siglightning.tasks import ContrastiveTask

LR, DECAY, LR_MULT, DECAY_MULT, FACTOR = 0.2, 0.03, 0.1, 0.5, 0.25  # the last one of the schedule
ADAFACTOR = partial(AdafactorBigVision, lr=LR, weight_decay=DECAY, momentum_dtype="float32")
ADAMW, LION = partial(torch.optim.AdamW, lr=LR, weight_decay=DECAY), partial(Lion, lr=LR, weight_decay=DECAY)
TORCH = FACTOR * LR * LR_MULT * DECAY * DECAY_MULT
INDEPENDENT = FACTOR * DECAY * DECAY_MULT
# What the head of siglightning/optim.py says.
SUBTRACTED = {
    "adamw": (ADAMW, "torch", TORCH),
    "lion": (LION, "torch", TORCH),
    "adafactor": (ADAFACTOR, "torch", TORCH),
    "adamw, independent": (ADAMW, "independent", INDEPENDENT),
    "lion, independent": (LION, "independent", INDEPENDENT),
    "adafactor, independent": (ADAFACTOR, "independent", INDEPENDENT),
    "unscaled": (partial(ADAFACTOR, unscaled_wd=True), "torch", DECAY * DECAY_MULT),
    "unscaled, corrected": (
        partial(ADAFACTOR, unscaled_wd=True, corrected_weight_decay=True),
        "torch",
        FACTOR * LR_MULT * DECAY * DECAY_MULT,
    ),
    "lion, decoupled": (
        partial(LION, decoupled_weight_decay=True),
        "torch",
        FACTOR * LR_MULT * DECAY * DECAY_MULT,
    ),
}


@pytest.mark.parametrize("name", SUBTRACTED)
def test_the_share_of_a_weight_that_a_step_takes_off(name):
    """With a gradient of zero all three move by their decay alone."""
    factory, convention, share = SUBTRACTED[name]
    torch.manual_seed(0)
    module = nn.Linear(40, 36, bias=False).double()
    before = module.weight.detach().clone()
    rules = [GroupRule("weight", LR_MULT, DECAY_MULT)]
    optimizer = build_optimizer(module, factory, rules, weight_decay_convention=convention)
    build_scheduler(optimizer, Schedule(warmup_steps=4), total_steps=8)
    module.weight.grad = torch.zeros_like(module.weight)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), before * (1 - share), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("factory", "setting"),
    [
        (partial(ADAFACTOR, unscaled_wd=True), "unscaled_wd"),
        (partial(ADAFACTOR, corrected_weight_decay=True), "corrected_weight_decay"),
        (partial(torch.optim.AdamW, lr=LR), None),
    ],
)
def test_two_conventions_at_once_are_refused(factory, setting):
    if setting is None:
        build_optimizer(nn.Linear(2, 2), factory, weight_decay_convention="independent")
        return
    with pytest.raises(ValueError, match=rf"itself \({setting}\); use that or"):
        build_optimizer(nn.Linear(2, 2), factory, weight_decay_convention="independent")


VIT = TowerConfig(
    "timm:vit_tiny_patch16_224", kwargs={"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
)
TEXT = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2})
BOTTLENECK = TowerConfig(TEXT.name, kwargs=TEXT.kwargs | {"bottleneck": 4, "pooling": "map"})
MASKED = SaliencyMasking("random", 0.5)
NETWORKS = {
    "plain": {},
    "the image tower's own space": {"embed_dim": None},
    "without b": {"init_bias": None},
    "bottleneck": {"text_tower": BOTTLENECK},
    "locked image tower": {"freeze_image": True},
    "locked text tower": {"freeze_text": True},
    "adapters": {"lora": Lora(rank=2)},
    "slices and masks": {"micro_batch_size": 2, "saliency": MASKED},
}
PRETRAINED = GroupRule(r"^network\.image_tower", lr_mult=0.1, weight_decay_mult=0.0)  # SigLIP paper, section 4.5
ABLATED = GroupRule(r"^network\.image_tower", lr_mult=0.1)  # the same with weight decay everywhere (Figure 4)


def two_towers(**options):
    torch.manual_seed(0)
    options = {"text_tower": TEXT, "embed_dim": 12, "context_length": 8} | options
    return nn.ModuleDict({"network": TwoTower(VIT, **options)})


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rules", [[], [PRETRAINED], [ABLATED]], ids=["none", "4.5", "4.5 ablated"])
def test_every_parameter_of_two_towers_is_in_exactly_one_group(name, rules):
    module = two_towers(**NETWORKS[name])
    groups = parameter_groups(module, rules, scalar_lr_mult=3.0)
    listed = [key for group in groups for key in group.parameters]
    assert sorted(listed) == sorted(key for key, _ in module.named_parameters())
    optimizer = build_optimizer(module, ADAMW, rules, scalar_lr_mult=3.0)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    rows = describe_groups(groups, optimizer).splitlines()[1:]
    assert len(rows) == len(groups)
    told = sum(int(row.partition(group.name)[2].split()[0]) for row, group in zip(rows, groups, strict=True))
    assert told == len(listed)  # tensors


@pytest.mark.parametrize("factory", [ADAMW, LION, ADAFACTOR], ids=["adamw", "lion", "adafactor"])
@pytest.mark.parametrize(("rule", "image_decays"), [(PRETRAINED, False), (ABLATED, True)], ids=["4.5", "ablated"])
def test_an_unlocked_tower_at_a_tenth_of_the_rate(factory, rule, image_decays):
    """Only new matrices decay (or, in the ablation, all of them); rates are those of the paper's multiplier."""
    module = two_towers()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = build_optimizer(module, factory, [rule], weight_decay_convention="independent")
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in module.named_parameters():
        is_image = name.startswith("network.image_tower")
        assert rates[id(parameter)] == pytest.approx(LR * (0.1 if is_image else 1.0))
        decays = name.endswith("weight") and "norm" not in name and (image_decays or not is_image)
        expected = before[name] * (1 - DECAY) if decays else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=0)  # fp32


def test_the_task_hands_the_convention_on(capsys):
    network = two_towers()["network"]
    task = ContrastiveTask(network, optimizer=ADAMW, rules=[PRETRAINED], weight_decay_convention="independent")
    stand_in = {"max_steps": 10, "max_epochs": None, "loggers": [], "precision_plugin": None}
    task._trainer = type("Trainer", (), stand_in)()
    groups = task.configure_optimizers()["optimizer"].param_groups
    decays = {group["name"]: group["weight_decay"] for group in groups}
    assert decays == {
        f"{PRETRAINED.pattern} (no decay)": 0.0,
        "t' and b (no decay)": 0.0,
        "default": pytest.approx(DECAY / LR),
        "default (no decay)": 0.0,
    }
