"""Hardest negatives against a double loop over all pairs."""

import pytest
import torch
from references import unit_pairs

from siglightning.evaluation import hardest_negatives

IMAGE_IDS = torch.tensor([3, 3, 5, 6, 7, 8, 9, 10])
TEXT_IDS = torch.tensor([3, 5, 5, 6, 6, 7, 8, 9, 99, 3])  # nothing describes picture 10, and text 99 no picture


def by_loop(x, y, count):
    found = []
    for i, image in enumerate(x):
        pairs = [((image @ text).item(), -j) for j, text in enumerate(y)]
        others = [pair for pair, j in zip(pairs, TEXT_IDS, strict=True) if j != IMAGE_IDS[i]]
        own = [pair for pair, j in zip(pairs, TEXT_IDS, strict=True) if j == IMAGE_IDS[i]]
        if own:
            found.append((i, -max(others)[1], max(others)[0], -max(own)[1], max(own)[0]))
    return sorted(found, key=lambda pair: -pair[2])[:count]


@pytest.mark.parametrize("chunk_size", [1, 3, 256])
@pytest.mark.parametrize("count", [1, 4, 50])
def test_pairs_are_those_of_a_double_loop(chunk_size, count):
    x, _ = unit_pairs(8, 4)
    y, _ = unit_pairs(10, 4, seed=1)
    expected = by_loop(x, y, count)
    found = hardest_negatives(x, y, IMAGE_IDS, TEXT_IDS, count, chunk_size)
    assert len(found) == min(count, 7)
    assert [(p.image, p.text, p.own_text) for p in found] == [(i, j, own) for i, j, _, own, _ in expected]
    assert [p.cosine for p in found] == pytest.approx([pair[2] for pair in expected], abs=1e-6)
    assert [p.own_cosine for p in found] == pytest.approx([pair[4] for pair in expected], abs=1e-6)


def test_rows_that_say_nothing_are_left_out():
    x, y = unit_pairs(4, 3)
    x[1] = torch.nan
    ids = torch.arange(4)
    assert sorted(pair.image for pair in hardest_negatives(x, y, ids, ids, 9)) == [0, 2, 3]
    assert hardest_negatives(x, y, torch.zeros(4), torch.zeros(4), 9) == []
    assert hardest_negatives(x[:0], y, ids[:0], ids, 9) == []
