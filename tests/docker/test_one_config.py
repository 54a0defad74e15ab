"""One configuration, without devices, nodes or strategy, by torchrun and by itself: the same run to the bit."""

import json

import pytest
from runs import SMALL, assert_same_bits, fit, torchrun, undisturbed

OPEN = "\n".join(line for line in SMALL.splitlines() if "strategy:" not in line and "devices:" not in line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds a run that torchrun started."""
    folder = tmp_path_factory.mktemp("one")
    ended = fit(folder, "launched", config=OPEN, launch=torchrun(2))
    assert ended.code == 0, ended.output
    assert ended.output.count("Run directory: launched") == 1
    return folder


def test_torchrun_needs_no_numbers(folder):
    assert json.loads((folder / "launched" / "env.json").read_text())["world_size"] == 2
    assert "devices: auto" in (folder / "launched" / "config.yaml").read_text()  # as it was given: it runs anywhere


@pytest.mark.slow
def test_the_command_by_itself_trains_the_same_weights(folder):
    assert_same_bits(folder / "launched", undisturbed(folder, "--trainer.devices=2", config=OPEN))


@pytest.mark.slow
def test_other_numbers_than_torchruns_end_all_processes_before_any_work(tmp_path):
    ended = fit(tmp_path, "refused", "--trainer.devices=3", config=OPEN, launch=torchrun(2))
    assert ended.code == 1, ended.output  # torchrun's for any code
    assert ended.output.count("Expected trainer.devices 2 and trainer.num_nodes 1") == 2
    assert not (tmp_path / "refused").exists()
