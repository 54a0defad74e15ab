"""Global batches: the same samples for any number of processes, from any position."""

from itertools import chain

import pytest

from siglightning.data import EvaluationSampler, GlobalBatchSampler, SampleKey


def batches(world_size, epoch=0, start=0, **options):
    """Global batches put together from what each rank yields."""
    shares = []
    for rank in range(world_size):
        sampler = GlobalBatchSampler(50, 12, rank, world_size, seed=5, **options)
        sampler.set_epoch(epoch)
        sampler.start_batch = start
        shares.append(list(sampler))
    return [list(chain(*parts)) for parts in zip(*shares, strict=True)]


@pytest.mark.parametrize("world_size", [2, 3, 4, 6, 12])
def test_ranks_share_the_global_batch_of_one_process(world_size):
    assert batches(world_size, epoch=2) == batches(1, epoch=2)


def test_an_epoch_holds_each_sample_at_most_once_and_drops_the_rest():
    keys = list(chain(*batches(1, epoch=4)))
    assert len(keys) == 48
    assert len({key.sample for key in keys}) == 48
    assert {key.epoch for key in keys} == {4}
    assert all(0 <= key.sample < 50 for key in keys)


def test_another_epoch_or_seed_is_another_order():
    assert batches(1, epoch=0) != batches(1, epoch=1)
    assert list(GlobalBatchSampler(50, 12, seed=1)) != list(GlobalBatchSampler(50, 12, seed=2))


def test_without_shuffling_the_order_is_that_of_the_data():
    keys = list(chain(*batches(2, epoch=3, shuffle=False)))
    assert keys == [SampleKey(i, 3) for i in range(48)]


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_later_start_skips_whole_batches_without_changing_the_length(world_size):
    assert batches(world_size, epoch=1, start=3) == batches(1, epoch=1)[3:]
    sampler = GlobalBatchSampler(50, 12)
    sampler.start_batch = 3
    assert len(sampler) == 4
    assert len(list(sampler)) == 1
    assert len(list(sampler)) == 4  # the start held for one iteration


def test_the_position_is_asked_at_each_iteration():
    positions = iter([(0, 2), (1, 0)])
    sampler = GlobalBatchSampler(50, 12, seed=5, position=lambda: next(positions))
    sampler.set_epoch(9)
    assert list(sampler) == batches(1, epoch=0)[2:]
    assert list(sampler) == batches(1, epoch=1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_sees_each_sample_once_in_order(world_size):
    stretches = [list(EvaluationSampler(23, rank, world_size)) for rank in range(world_size)]
    assert list(chain(*stretches)) == [SampleKey(i, 0) for i in range(23)]
    assert max(map(len, stretches)) - min(map(len, stretches)) <= 1
    assert [len(EvaluationSampler(23, rank, world_size)) for rank in range(world_size)] == list(map(len, stretches))


def test_indivisible_batches_name_the_nearest_sizes():
    with pytest.raises(ValueError, match=r"divisible by the 3 processes, got 10\. The nearest sizes are 9 and 12"):
        GlobalBatchSampler(50, 10, 0, 3)
    with pytest.raises(ValueError, match="The nearest sizes are 4\\."):
        GlobalBatchSampler(50, 3, 0, 4)


def test_a_batch_larger_than_the_data_names_the_largest_size():
    with pytest.raises(ValueError, match=r"is 64, but there are only 50 samples\. Choose at most 48"):
        GlobalBatchSampler(50, 64, 0, 4)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        GlobalBatchSampler(50, 0)
