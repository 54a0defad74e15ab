"""A loading process is killed, or fails: the run ends, says why, leaves no process behind, and goes on to the bit."""

import json
from functools import reduce

import pytest
import torch
from runs import NO_CALLBACKS, ONE, SMALL, assert_same_run, callback, fit, gone, undisturbed, wait_until
from torchvision.io import write_png

STEPS = 40


def loading(text):
    """Two loading processes a process."""
    more = {"max_steps: 6": f"max_steps: {STEPS}", "size: 12}": "size: 12, num_workers: 2}"}
    return reduce(lambda before, old: before.replace(old, more[old]), more, text)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_killed_loading_process_ends_the_run(tmp_path, observe, ranks):
    config, note = loading(ONE if ranks == 1 else SMALL), tmp_path / "time"
    whole = undisturbed(tmp_path, config=config)
    fault = callback("KillWorker", rank=ranks - 1, step=5, note=str(note), pids=str(tmp_path))
    killed = fit(tmp_path, "killed", fault, config=config)
    seconds = killed.ended - note.stat().st_mtime
    assert killed.code == (1 if ranks == 1 else 4), killed.output  # rank 0 has lost another rank, and says why
    errors = [line for line in killed.output.splitlines() if line.startswith("error: ")]
    assert sum("A loading process was killed" in line for line in errors) >= 1, killed.output
    assert "lower `data.num_workers`" in killed.output
    assert "the same command goes on" in killed.output
    pids = [pid for path in tmp_path.glob("*.pids") for pid in json.loads(path.read_text())]
    assert len(pids) == 3 * ranks
    wait_until(lambda: all(gone(pid) for pid in pids))
    rest = fit(tmp_path, "killed", NO_CALLBACKS, config=config)
    assert rest.code == 0, rest.output
    assert "Resuming killed from step" in rest.output
    assert_same_run(tmp_path / "killed", whole)
    observe(
        f"kill -9 of one of two loading processes of rank {ranks - 1} of {ranks}",
        expected="the run ends with a message, exit not 0, no process is left; the same command goes on to the bit",
        observed=f"exit {killed.code}, the message says what was killed and what to do; resumed to the bit",
        seconds=seconds,
    )


@pytest.mark.slow
def test_an_error_in_a_loading_process_names_the_sample(tmp_path, observe):
    for number in range(24):
        path = tmp_path / "pictures" / ("val" if number > 20 else "train") / f"class {number % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(torch.full((3, 40, 40), 10 * number, dtype=torch.uint8), str(path))
    data = {"class_path": "siglightning.data.FolderDataModule", "init_args": {"root": "pictures", "num_workers": 2}}
    data["init_args"] |= {"global_batch_size": 12}
    fault = callback("BreakReading", file="class 1/4.png")
    failed = fit(tmp_path, "run", f"--config={json.dumps({'data': data})}", fault, config=loading(ONE))
    assert failed.code == 1, failed.output
    assert "class 1/4.png) failed: KeyError('what went wrong')" in failed.output
    observe(
        "an exception in a loading process",
        expected="exit not 0, the sample is named",
        observed="exit 1, the message names the sample by its file",
        seconds=failed.seconds,
    )
