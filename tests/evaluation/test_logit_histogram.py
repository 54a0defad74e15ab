"""Counts of logits against a double loop."""

import math
from itertools import pairwise

import pytest
import torch

from siglightning.evaluation import logit_histogram


def embeddings(images, texts, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = (torch.randn(count, dim, generator=generator) for count in (images, texts))
    return [torch.nn.functional.normalize(rows, dim=1) for rows in draw]


def counted(edges, values):
    """Half-open bins."""
    return [sum(low <= value < high for value in values) for low, high in pairwise(edges)]


def test_counts_equal_a_double_loop_over_pairs():
    (images, texts), scale, bias = embeddings(300, 41), 12.5, -3.0
    image_ids, text_ids = torch.arange(300) % 41, torch.arange(41)
    found = logit_histogram(images, texts, image_ids, text_ids, scale, bias)
    logits = (scale * (images @ texts.T).double() + bias).tolist()
    pairs = [(logits[i][j], i % 41 == j) for i in range(300) for j in range(41)]
    assert found.positives == counted(found.edges, [logit for logit, matches in pairs if matches])
    assert found.negatives == counted(found.edges, [logit for logit, matches in pairs if not matches])
    assert (sum(found.positives), sum(found.negatives)) == (300, 300 * 40)
    widths = {round(high - low, 9) for low, high in pairwise(found.edges)}
    assert widths == {round(2 * scale / 256, 9)}
    both = [a + b for a, b in zip(found.positives, found.negatives, strict=True)]
    assert both[0] > 0
    assert both[-1] > 0


def test_equal_rows_are_in_the_last_bin_and_nan_in_none():
    row = torch.tensor([[1.0, 1e-4]])  # its square is above one
    found = logit_histogram(row, row, torch.tensor([3]), torch.tensor([3]), 10.0)
    assert (found.positives, found.negatives) == ([1], [0])
    assert found.edges == pytest.approx([10 - 20 / 256, 10])
    assert logit_histogram(row * math.nan, row, torch.tensor([3]), torch.tensor([3]), 10.0) is None
    assert logit_histogram(row[:0], row, torch.tensor([]), torch.tensor([3]), 10.0) is None


def test_of_a_large_set_pictures_are_taken_from_all_over():
    images, texts = embeddings(1000, 10)
    ids = torch.arange(1000)
    found = logit_histogram(images, texts, ids, torch.tensor([0, 250, 500, 750, *range(1, 7)]), 1.0, most_pairs=40)
    assert sum(found.positives) == 4  # of the pictures 0, 250, 500 and 750
    assert sum(found.negatives) == 4 * 9
