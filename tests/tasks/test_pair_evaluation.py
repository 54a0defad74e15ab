"""Sets in shares: what comes twice counts once, and any number of processes reports the same."""

import math
import os
import warnings

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from references import unit_pairs
from torch.utils.data import DataLoader, Dataset

from siglightning.distributed.local import run_ranks
from siglightning.evaluation import Evaluation, pair_calibration, retrieval_metrics
from siglightning.models import TowerConfig, TwoTower
from siglightning.tasks import ContrastiveTask
from siglightning.tasks.embeddings import EmbeddedSet, _joined
from siglightning.tasks.pair_evaluation import PairEvaluation, loss_of_groups

COUNT = 23  # pictures, which neither two nor three processes divide
CAPTIONS = [1 + row % 3 for row in range(COUNT)]


def network():
    torch.manual_seed(0)
    image = TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1], "groups": 4})
    text = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2})
    return TwoTower(image, text, embed_dim=16, context_length=12, image_size=32, init_bias=-4.0)


def embedded_set(rows, batch_size=4):
    """Some pictures of a set with one to three captions each, embedded in batches."""
    images, _ = unit_pairs(COUNT, 16)
    texts, _ = unit_pairs(sum(CAPTIONS), 16, seed=1)
    owner = torch.repeat_interleave(torch.arange(COUNT), torch.tensor(CAPTIONS))
    texts = torch.nn.functional.normalize(texts + 2 * images[owner], dim=1)
    found = EmbeddedSet()
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        own = [(owner == row).nonzero().flatten() for row in part]
        batch = {
            "id": [f"picture {row}" for row in part],
            "text": torch.cat(own)[:, None] + torch.arange(3),
            "text_owner": torch.repeat_interleave(torch.arange(len(part)), torch.tensor([len(of) for of in own])),
            "match_id": torch.tensor([row * 7 % 5 + 10 * row for row in part]),
            "image": torch.tensor(part, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2),
            "label": torch.tensor(part),
        }
        found.add(batch, images[part], texts[torch.cat(own)])
    return found


def share(rank, size):
    """Every `size`-th picture, as Lightning's own sampler deals them out: filled up with some that others have."""
    rows = list(range(rank, COUNT, size))
    return rows if len(rows) == -(-COUNT // size) else [*rows, rank]


def test_what_comes_twice_counts_once_with_its_captions():
    whole, again = embedded_set(range(COUNT)), embedded_set([3, 3, *range(COUNT), 7, 0, 22])
    kept = again.without_repeats()
    assert whole.without_repeats() is whole
    order = torch.tensor([3, *(row for row in range(COUNT) if row != 3)])
    assert kept.kept == [0, 2, 3, 4, *range(6, COUNT + 2)]
    assert torch.equal(torch.cat(kept.images), torch.cat(whole.images)[order])
    assert torch.cat(kept.labels).tolist() == order.tolist()
    assert len(torch.cat(kept.texts)) == sum(CAPTIONS)
    owners, tokens = torch.cat(kept.owners), torch.cat(kept.tokens)
    for row, picture in enumerate(order.tolist()):
        first = sum(CAPTIONS[:picture])
        assert tokens[owners == row][:, 0].tolist() == list(range(first, first + CAPTIONS[picture]))
        assert tokens[torch.cat(kept.first_texts)[row], 0] == first
    assert kept.embedded_rows([0, 1, 4]) == [0, 2, 6]
    assert all(int(image.max()) == order[row] for row, image in kept.examples.by_row.items())


def evaluate(group=None, rows=None):
    torch.manual_seed(0)
    pairs = PairEvaluation(network(), group, torch.device("cpu"), calibrates=True)
    whole = embedded_set(range(COUNT) if rows is None else rows).gathered(group)
    evaluation = pairs.evaluate("val", whole, num_resamples=20)
    nothing = pairs.evaluate("empty", EmbeddedSet().gathered(group), num_resamples=20)
    if evaluation is None:
        return None
    assert nothing is None
    return {name: (m.value, m.low, m.high, m.chance, m.count) for name, m in evaluation.metrics.items()}


class Foreign(Dataset):
    """Pictures with captions as other people's data sets give them: perhaps without keys."""

    def __init__(self, key):
        self.key = key

    def __len__(self):
        return COUNT

    def __getitem__(self, row):
        text = torch.tensor([row + 1] * 12)
        image = torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(row))
        return {"image": image, "text": text, "match_id": row} | ({self.key: row} if self.key else {})


def foreign_run(key, **options):
    """What is warned of, and all metrics, when Lightning evaluates foreign data, in fp32 as it is by default."""
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    task = ContrastiveTask(network())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(accelerator="cpu", **quiet, **options).test(task, DataLoader(Foreign(key), COUNT - 1), verbose=False)
    found = [(name, each) for of_set in task.evaluations.values() for name, each in of_set.metrics.items()]
    numbers = {name: (each.value, each.low, each.high, each.chance, each.count) for name, each in found}
    return [str(each.message) for each in caught if "no `id`" in str(each.message)], numbers


def foreign_runs_on_this_rank():
    rank, size = dist.get_rank(), dist.get_world_size()
    rank_zero_only.rank = rank  # read by Lightning when it was imported, before this process knew
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return {name: foreign_run(key, devices=size, strategy="ddp", **more) for name, (key, more) in FOREIGN.items()}


FOREIGN = {
    "padded": (None, {}),
    "padded, with keys": ("id", {}),
    "whole": (None, {"use_distributed_sampler": False}),
}


def evaluate_on_this_rank():
    found = evaluate(dist.group.WORLD, share(dist.get_rank(), dist.get_world_size()))
    return found, foreign_runs_on_this_rank()


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_processes_reports_the_same(world_size):
    """Shares are of another order than the set, and some pictures come twice: neither may show."""
    one = evaluate()
    (first, foreign), *others = run_ranks(world_size, evaluate_on_this_rank, timeout_s=300.0)
    assert [found for found, _ in others] == [None] * (world_size - 1)
    extra = {"padded": -COUNT % world_size, "padded, with keys": 0, "whole": (world_size - 1) * COUNT}
    for name, more in extra.items():
        told, numbers = foreign[name]
        assert numbers["i2t_mean_rank"][-1] == COUNT + more
        assert [line.split(" come")[0] for line in told] == [f"{more} pictures of evaluation set 0"] * (more > 0), name
    # In fp32 a picture alone in its batch, as the last one is on one process, is rounded otherwise; ranks stay.
    for name, values in foreign_run("id", devices=1)[1].items():
        rel = 1e-6 if name.startswith("pair_") else 0.0
        assert foreign["padded, with keys"][1][name] == pytest.approx(values, rel=rel, abs=0.0, nan_ok=True), name
    assert len(one) == 8 + 3
    for name, values in one.items():
        assert first[name] == pytest.approx(values, rel=1e-12, nan_ok=True), name  # sums in another order


def test_a_process_without_pictures_changes_nothing():
    """Two pictures on three processes: the first one has none, and the others' ids are still those of the batches."""
    parts = [EmbeddedSet(), embedded_set([0, 1]), embedded_set([2])]
    joined, whole = _joined(parts), embedded_set([0, 1, 2])
    assert joined.has_ids
    for name in ("images", "texts", "image_ids", "text_ids", "owners", "first_texts", "labels"):
        assert torch.equal(torch.cat(getattr(joined, name)), torch.cat(getattr(whole, name))), name
    assert (joined.keys, joined.shares) == (whole.keys, [0, 2, 1])


def test_the_average_is_over_sets_with_captions():
    pairs = PairEvaluation(network(), None, torch.device("cpu"), calibrates=False)
    found = {name: pairs.evaluate(name, embedded_set(range(count)), 2) for name, count in (("a", 9), ("b", 12))}
    found["only classes"] = Evaluation("only classes", {})
    average = pairs.average(["a", "only classes", "b", "not there"], found, 2)["average"]
    values = [found[name].metrics["t2i_recall@5"].value for name in "ab"]
    assert average.metrics["t2i_recall@5"].value == pytest.approx(sum(values) / 2, rel=1e-12)
    assert pairs.average(["a", "only classes"], found, 2) == {}


def test_the_loss_of_one_group_has_no_interval():
    groups = [(torch.full((2, 3), float(number)), torch.ones(2, 3), torch.arange(2)) for number in range(5)]
    several = loss_of_groups(groups, lambda x, y, ids: (x * y).mean() + ids.sum(), torch.device("cpu"), 500)
    assert (several.value, several.count) == (3.0, 5)
    assert 1.0 <= several.low < 3.0 < several.high <= 5.0
    one = loss_of_groups(groups[:1], lambda x, y, ids: (x * y).mean(), torch.device("cpu"), 500)
    assert one.value == 0.0
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_metrics_are_those_of_the_functions():
    net, whole = network(), embedded_set(range(COUNT))
    data = [torch.cat(part) for part in (whole.images, whole.texts, whole.image_ids, whole.text_ids)]
    got = PairEvaluation(net, None, torch.device("cpu"), calibrates=True).evaluate("val", whole, 20)
    expected = retrieval_metrics(*data, num_resamples=20)
    expected |= pair_calibration(*data, net.log_scale.item(), -4.0).metrics(num_resamples=20)
    assert got.metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert got.metrics[name].value == value.value, name
        assert (got.metrics[name].low, got.metrics[name].high) == (value.low, value.high), name
    plain = PairEvaluation(net, None, torch.device("cpu"), calibrates=False).evaluate("val", whole, 20)
    assert not any(name.startswith("pair") for name in plain.metrics)
    assert math.isfinite(plain.metrics["t2i_mean_rank"].value)
