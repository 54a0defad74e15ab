"""W&B's folder is on a disk of its own, which is full in mid-run: training does not care, and says so."""

import csv
import subprocess
from contextlib import contextmanager

import pytest
import yaml
from runs import NO_CALLBACKS, SMALL, assert_same_bits, callback, fit, undisturbed

ALONE = {"strategy": "auto", "devices": 1, "max_steps": 8, "val_check_interval": 2}
ROOM_KIB = 512


@contextmanager
def own_disk(folder):
    """A file system of so much room on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM_KIB}k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a file system of its own needs the right to mount: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def losses(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return [(row["step"], row["train/loss"], row.get("val/loss")) for row in csv.DictReader(file)]


# W&B loses numbers without a word, of which its file tells at the end; writing pictures raises at once.
@pytest.mark.slow
@pytest.mark.parametrize(("validations", "reason"), [(1, "No space left on device"), (0, "ends before the run does")])
def test_a_full_disk_of_wandb_does_not_touch_training(validations, reason, tmp_path, observe):
    """The first start makes the run directory; the second finds the small disk in it, and the disk full at step 5."""
    config = yaml.safe_load(SMALL)
    config["trainer"] |= ALONE | {"limit_val_batches": validations}
    options = {"config": yaml.safe_dump(config)}
    expected = undisturbed(tmp_path, **options)
    run, wandb = tmp_path / "run", ("--config", "logger/wandb")
    begun = fit(tmp_path, "run", *wandb, callback("Fail", rank=0, step=3, note=str(tmp_path / "note")), **options)
    assert begun.code == 1, begun.output
    with own_disk(run / "wandb"):
        filling = callback("FillDisk", step=5, ballast=str(run / "wandb" / "ballast"), note=str(tmp_path / "pid"))
        ended = fit(tmp_path, "run", *wandb, NO_CALLBACKS, filling, **options)
        free = (run / "wandb" / "ballast").stat().st_size
    assert ended.code == 0, ended.output
    assert "from step 2" in ended.output
    assert free > 100 * 1024, "there was room until the disk was filled"
    assert ended.output.count("The record of W&B is incomplete") == 1
    assert reason in ended.output
    assert_same_bits(run, expected)
    assert losses(run) == losses(expected)
    assert len(losses(expected)) == 8
    observe(
        f"the disk of W&B's folder is full in mid-run, {'pictures' if validations else 'numbers alone'} on their way",
        expected="the run ends with code 0, weights equal to the bit; a warning names W&B's record",
        observed="code 0, weights and all losses equal to the bit; one warning",
        seconds=None,
    )
