"""Killed at any step and resumed, on any number of processes: every sample is the undisturbed run's, to the byte."""

import json
import random
from functools import partial

import pytest
from witness import SIZE, seen, train, train_on_this_rank
from zoo import BATCH, NAMES, make, write_all

from siglightning.batch import InputSpec
from siglightning.distributed.local import RanksError, preload, run_ranks

STEPS = 11  # the third epoch is cut short; the embedded pictures never end their first one
preload("lightning.pytorch", "siglightning.data")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("zoo")
    write_all(root)
    return root


@pytest.fixture(scope="module")
def undisturbed(root, tmp_path_factory):
    steps = {}
    for name in NAMES:
        folder = str(tmp_path_factory.mktemp("undisturbed"))
        train(make(root, name), folder, STEPS)
        steps[name] = seen(folder)
    return steps


@pytest.fixture(scope="module")
def on_two(root, tmp_path_factory):
    """The first five steps of every run on two processes: the folder of each."""
    folders = {name: tmp_path_factory.mktemp("two") for name in NAMES}
    jobs = {name: {"folder": str(folder), "max_steps": 5} for name, folder in folders.items()}
    run_ranks(2, train_on_this_rank, partial(make, root), jobs)
    return folders


def keys_of(samples):
    return {sample.rpartition(" ")[0] for sample in samples}


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_full_and_change_with_the_epoch(undisturbed, name):
    steps = undisturbed[name]
    assert sorted(steps) == list(range(STEPS))
    assert all(len(set(samples)) == BATCH for samples in steps.values())
    if name == "embedded":
        return
    first, second = ({sample for step in range(begin, begin + 4) for sample in steps[step]} for begin in (0, 4))
    assert [steps[step] for step in range(4)] != [steps[step] for step in range(4, 8)]
    assert len(keys_of(first) & keys_of(second)) > 35
    assert not first & second  # the same pictures with other pixels, or in another view


@pytest.mark.parametrize("name", NAMES)
def test_killed_at_a_random_step_it_goes_on_with_the_same_bytes(root, undisturbed, tmp_path, name):
    die_at = random.Random(name).randrange(2, STEPS)
    jobs = {name: {"folder": str(tmp_path), "max_steps": STEPS, "die_at": die_at}}
    with pytest.raises(RanksError):
        run_ranks(1, train_on_this_rank, partial(make, root), jobs)
    before = seen(tmp_path)
    assert sorted(before) == list(range(die_at + 1))
    newest = max(tmp_path.glob("*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")))
    done = int(newest.stem.removeprefix("step="))
    assert done == die_at // 2 * 2
    (tmp_path / "again").mkdir()
    train(make(root, name), str(tmp_path / "again"), STEPS, resume=newest)
    assert seen(tmp_path / "again") == {step: undisturbed[name][step] for step in range(done, STEPS)}
    assert before == {step: undisturbed[name][step] for step in range(die_at + 1)}


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_see_the_batches_of_one(undisturbed, on_two, name):
    assert seen(on_two[name]) == {step: undisturbed[name][step] for step in range(5)}


def test_predictions_are_made_once_by_any_number_of_processes(root, tmp_path):
    run_ranks(3, train_on_this_rank, partial(make, root), {"folder": {"folder": str(tmp_path)}})
    shares = [samples for path in sorted(tmp_path.glob("seen-*")) for samples in seen_ids(path)]
    module = make(root, "folder")
    module.input_spec = InputSpec(SIZE, None)
    module.setup("predict")
    expected = [module.val_set[number]["id"] for number in range(6)]
    assert [key for share in shares for key in share] == expected


def seen_ids(path):
    return [samples for _, samples in map(json.loads, path.read_text().splitlines())]


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_another_number_of_processes_goes_on_with_the_same_batches(root, undisturbed, on_two, tmp_path, world_size):
    jobs = {}
    for name, folder in on_two.items():
        (tmp_path / name).mkdir()
        jobs[name] = {"folder": str(tmp_path / name), "max_steps": 9, "resume": str(folder / "step=4.ckpt")}
    run_ranks(world_size, train_on_this_rank, partial(make, root), jobs)
    for name in on_two:
        assert seen(tmp_path / name) == {step: undisturbed[name][step] for step in range(4, 9)}, name
