"""Retrieval against double loops in Python floats, brute-force chance levels, and torchmetrics."""

import itertools
import math

import pytest
import torch
from sklearn.metrics import coverage_error
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional.retrieval import retrieval_hit_rate

from siglightning.evaluation import (
    chance_mean_rank,
    chance_recall_at_k,
    mean_rank,
    median_rank,
    pair_calibration,
    ranks_both_ways,
    recall_at_k,
    retrieval_metrics,
    retrieval_ranks,
)


def reference_ranks(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> list[int]:
    """Straight from the definition: a double loop in Python floats."""
    ranks = []
    for query, query_id in zip(queries.tolist(), query_ids.tolist(), strict=True):
        right, wrong = [], []
        for row, row_id in zip(gallery.tolist(), gallery_ids.tolist(), strict=True):
            score = sum(a * b for a, b in zip(query, row, strict=True))
            (right if row_id == query_id else wrong).append(score)
        ranks.append(1 + sum(score >= max(right) for score in wrong))
    return ranks


def several_captions(num_images: int, dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy pairs: 1 to 4 captions for an image, and some images that share an id."""
    g = torch.Generator().manual_seed(seed)
    image_ids = torch.randint(num_images // 2 * 3, (num_images,), generator=g) * 7 - 3
    text_ids = torch.cat([image_ids, image_ids[torch.randint(num_images, (2 * num_images,), generator=g)]])
    text_ids = text_ids[torch.randperm(len(text_ids), generator=g)]
    centre = {int(i): torch.randn(dim, generator=g, dtype=torch.float64) for i in image_ids.unique()}
    image = torch.stack([centre[int(i)] for i in image_ids]) + 1.3 * torch.randn(num_images, dim, generator=g).double()
    text = torch.stack([centre[int(i)] for i in text_ids]) + 1.3 * torch.randn(len(text_ids), dim, generator=g).double()
    return normalize(image, dim=1), normalize(text, dim=1), image_ids, text_ids


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_ranks_equal_double_loop_both_ways(chunk_size):
    image, text, image_ids, text_ids = several_captions(num_images=31, dim=5, seed=0)
    for queries, gallery, query_ids, gallery_ids in (
        (image, text, image_ids, text_ids),
        (text, image, text_ids, image_ids),
    ):
        ranks = retrieval_ranks(queries, gallery, query_ids, gallery_ids, chunk_size)
        assert ranks.dtype == torch.int64
        assert ranks.tolist() == reference_ranks(queries, gallery, query_ids, gallery_ids)
        assert len(set(ranks.tolist())) > 1


def test_exact_ties_count_against_the_query():
    """Scores on an integer lattice are exact, so many of them are equal."""
    g = torch.Generator().manual_seed(1)
    queries = torch.randint(-1, 2, (40, 3), generator=g).double()
    gallery = torch.randint(-1, 2, (60, 3), generator=g).double()
    query_ids, gallery_ids = torch.arange(40), torch.arange(60) % 40
    ranks = retrieval_ranks(queries, gallery, query_ids, gallery_ids, 16)
    assert ranks.tolist() == reference_ranks(queries, gallery, query_ids, gallery_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [5, 33, 257])
def test_collapsed_encoder_is_last_whatever_the_rounding(dtype, num_rows):
    """Equal rows give scores that differ by their place in the matrix product; they are ties all the same."""
    g = torch.Generator().manual_seed(2)
    queries = normalize(torch.randn(num_rows, 512, generator=g), dim=1).to(dtype)
    gallery = normalize(torch.randn(1, 512, generator=g), dim=1).to(dtype).repeat(num_rows, 1)
    ids = torch.arange(num_rows)
    for chunk_size in (num_rows // 5 + 1, num_rows - 1, num_rows):
        assert (retrieval_ranks(queries, gallery, ids, ids, chunk_size) == num_rows).all()


def test_zero_embeddings_are_last():
    ids = torch.arange(4)
    assert retrieval_ranks(torch.zeros(4, 3), torch.ones(4, 3), ids, ids).tolist() == [4, 4, 4, 4]


def test_nan_never_helps():
    image = torch.eye(4)
    text = torch.eye(4)
    ids = torch.arange(4)
    text[2] = torch.nan
    assert retrieval_ranks(image, text, ids, ids).tolist() == [2, 2, 4, 2]
    image[1] = torch.nan
    assert retrieval_ranks(image, torch.eye(4), ids, ids).tolist() == [1, 4, 1, 1]


def test_query_without_an_answer_is_named():
    with pytest.raises(ValueError, match=r"1 of 3 have none, first row 1 with id 8"):
        retrieval_ranks(torch.eye(3), torch.eye(3), torch.tensor([4, 8, 5]), torch.tensor([4, 5, 9]))


@pytest.mark.parametrize(
    ("queries", "gallery", "query_ids", "gallery_ids", "chunk_size", "message"),
    [
        (torch.eye(3), torch.ones(3, 2), torch.arange(3), torch.arange(3), 8, r"got \[3, 3\] and \[3, 2\]"),
        (torch.eye(3), torch.eye(3), torch.arange(2), torch.arange(3), 8, r"got \[2\] and \[3\]"),
        (torch.ones(0, 3), torch.eye(3), torch.arange(0), torch.arange(3), 8, "at least one query"),
        (torch.eye(3), torch.ones(0, 3), torch.arange(3), torch.arange(0), 8, "gallery of at least one row"),
        (torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3), 0, "chunk_size must be at least 1"),
        (torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3.0), 8, "int64 and torch.float32. Number"),
        (torch.eye(2), torch.eye(2), torch.eye(2)[0] > 0, torch.arange(2), 8, "bool and torch.int64. Number"),
    ],
)
def test_misuse_is_explained(queries, gallery, query_ids, gallery_ids, chunk_size, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(queries, gallery, query_ids, gallery_ids, chunk_size)


def test_ids_are_integers_for_whatever_uses_them():
    ids = torch.arange(3.0)
    for use in (
        lambda: retrieval_metrics(torch.eye(3), torch.eye(3), ids, ids),
        lambda: chance_recall_at_k(ids, ids, 1),
        lambda: chance_mean_rank(ids, ids),
        lambda: pair_calibration(torch.eye(3), torch.eye(3), ids, ids, 2.0, -4.0),
    ):
        with pytest.raises(ValueError, match=r"integer ids, .* got torch.float32 and torch.float32. Number"):
            use()


def test_recall_agrees_with_torchmetrics():
    image, text, image_ids, text_ids = several_captions(num_images=25, dim=6, seed=3)
    ranks = retrieval_ranks(image, text, image_ids, text_ids)
    for k in (1, 5, 10):
        theirs = [
            retrieval_hit_rate(scores, text_ids == i, top_k=k).item()
            for scores, i in zip(image @ text.T, image_ids, strict=True)
        ]
        assert recall_at_k(ranks, k) == pytest.approx(sum(theirs) / len(theirs), rel=0, abs=1e-12)


def recall_of_clip_benchmark(scores: Tensor, positive_pairs: Tensor, k: int) -> Tensor:
    """CLIP_benchmark's `recall_at_k` by its definition: right answers among the k best, over all right answers."""
    best = scores.topk(k, dim=1).indices
    return positive_pairs.gather(1, best).sum(1) / positive_pairs.sum(1)


@pytest.mark.parametrize("batch_size", [7, 1000])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_agrees_with_clip_benchmark(k, batch_size):
    """Which reports the share of queries whose recall at k is above 0, in batches or not."""
    image, text, image_ids, text_ids = several_captions(num_images=40, dim=6, seed=7)
    i2t, t2i = ranks_both_ways(image, text, image_ids, text_ids, chunk_size=16)
    scores, positives = text @ image.T, text_ids[:, None] == image_ids
    for ranks, matrix, pairs in ((t2i, scores, positives), (i2t, scores.T, positives.T)):
        batches = zip(matrix.split(batch_size), pairs.split(batch_size), strict=True)
        theirs = torch.cat([recall_of_clip_benchmark(*batch, k) for batch in batches])
        assert recall_at_k(ranks, k) == pytest.approx((theirs > 0).double().mean().item(), abs=1e-12)
        assert 0 < recall_at_k(ranks, k) < 1


def test_mean_rank_agrees_with_scikit_learn():
    """With one right answer, coverage error is the mean rank; it counts ties against the model, too."""
    g = torch.Generator().manual_seed(8)
    queries, gallery = torch.randint(-1, 2, (2, 50, 4), generator=g).double()
    ids = torch.randperm(50, generator=g)
    theirs = coverage_error((ids[:, None] == torch.arange(50)).int().numpy(), (queries @ gallery.T).numpy())
    assert mean_rank(retrieval_ranks(queries, gallery, ids, torch.arange(50))) == pytest.approx(theirs, abs=1e-12)


# Distances of 4 images (rows) and 8 texts, two an image, with the recalls that big_vision's own test expects of them.
SURE = [
    [0.0, 0.0, 0.1, 0.5, 0.1, 0.2, 0.5, 0.1],
    [0.5, 0.4, 0.0, 0.0, 0.4, 0.2, 0.6, 0.4],
    [0.5, 0.4, 0.1, 0.5, 0.0, 0.0, 0.8, 0.3],
    [0.5, 0.4, 0.1, 0.5, 0.3, 0.2, 0.0, 0.0],
]
UNSURE = [
    [0.8, 0.8, 0.1, 0.5, 0.1, 0.2, 0.5, 0.1],
    [0.5, 0.4, 0.0, 0.0, 0.4, 0.2, 0.6, 0.4],
    [0.5, 0.4, 0.1, 0.5, 0.0, 0.8, 0.8, 0.3],
    [0.5, 0.4, 0.1, 0.5, 0.4, 0.2, 0.3, 0.3],
]
UNSURE_TEXTS = [[0.8, 0.8, 0.1, 0.5, 0.1, 0.2, 0.1, 0.1], *UNSURE[1:]]


@pytest.mark.parametrize(
    ("distances", "way", "expected"),
    [
        (SURE, 0, [1.0, 1.0, 1.0]),
        (UNSURE, 0, [0.5, 0.75, 1.0]),
        (SURE, 1, [1.0, 1.0, 1.0]),
        (UNSURE_TEXTS, 1, [0.375, 1.0, 1.0]),
    ],
)
def test_published_examples_of_big_vision(distances, way, expected):
    image, text = -torch.tensor(distances, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    ranks = ranks_both_ways(image, text, torch.arange(4), torch.arange(8) // 2)[way]
    assert [recall_at_k(ranks, k) for k in (1, 5, 10)] == expected


def test_published_pictures_of_big_vision_are_all_found():
    """Its retrieval_test: 17 pictures, one more than its 8 devices take, and captions at their angles."""
    ids = torch.arange(17)
    image = normalize(torch.stack([torch.full((17,), 100.0), ids.float()], dim=1), dim=1)
    found = retrieval_metrics(image, image.repeat_interleave(5, 0), ids, ids.repeat_interleave(5), num_resamples=1)
    assert (found["i2t_recall@1"].value, found["t2i_recall@5"].value) == (1.0, 1.0)
    assert (found["i2t_recall@1"].count, found["t2i_recall@5"].count) == (17, 85)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [3, 60])
def test_both_ways_share_a_product_whatever_the_order_of_ids(dtype, classes):
    """Few large groups of matches, and many small ones, scattered over both sides."""
    g = torch.Generator().manual_seed(9)
    image_ids, text_ids = (torch.randint(classes, (n,), generator=g) * 11 - 5 for n in (90, 170))
    ids = torch.arange(classes) * 11 - 5  # each at least once on either side
    image_ids, text_ids = torch.cat([image_ids, ids]), torch.cat([ids, text_ids])
    image, text = (torch.randn(len(of), 6, generator=g).to(dtype) for of in (image_ids, text_ids))
    for side in (13, 64, None):
        i2t, t2i = ranks_both_ways(image, text, image_ids, text_ids, chunk_size=side)
        assert i2t.tolist() == reference_ranks(image, text, image_ids, text_ids)
        assert t2i.tolist() == reference_ranks(text, image, text_ids, image_ids)


def test_products_are_exact_whatever_training_asked_for():
    """bf16 products of 48 near neighbours would mix up their order."""
    g = torch.Generator().manual_seed(10)
    image = normalize(torch.randn(1, 64, generator=g) + 2e-3 * torch.randn(48, 64, generator=g), dim=1)
    ids = torch.arange(48)
    expected = retrieval_ranks(image, image, ids, ids).tolist()
    assert expected == [1] * 48
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert retrieval_ranks(image, image, ids, ids).tolist() == expected
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_only_tiles_are_ever_held():
    """600 x 3,000 scores would be 7.2 MB; no tensor as large as a chunk times the gallery is made."""
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, (list, tuple)) else [out]:
                if isinstance(value, Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return out

    image, text = torch.randn(600, 4), torch.randn(3000, 4)
    with Largest():
        ranks_both_ways(image, text, torch.arange(600), torch.arange(3000) % 600, chunk_size=64)
    assert largest == 4 * 4 * 3000  # the sorted texts; a tile is 16,384 bytes, 64 rows of scores are 768,000


def test_mean_and_median_rank():
    ranks = torch.tensor([1, 9, 2, 4])
    assert mean_rank(ranks) == 4.0
    assert median_rank(ranks) == 3.0
    assert median_rank(ranks[:3]) == 2.0


@pytest.mark.parametrize("k", [1, 2, 4, 6, 9])
def test_chance_equals_all_orders_of_a_small_gallery(k):
    query_ids, gallery_ids = torch.tensor([1, 2, 3]), torch.tensor([3, 1, 2, 2, 3, 3])
    hits, orders = 0, 0
    for order in itertools.permutations(gallery_ids.tolist()):
        hits += sum(q in order[:k] for q in query_ids.tolist())
        orders += len(query_ids)
    assert chance_recall_at_k(query_ids, gallery_ids, k) == pytest.approx(hits / orders, abs=1e-12)


def test_chance_mean_rank_equals_all_orders_of_a_small_gallery():
    query_ids, gallery_ids = torch.tensor([1, 2, 3]), torch.tensor([3, 1, 2, 2, 3, 3])
    ranks = [1 + order.index(q) for order in itertools.permutations(gallery_ids.tolist()) for q in query_ids.tolist()]
    assert chance_mean_rank(query_ids, gallery_ids) == pytest.approx(sum(ranks) / len(ranks), abs=1e-12)


def test_chance_is_what_random_embeddings_reach():
    g = torch.Generator().manual_seed(4)
    image_ids, text_ids = torch.arange(40), torch.arange(200) % 40
    recalls = [
        recall_at_k(
            retrieval_ranks(torch.randn(40, 8, generator=g), torch.randn(200, 8, generator=g), image_ids, text_ids), 5
        )
        for _ in range(100)
    ]
    chance = chance_recall_at_k(image_ids, text_ids, 5)
    assert chance == pytest.approx(1 - math.comb(195, 5) / math.comb(200, 5), abs=1e-12)
    assert sum(recalls) / 100 == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 4000))


def test_metrics_hold_keys_values_chances_and_counts():
    image, text, image_ids, text_ids = several_captions(num_images=30, dim=8, seed=5)
    metrics = retrieval_metrics(image.float(), text.float(), image_ids, text_ids, chunk_size=11)
    names = ("recall@1", "recall@5", "recall@10", "mean_rank")
    assert list(metrics) == [f"{way}_{name}" for way in ("i2t", "t2i") for name in names]
    reference = reference_ranks(text, image, text_ids, image_ids)
    got = metrics["t2i_recall@5"]
    assert got.value == pytest.approx(sum(rank <= 5 for rank in reference) / len(reference))
    assert got.chance == chance_recall_at_k(text_ids, image_ids, 5)
    assert (got.count, metrics["i2t_recall@1"].count) == (90, 30)
    assert 0 <= got.low < got.value < got.high <= 1
    mean = metrics["i2t_mean_rank"]
    assert mean.value == sum(reference_ranks(image, text, image_ids, text_ids)) / 30
    assert mean.low < mean.value < mean.high < mean.chance


def test_interval_allows_for_captions_of_one_image_being_alike():
    """Eight equal captions of each image tell as much as one: the interval must not shrink."""
    image, text, _, _ = several_captions(num_images=60, dim=6, seed=6)
    ids, text = torch.arange(60), normalize(image + 0.5 * text[:60], dim=1)
    once = retrieval_metrics(image, text, ids, ids)["t2i_recall@1"]
    eightfold = retrieval_metrics(image, text.repeat(8, 1), ids, ids.repeat(8))["t2i_recall@1"]
    assert 0.2 < once.value < 0.95
    assert eightfold.count == 8 * once.count
    assert (eightfold.value, eightfold.low, eightfold.high) == pytest.approx((once.value, once.low, once.high))
