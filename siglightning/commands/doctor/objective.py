"""What the loss will be of: negatives per image, t and b, and the loss at step 0 against its closed form."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.findings import Finding, Level, NotApplicableError
from siglightning.evaluation import PairLogits, pair_logits
from siglightning.tasks import ContrastiveTask
from siglightning.tasks.classifier import ClassifierTask

FEW = 16  # negatives an image; fewer teach little
MAX_REPEATED = 0.01  # share of captions that may be repeated without a match id
LARGEST_SCALE = 200.0  # t beyond it: log t and t were perhaps mistaken; published checkpoints have up to 117
OUT_OF_PLACE = 2.0  # times the loss that the best b gives
SIGMAS = 6.0  # standard deviations of a cosine of unrelated directions that an untrained model may show
KNOWN = 3.0  # standard errors by which pairs must be nearer than others where the weights know them


def count_negatives(case: Case) -> Iterator[Finding]:
    """With how many captions each picture is compared, and how many of those say the same as its own."""
    task, batch = case.contrastive, case.data.global_batch_size
    accumulated = case.trainer.accumulate_grad_batches
    masked = task.negatives
    each = batch - 1 if masked is None else masked.ratio
    values: dict[str, Any] = {"global_batch_size": batch, "negatives": each, "accumulate_grad_batches": accumulated}
    where = f"{case.world_size} x {case.share}" if case.world_size > 1 else "one process"
    text = f"{each:,} negatives an image in a global batch of {batch:,} ({where})"
    if accumulated > 1:
        yield Finding(
            "warning",
            f"{text}; {accumulated} accumulated batches add none: {each:,}, not {batch * accumulated - 1:,}",
            f"Set `global_batch_size: {batch * accumulated}` and the network's `micro_batch_size: {case.share}`.",
            values=values,
        )
    elif each < FEW:
        remedy = "Raise `data.global_batch_size`; the network's `micro_batch_size` keeps the memory where it is."
        yield Finding("warning", f"only {text}", remedy, values=values)
    else:
        yield Finding("ok", text, values=values)
    yield _repeated(case, task)


def _repeated(case: Case, task: ContrastiveTask) -> Finding:
    """Captions of the first batch that occur twice, as tokens: with other match ids they are false negatives."""
    first = case.first.batch
    rows = [tuple(row) for row in first["text"].tolist()]
    ids = first["match_id"].tolist() if "match_id" in first else None
    heeded = ids is not None and task.match != "none" and task.loss_name == "sigmoid"
    repeated = _in_groups(Counter(rows))
    uncovered = repeated - (_in_groups(Counter(zip(rows, ids or [], strict=True))) if heeded else 0)
    values = {"captions": len(rows), "repeated": repeated, "false_negatives": uncovered}
    text = f"{repeated} of the first {len(rows)} captions are not the only one of their tokens"
    if not uncovered:
        return Finding("ok", f"{text}, all of them matched by `match_id`" if repeated else text, values=values)
    if ids is None:
        why, remedy = "and the batch has no `match_id`", "Give the data's samples a `match_id` for each caption."
    elif not heeded:
        setting = "match: none" if task.loss_name == "sigmoid" else "loss: softmax"
        why, remedy = (
            f"and `{setting}` takes them for negatives",
            "Set `model.loss: sigmoid` and `model.match: positive`.",
        )
    else:
        why = f"and {uncovered} of them have another `match_id`, so that they are negatives of their twins"
        remedy = "Lengthen the context if they were cut, else give captions that read alike one `match_id`."
    level: Level = "warning" if uncovered > MAX_REPEATED * len(rows) else "ok"
    return Finding(level, f"{text}, {why}", remedy, values=values)


def _in_groups(counts: Counter[Any]) -> int:
    """How many have at least one like them."""
    return sum(count for count in counts.values() if count > 1)


@dataclass(frozen=True)
class Expected:
    """The loss of embeddings that have nothing to do with each other, in closed form.

    Every logit is ``l = t c + b`` with one cosine c for all pairs, 0 for unrelated directions. The sigmoid loss is then
    ``P softplus(-l) + N softplus(l)`` with P positives and N negatives an image (SigLIP paper, Algorithm 1), and the
    softmax loss ``log(P + N)`` whatever the logit.

    Attributes:
        loss_name: ``sigmoid`` or ``softmax``.
        positives: an image, P.
        negatives: an image, N.
        scale: t.
        bias: b; 0 where there is none.
    """

    loss_name: str
    positives: float
    negatives: float
    scale: float
    bias: float

    def loss(self, cosine: float = 0.0) -> float:
        """The loss where all cosines are ``cosine``."""
        if self.loss_name == "softmax":
            return math.log(self.positives + self.negatives)
        logit = self.scale * cosine + self.bias
        return self.positives * _softplus(-logit) + self.negatives * _softplus(logit)

    def range(self, dim: int) -> tuple[float, float]:
        """Smallest and largest loss within :data:`SIGMAS` of a cosine of random directions, 1 / sqrt(dim).

        An untrained tower maps all pictures to nearly one direction, so one draw of the cosine is that of all pairs.
        """
        reach = min(1.0, SIGMAS / math.sqrt(dim))
        losses = [self.loss(reach * step / 20) for step in range(-20, 21)]
        return min(losses), max(losses)

    @property
    def best(self) -> float:
        """What the best b gives at equal cosines: ``logit = log(P / N)``."""
        total = self.positives + self.negatives
        if self.loss_name == "softmax" or not self.negatives:
            return self.loss()
        logit = math.log(self.positives / self.negatives) if self.positives else -math.inf
        return self.positives * _softplus(-logit) + self.negatives * _softplus(logit) if total else 0.0


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def begin_contrastive(case: Case) -> Iterator[Finding]:
    """The scale t, the bias b, and the loss of step 0: of unrelated embeddings, and of the first pairs."""
    task = case.contrastive
    network = task.network
    scale = math.exp(network.log_scale.item())
    bias = 0.0 if network.bias is None else network.bias.item()
    batch = case.data.global_batch_size
    whole = Expected(task.loss_name, 1.0, task.negatives.ratio if task.negatives else batch - 1, scale, bias)
    told = f"t = {scale:.4g}" + ("" if network.bias is None else f", b = {bias:.4g}")
    values: dict[str, Any] = {"scale": scale, "bias": None if network.bias is None else bias, "expected": whole.loss()}
    text = f"{told}: unrelated embeddings give a loss of {whole.loss():.4g} in a batch of {batch:,}"
    if scale > LARGEST_SCALE or scale < 1:
        remedy = "`init_log_scale` is a logarithm: log 10 = 2.302585 gives the paper's t = 10."
        yield Finding("warning", f"{text}; t is far from what is known to train (1 to 117)", remedy, values=values)
    elif whole.loss() > OUT_OF_PLACE * whole.best and not case.origin.knows_pairs:
        remedy = f"Set the network's `init_bias: auto`, which is {-math.log(max(1, batch - 1)):.3g} here."
        text += f", {whole.loss() / whole.best:.1f} times that of the best b: the first steps go into b"
        yield Finding("warning", text, remedy, values=values)
    else:
        yield Finding("ok", text, values=values)
    yield _measured(case, task, scale, bias)


def _measured(case: Case, task: ContrastiveTask, scale: float, bias: float) -> Finding:
    images, texts, ids = case.embedded
    count, dim = images.shape
    with case.evaluating():
        loss = task.loss(images, texts, ids).item()
    counted = None if task.match == "none" or task.loss_name == "softmax" else ids
    same = torch.eye(count, dtype=torch.bool) if counted is None else (counted[:, None] == counted).cpu()
    positives = 1.0 if task.match == "ignore" else same.sum().item() / count
    expected = Expected(task.loss_name, positives, (~same).sum().item() / count, scale, bias)
    logits = pair_logits(images, texts, task.network.log_scale.detach(), task.network.bias, ids)
    margin = known_by(images.float().cpu(), texts.float().cpu(), same) if math.isfinite(loss) else math.nan
    low, high = expected.range(dim)
    values = {
        "pairs": count,
        "measured": loss,
        "expected_of_these": expected.loss(),
        "range": [low, high],
        "positive_logit": logits.positive.item(),
        "negative_logit": logits.negative.item(),
        "standard_errors_apart": margin,
    }
    text = f"measured on the first {count} pairs: {loss:.4g}; unrelated ones give {expected.loss():.4g}"
    if not math.isfinite(loss):
        return Finding("error", f"{text}; not finite", "Look at the weights and at `trainer.precision`.", values=values)
    if case.origin.knows_pairs:
        return _of_trained(text, logits, margin, values)
    outside = not (0.9 * low <= loss <= 1.1 * high)
    text += f", {low:.4g} to {high:.4g} at cosines that chance gives in {dim} dimensions"
    if outside:
        remedy = "Look at t, b and the towers' features: these embeddings are not unrelated, or not of length one."
        return Finding("warning", text, remedy, values=values)
    return Finding("ok", text, values=values)


def _of_trained(text: str, logits: PairLogits, margin: float, values: dict[str, Any]) -> Finding:
    text += f"; mean logit {logits.positive:.2f} of pairs, {logits.negative:.2f} of others"
    if margin < KNOWN:
        return Finding(
            "error",
            f"{text}: the weights of the checkpoint do not tell pairs from others here",
            "Compare tokenizer, picture size and normalisation with those of its own run, and the data with its data.",
            values=values,
        )
    return Finding("ok", text, values=values)


def known_by(images: Tensor, texts: Tensor, same: Tensor) -> float:
    """By how many standard errors the cosines of pairs ``[n, d]`` exceed those of rows that do not match.

    The mean over rows of (own cosine - mean cosine of others), over its standard error.
    """
    cosines = images @ texts.T
    others = torch.where(same, torch.nan, cosines).nanmean(1)
    gaps = (cosines.diagonal() - others)[~others.isnan()]
    if len(gaps) < 2:
        raise NotApplicableError("too few captions of different meaning in the first batch")
    return float(gaps.mean() / (gaps.std() / len(gaps) ** 0.5).clamp(min=1e-12))


def begin_classifier(case: Case) -> Iterator[Finding]:
    """The loss of a new classifier against that of equal logits."""
    task = case.classifier
    batch, loss_of = case.first.batch, getattr(task, "loss", None)
    if loss_of is None or "label" not in batch:
        raise NotApplicableError("the task trains no classifier")
    count = min(len(batch["label"]), 64)
    key = "image_embed" if "image_embed" in batch else "image"
    labels = batch["label"][:count]
    with case.evaluating():
        logits = task.classify(task.features({key: batch[key][:count]})).float()  # type: ignore[misc]
        measured, expected = loss_of(logits, labels).item(), loss_of(torch.zeros_like(logits), labels).item()
    values = {"pictures": count, "measured": measured, "expected": expected, "classes": logits.shape[1]}
    is_new = case.origin.checkpoint is None or case.origin.kind != "run"  # no other library brings our classifier
    text = f"{logits.shape[1]} classes: equal logits give a loss of {expected:.4g}; measured on {count}: {measured:.4g}"
    if not math.isfinite(measured):
        yield Finding("error", text, "Look at the weights and at `trainer.precision`.", values=values)
    elif is_new and abs(measured - expected) > 0.5 * expected:
        remedy = (
            "A new classifier begins near equal logits: look at the features' size and the pictures' normalisation."
        )
        yield Finding("warning", text, remedy, values=values)
    else:
        yield Finding("ok", text, values=values)


def begin(case: Case) -> Iterator[Finding]:
    """The loss of step 0, whatever the task."""
    return begin_classifier(case) if isinstance(case.task, ClassifierTask) else begin_contrastive(case)
