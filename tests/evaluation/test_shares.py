"""Processes that share the tiles of an evaluation find what one process finds, to the bit."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from siglightning.distributed.local import run_ranks
from siglightning.evaluation.pair_calibration import pair_calibration
from siglightning.evaluation.retrieval import ranks_both_ways

SIDE = 16  # 61 rows are four rows of tiles, which neither two nor three processes divide evenly


def evaluate(group=None):
    g = torch.Generator().manual_seed(0)
    image_ids = torch.randint(40, (61,), generator=g)
    text_ids = torch.cat([image_ids.flip(0), image_ids[torch.randint(61, (58,), generator=g)]])
    centres = torch.randn(40, 16, generator=g)
    image, text = (
        normalize(centres[ids] + torch.randn(len(ids), 16, generator=g), dim=1) for ids in (image_ids, text_ids)
    )
    ranks = ranks_both_ways(image, text, image_ids, text_ids, chunk_size=SIDE, group=group)
    found = pair_calibration(image, text, image_ids, text_ids, 2.0, -4.0, chunk_size=SIDE, group=group)
    bins = [(b.counts.tolist(), b.mean_probability.nan_to_num().tolist()) for b in (found.equal_width, found.by_logit)]
    return [of_way.tolist() for of_way in ranks], bins, found.metrics(num_resamples=5)


def evaluate_on_this_rank():
    found = evaluate(dist.group.WORLD)
    return found[0], found[1], {name: (m.value, m.low, m.high) for name, m in found[2].items()}


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_tiles(world_size):
    ranks, bins, metrics = evaluate()
    expected = ranks, bins, {name: (m.value, m.low, m.high) for name, m in metrics.items()}
    assert len(set(ranks[0])) > 3
    for found in run_ranks(world_size, evaluate_on_this_rank, timeout_s=300.0):
        assert found == expected
