"""Parameter groups by rules, the learning rate over time, and what "weight decay" means in which library.

Weight decay. A step of PyTorch (AdamW) and lion-pytorch is ``p <- p - lr * (u + wd * p)``: the decay grows with the
learning rate, its schedule and its multipliers. The SigLIP paper and big_vision decay independently of the peak rate:
``p <- p - s * (lr * lr_mult * u + wd * wd_mult * p)`` with the schedule's factor ``s`` in [0, 1]. So an "independent"
decay of 1e-7 at a peak rate of 1e-4 is 1e-3 in PyTorch's convention; :func:`torch_weight_decay` translates, for each
group by its own rate, so that ``weight_decay_convention: independent`` is big_vision's formula for every optimizer that
multiplies its decay by the rate. Some offer conventions of their own. What a group with the multipliers ``lr_mult`` and
``wd_mult`` then subtracts for decay in a step, as a fraction of ``p``:

==============================================================  ===================================
AdamW, Lion, AdafactorBigVision, convention ``torch``           ``s * lr * lr_mult * wd * wd_mult``
the same, convention ``independent``                            ``s * wd * wd_mult``
``AdafactorBigVision(unscaled_wd=True)``                        ``wd * wd_mult`` (no schedule)
the same with ``corrected_weight_decay=True``                   ``s * lr_mult * wd * wd_mult``
``Lion(decoupled_weight_decay=True)``                           ``s * lr_mult * wd * wd_mult``
==============================================================  ===================================

The last three know one rate for all groups and cannot be combined with ``independent``.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

OptimizerFactory = Callable[[Any], Optimizer]
WeightDecayConvention = Literal["torch", "independent"]

SCALARS = r"^(.*\.)?network\.(log_scale|bias)$|^(log_scale|bias)$"
NO_DECAY = r"(^|[._])bias$|pos(ition(al)?)?_?embed|relative_position|(cls|class|reg|dist)_(token|embed)"


@dataclass(frozen=True)
class GroupRule:
    """What holds for the parameters whose names a pattern finds. The first rule that matches a parameter wins.

    Args:
        pattern: regular expression, searched anywhere in the parameter's name; ``^image_tower`` is the image tower.
        lr_mult: factor on the learning rate.
        weight_decay_mult: factor on the weight decay. Norms, biases, tokens and position embeddings never decay.
        freeze: train none of them.

    Raises:
        ValueError: a pattern that is no regular expression, or a negative factor.
    """

    pattern: str
    lr_mult: float = 1.0
    weight_decay_mult: float = 1.0
    freeze: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"Rule pattern {self.pattern!r} is no regular expression: {error}.") from error
        if min(self.lr_mult, self.weight_decay_mult) < 0:
            raise ValueError(f"Rule {self.pattern!r}: multipliers must not be negative; use `freeze: true` to freeze.")


@dataclass
class ParameterGroup:
    """Parameters that share their learning rate and weight decay.

    Attributes:
        name: the rule's pattern or ``default``, with ``(no decay)`` where it applies.
        parameters: by name.
        lr_mult: factor on the learning rate.
        weight_decay_mult: factor on the weight decay.
        frozen: whether they stay out of the optimizer.
    """

    name: str
    lr_mult: float
    weight_decay_mult: float
    frozen: bool
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)

    @property
    def num_parameters(self) -> int:
        """Numbers in all its tensors."""
        return sum(p.numel() for p in self.parameters.values())


def parameter_groups(
    module: nn.Module,
    rules: Sequence[GroupRule] = (),
    scalar_lr_mult: float = 1.0,
    parts: Mapping[str, str] | None = None,
) -> list[ParameterGroup]:
    """Sort every parameter into exactly one group.

    After the given rules come two that match all that is left: t' and b (no decay), and the default. In each group,
    parameters with fewer than two dimensions, norms, biases, class tokens and position embeddings do not decay.
    Parameters that do not require gradients are listed as frozen, whatever their rule. Tied parameters count once,
    under any of their names.

    Args:
        module: whose parameters.
        rules: tried in order.
        scalar_lr_mult: factor on the learning rate of t' and b; at a tower's rate they hardly move.
        parts: names of parameters -> what to call them where no rule of the user's does, a group for each.

    Returns:
        The groups that are not empty, in the order of the rules.

    Raises:
        ValueError: a rule that no parameter is left for.
    """
    every = [*rules, GroupRule(SCALARS, scalar_lr_mult, weight_decay_mult=0.0), GroupRule("")]
    titles = [*(rule.pattern for rule in rules), "t' and b", "default"]
    no_decay = _no_decay_ids(module)
    groups: dict[tuple[int, str, bool, bool], ParameterGroup] = {}
    for names, parameter in _named_parameters(module):
        index = next(i for i, rule in enumerate(every) if any(re.search(rule.pattern, name) for name in names))
        rule, frozen = every[index], every[index].freeze or not parameter.requires_grad
        decays = rule.weight_decay_mult > 0 and id(parameter) not in no_decay
        part = (parts or {}).get(names[0], "") if rule is every[-1] else ""
        title = (part or titles[index]) + ("" if decays else " (no decay)") + (" (frozen)" if frozen else "")
        decay = rule.weight_decay_mult if decays else 0.0
        group = groups.setdefault((index, part, not decays, frozen), ParameterGroup(title, rule.lr_mult, decay, frozen))
        group.parameters[names[0]] = parameter
    _check_every_rule_matched(module, rules, {index for index, *_ in groups})
    return [groups[key] for key in sorted(groups)]


def freeze(module: nn.Module, rules: Sequence[GroupRule]) -> None:
    """Switch gradients off where the rules say ``freeze``.

    Call it before a data-parallel wrapper is made: wrappers fix the set of trainable parameters.
    """
    for group in parameter_groups(module, rules):
        if group.frozen:
            for parameter in group.parameters.values():
                parameter.requires_grad_(False)


def describe_groups(groups: Sequence[ParameterGroup], optimizer: Optimizer) -> str:
    """A table of the groups: name, tensors, parameters, peak learning rate and weight decay, frozen or trained."""
    rows = [("group", "tensors", "parameters", "lr", "weight decay", "")]
    for values in group_table(groups, optimizer):
        size, rates = (values["tensors"], values["parameters"]), (values["lr"], values["weight_decay"])
        state = "frozen" if values["frozen"] else "trained"
        rows.append((values["name"], *(f"{n:,}" for n in size), *(_rate(rate) for rate in rates), state))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if column in (0, 5) else cell.rjust(w) for column, (cell, w) in enumerate(pairs)
        ).rstrip()
        for pairs in ([*zip(row, widths, strict=True)] for row in rows)
    )


def group_table(groups: Sequence[ParameterGroup], optimizer: Optimizer) -> list[dict[str, Any]]:
    """The groups as plain values; learning rate and weight decay are those of the optimizer, ``None`` if frozen."""
    trained = {settings["name"]: settings for settings in optimizer.param_groups}
    return [
        {
            "name": group.name,
            "tensors": len(group.parameters),
            "parameters": group.num_parameters,
            "lr": trained[group.name]["initial_lr"] if group.name in trained else None,
            "weight_decay": trained[group.name].get("weight_decay") if group.name in trained else None,
            "frozen": group.frozen,
        }
        for group in groups
    ]


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def build_optimizer(
    module: nn.Module,
    factory: OptimizerFactory,
    rules: Sequence[GroupRule] = (),
    scalar_lr_mult: float = 1.0,
    weight_decay_convention: WeightDecayConvention = "torch",
    parts: Mapping[str, str] | None = None,
) -> Optimizer:
    """Make an optimizer over the trainable groups of a module.

    Args:
        module: whose parameters; those that the rules freeze lose ``requires_grad``.
        factory: from parameter groups to an optimizer, e.g. ``partial(torch.optim.AdamW, lr=1e-3)``; its learning rate
            and weight decay are the base that the multipliers act on.
        rules: see :func:`parameter_groups`.
        scalar_lr_mult: see :func:`parameter_groups`.
        weight_decay_convention: how the factory's weight decay is meant, see the head of this file.
        parts: see :func:`parameter_groups`.

    Returns:
        The optimizer; its groups carry ``name``, ``lr_mult`` and ``initial_lr`` besides the usual keys.

    Raises:
        ValueError: nothing left to train, a rule that matches nothing, or an optimizer that already converts its
            weight decay by itself together with ``independent``.
    """
    freeze(module, rules)
    groups = [group for group in parameter_groups(module, rules, scalar_lr_mult, parts) if not group.frozen]
    if not groups:
        raise ValueError("No trainable parameter is left: every tower is frozen. Freeze less, or do not train.")
    optimizer = factory([{"params": [*group.parameters.values()], "name": group.name} for group in groups])
    if weight_decay_convention == "independent":
        _refuse_own_convention(optimizer)
    for group, settings in zip(groups, optimizer.param_groups, strict=True):
        _apply_multipliers(group, settings, weight_decay_convention)
    return optimizer


def _refuse_own_convention(optimizer: Optimizer) -> None:
    own = "decoupled_weight_decay" if getattr(optimizer, "decoupled_wd", False) else None  # lion-pytorch
    for name in ("unscaled_wd", "corrected_weight_decay"):  # timm
        own = name if optimizer.defaults.get(name) else own
    if own is not None:
        raise ValueError(
            f"{type(optimizer).__name__} takes the learning rate out of its weight decay itself ({own}); use that or "
            "weight_decay_convention: independent, not both."
        )


def torch_weight_decay(independent: float, lr: float) -> float:
    """The decay that PyTorch multiplies by ``lr`` to subtract ``independent * p`` at the peak of the schedule.

    Raises:
        ValueError: a learning rate of zero, at which PyTorch cannot decay at all.
    """
    if lr <= 0:
        raise ValueError(f"An independent weight decay needs a positive learning rate, got {lr}.")
    return independent / lr


def _apply_multipliers(group: ParameterGroup, settings: dict[str, Any], convention: WeightDecayConvention) -> None:
    settings["lr_mult"] = group.lr_mult
    settings["lr"] *= group.lr_mult
    settings["initial_lr"] = settings["lr"]
    decay = settings.get("weight_decay", 0.0) * group.weight_decay_mult
    if "weight_decay" in settings:
        settings["weight_decay"] = (
            torch_weight_decay(decay, settings["lr"]) if decay and convention == "independent" else decay
        )


def _named_parameters(module: nn.Module) -> Iterator[tuple[list[str], nn.Parameter]]:
    """Every parameter once, with all its names."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for parameter in module.parameters():
        yield names[id(parameter)], parameter


def _no_decay_ids(module: nn.Module) -> set[int]:
    norms = (layer for layer in module.modules() if "norm" in type(layer).__name__.lower())
    of_norms = {id(p) for layer in norms for p in layer.parameters(recurse=False)}
    by_name = {id(p) for names, p in _named_parameters(module) if p.ndim < 2 or re.search(NO_DECAY, names[0])}
    return of_norms | by_name


def _check_every_rule_matched(module: nn.Module, rules: Sequence[GroupRule], used: set[int]) -> None:
    names = [name for name, _ in module.named_parameters(remove_duplicate=False)]
    for index, rule in enumerate(rules):
        if index in used:
            continue
        if any(re.search(rule.pattern, name) for name in names):
            raise ValueError(
                f"Rule {rule.pattern!r} is left without a parameter: earlier rules match them all. Reorder."
            )
        stems = {name.rsplit(".", depth)[0] for name in names for depth in range(name.count(".") + 1)}
        near = get_close_matches(rule.pattern.strip("^$.*"), sorted(stems), n=3, cutoff=0.5) or names[:3]
        raise ValueError(f"Rule {rule.pattern!r} matches no parameter. Nearest names: {', '.join(near)}.")


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run, as a factor on its peak: a linear rise, then a fall that ends with the run.

    Args:
        warmup_steps: length of the rise: a number of steps (int), or a fraction of the run (float below 1).
        kind: shape of the fall; ``constant`` does not fall.
        final_lr_ratio: where the fall ends, as a fraction of the peak.

    Raises:
        ValueError: values outside these ranges.
    """

    warmup_steps: int | float = 0
    kind: Literal["cosine", "linear", "constant"] = "cosine"
    final_lr_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.warmup_steps < 0 or (isinstance(self.warmup_steps, float) and self.warmup_steps >= 1):
            raise ValueError(
                f"warmup_steps: expected a whole number of steps or a fraction in [0, 1), got {self.warmup_steps}."
            )
        if self.kind not in ("cosine", "linear", "constant"):
            raise ValueError(f"schedule kind: expected cosine, linear or constant, got {self.kind!r}.")
        if not 0 <= self.final_lr_ratio <= 1:
            raise ValueError(f"final_lr_ratio: expected a fraction in [0, 1], got {self.final_lr_ratio}.")

    def num_warmup_steps(self, total_steps: int) -> int:
        """Steps of the rise in a run of ``total_steps``."""
        return round(self.warmup_steps * total_steps) if isinstance(self.warmup_steps, float) else self.warmup_steps

    def check_length(self, total_steps: int) -> None:
        """Raise ``ValueError`` for a rise at least as long as the run."""
        warmup = self.num_warmup_steps(total_steps)
        if total_steps < 1 or warmup >= total_steps:
            raise ValueError(
                f"The warm-up of {warmup} steps must be shorter than the run of {total_steps} steps. "
                "Train longer, or give warmup_steps as a fraction such as 0.1."
            )

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Factor on the peak rate for the step after ``step`` finished ones.

        During a rise over ``W`` steps it is ``(step + 1) / W``, so the first step already learns and the last one of
        the rise is at the peak. The fall reaches ``final_lr_ratio`` at ``step == total_steps`` and stays there.
        """
        warmup = self.num_warmup_steps(total_steps)
        if step < warmup:
            return (step + 1) / warmup
        if self.kind == "constant":
            return 1.0
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        left = 1 - progress if self.kind == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_lr_ratio + (1 - self.final_lr_ratio) * left


def build_scheduler(optimizer: Optimizer, schedule: Schedule, total_steps: int) -> LambdaLR:
    """A scheduler to step once after every optimizer step.

    Args:
        optimizer: whose groups' ``initial_lr`` (or ``lr``) are the peaks.
        schedule: the shape.
        total_steps: optimizer steps of the run.

    Raises:
        ValueError: a rise at least as long as the run.
    """
    schedule.check_length(total_steps)
    return LambdaLR(optimizer, lambda step: schedule.lr_factor(step, total_steps))
