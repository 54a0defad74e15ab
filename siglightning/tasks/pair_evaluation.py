"""What comparing all pictures of evaluation sets with all their captions tells: retrieval, and calibration of pairs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.evaluation import (
    Evaluation,
    MetricValue,
    ReliabilityBins,
    evaluate_retrieval,
    mean_with_interval,
    pair_calibration,
    ranks_both_ways,
)
from siglightning.evaluation.average import PictureOutcomes, average_over_sets
from siglightning.models import TwoTower
from siglightning.tasks.embeddings import EmbeddedSet

AVERAGE = "average"


class PairEvaluation:
    """Evaluates sets of pictures with captions; all processes compare, the first one reports.

    Args:
        network: with t', b and the tokenizer.
        group: all processes, ``None`` for one.
        device: where to compare.
        calibrates: measure calibration, too, where the network has a bias: without one there is no probability.

    Attributes:
        reliability: bins by set and kind, on the first process.
    """

    def __init__(
        self, network: TwoTower, group: dist.ProcessGroup | None, device: torch.device, calibrates: bool
    ) -> None:
        self.network, self.group, self.device = network, group, device
        self.calibrates = calibrates and network.bias is not None
        self.reliability: dict[str, dict[str, ReliabilityBins]] = {}
        self._outcomes: dict[str, PictureOutcomes] = {}

    def evaluate(self, name: str, whole: EmbeddedSet | None, num_resamples: int) -> Evaluation | None:
        """Metrics and examples of one set; every process calls it for every set, in the same order.

        Args:
            name: of the set.
            whole: the set on the first process, of :meth:`EmbeddedSet.gathered`; ``None`` on the others.
            num_resamples: bootstrap samples.

        Returns:
            ``None`` for a set without pictures, and on all processes but the first.
        """
        shared = _on_every_process(whole, self.group, self.device)
        if shared is None:
            return None
        ranks = ranks_both_ways(*shared, group=self.group)
        network, bias = self.network, self.network.bias
        calibration = None
        if self.calibrates and bias is not None and all(bool(side.isfinite().all()) for side in shared[:2]):
            calibration = pair_calibration(*shared, network.log_scale.item(), bias.item(), group=self.group)
        if whole is None:
            return None
        evaluation = evaluate_retrieval(
            name,
            *(part.cpu() for part in shared),  # one more copy of all embeddings would be made from the pieces
            captions=torch.cat(whole.tokens),
            caption_of=network.tokenizer.decode,
            example_images=whole.examples.by_row,
            ranks=(ranks[0].cpu(), ranks[1].cpu()),
            num_resamples=num_resamples,
        )
        if calibration is not None:
            evaluation.metrics.update(calibration.metrics(num_resamples=num_resamples))
            self.reliability[name] = {"equal bins": calibration.equal_width, "by logit": calibration.by_logit}
        keys = whole.keys if len(whole.keys) == len(ranks[0]) else [str(row) for row in range(len(ranks[0]))]
        self._outcomes[name] = PictureOutcomes.of(keys, torch.cat(whole.owners), ranks)
        return evaluation

    def average(self, names: Sequence[str], found: dict[str, Evaluation], num_resamples: int) -> dict[str, Evaluation]:
        """The row of the mean over sets of the same pictures, where at least two of these have captions."""
        there = [name for name in names if name in self._outcomes]
        if len(there) < 2:
            return {}
        sets = {name: self._outcomes[name] for name in there}
        metrics = {name: found[name].metrics for name in there}
        return {AVERAGE: Evaluation(AVERAGE, average_over_sets(sets, metrics, num_resamples=num_resamples))}


def loss_of_groups(
    groups: Sequence[tuple[Tensor, Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    device: torch.device,
    num_resamples: int,
) -> MetricValue:
    """Mean loss of groups of pairs, in nats; the interval draws groups, and is NaN for one alone.

    Args:
        groups: of :meth:`EmbeddedSet.loss_groups`, at least one.
        loss: of unit embeddings ``[b, d]`` twice and match ids ``[b]``.
        device: where to compute.
        num_resamples: bootstrap samples.
    """
    values = torch.stack([loss(*(part.to(device) for part in group)) for group in groups]).double()[:, None]
    (found,) = mean_with_interval(values, [math.nan], num_resamples=num_resamples)
    return found if len(groups) > 1 else replace(found, low=math.nan, high=math.nan)


def _on_every_process(
    whole: EmbeddedSet | None, group: dist.ProcessGroup | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Embeddings and ids of pictures and texts, from the first process; ``None`` for a set without pictures."""
    own = None
    if whole is not None and whole.images:
        pieces = (whole.images, whole.texts, whole.image_ids, whole.text_ids)
        own = [torch.cat(part).to(device) for part in pieces]
    if group is not None:
        kinds = [None if own is None else [(tensor.shape, tensor.dtype) for tensor in own]]
        dist.broadcast_object_list(kinds, group=group, group_src=0, device=device)
        if kinds[0] is not None:
            own = own or [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in kinds[0]]
            for tensor in own:
                dist.broadcast(tensor, group=group, group_src=0)
    return None if own is None else (own[0], own[1], own[2], own[3])


def values_to_log(found: dict[str, Evaluation], stage: str, own: str | None = None) -> dict[str, float]:
    """Values to log: ``stage/set/metric``, and ``stage/metric`` of the set that is the stage's own."""
    return {
        f"{stage}/{key}" if name == own else f"{stage}/{name}/{key}": metric.value
        for name, evaluation in found.items()
        for key, metric in evaluation.metrics.items()
    }
