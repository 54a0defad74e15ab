"""Checkpoint files are whole or absent, verified when read, and never run code."""

import hashlib
import os
import shutil
import signal
import subprocess

import pytest
import torch

from siglightning.runtime.checkpoint import (
    AtomicCheckpointIO,
    DamagedCheckpointError,
    newest_intact,
    require_same_model,
)
from siglightning.runtime.differences import state_differences
from siglightning.runtime.migrations import FORMAT, KEY
from siglightning.runtime.sidecar import Sidecar


def checkpoint(step=5, resumable=True):
    state = {"state_dict": {"weight": torch.arange(2000.0)}, "global_step": step}
    return state | ({"optimizer_states": [{"momentum": torch.ones(3)}]} if resumable else {})


def save(folder, step, resumable=True):
    path = folder / f"step-{step:08d}.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(step, resumable), path)
    return path


class Gadget:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class FailsHalfWay:
    """A disk that becomes full while this is written."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


def test_what_is_saved_comes_back_and_nothing_else_is_left(tmp_path):
    path = save(tmp_path, 5)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name, path.name + ".sha256"]
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    torch.testing.assert_close(loaded, checkpoint(5) | {KEY: FORMAT}, rtol=0, atol=0)
    AtomicCheckpointIO().remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_the_checksum_is_of_the_file_and_sha256sum_reads_it(tmp_path):
    path = save(tmp_path, 5)
    assert hashlib.sha256(path.read_bytes()).hexdigest() in path.with_name(path.name + ".sha256").read_text()
    if shutil.which("sha256sum"):
        command = ["sha256sum", "--check", "--strict", path.name + ".sha256"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_a_failing_save_leaves_the_old_file(tmp_path):
    path = save(tmp_path, 5)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(5) | {"x": FailsHalfWay()}, path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
    AtomicCheckpointIO().load_checkpoint(path)


def test_no_reader_ever_sees_a_part(tmp_path, monkeypatch):
    """While the content is written, the final name still holds the whole old file."""
    path = save(tmp_path, 5)
    seen = []
    real_save = torch.save

    def watching_save(content, file):
        real_save(content, file)
        seen.append(AtomicCheckpointIO().load_checkpoint(path)["global_step"])

    monkeypatch.setattr(torch, "save", watching_save)
    AtomicCheckpointIO().save_checkpoint(checkpoint(6), path)
    assert seen == [5]
    assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == 6


@pytest.mark.parametrize("before", [None, 5])
def test_a_save_cut_off_before_the_name_is_taken_leaves_what_was_there(tmp_path, before):
    """The checksum is there first, and knows the file that it replaces; cut off twice in a row, too."""
    path = tmp_path / "last.ckpt"
    if before is not None:
        AtomicCheckpointIO().save_checkpoint(checkpoint(before), path)
    for step in (6, 7):
        child = os.fork()
        if child == 0:
            os.replace = dying_at(path, os.replace)
            AtomicCheckpointIO().save_checkpoint(checkpoint(step), path)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        assert Sidecar.read(path).global_step == step
        found = newest_intact(tmp_path)
        assert (found.global_step, found.passed_over) == (before or 0, [])
    if before is not None:
        assert AtomicCheckpointIO().load_checkpoint(path)["global_step"] == before
        path.write_bytes(path.read_bytes()[:-3])
        assert "truncated" in newest_intact(tmp_path).passed_over[0]
    AtomicCheckpointIO().save_checkpoint(checkpoint(8), path)
    assert newest_intact(tmp_path).global_step == 8


def dying_at(path, replace):
    """``os.replace``, but the process is killed where ``path`` would get its new content."""

    def rename(source, target):
        if target == path:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    return rename


def test_objects_that_need_code_are_refused_when_saved(tmp_path):
    with pytest.raises(TypeError, match=r"step-1.ckpt would hold objects that cannot be loaded safely"):
        AtomicCheckpointIO().save_checkpoint(checkpoint() | {"x": Gadget(tmp_path / "owned")}, tmp_path / "step-1.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("weights_only", [True, False, None])
def test_code_in_a_file_never_runs(tmp_path, weights_only):
    path = tmp_path / "evil.ckpt"
    torch.save({"x": Gadget(tmp_path / "owned")}, path)
    with pytest.raises(DamagedCheckpointError, match="only running its code could restore"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=weights_only)
    assert not (tmp_path / "owned").exists()


def test_damage_is_named(tmp_path):
    path = save(tmp_path, 5)
    content = path.read_bytes()
    path.write_bytes(content[:-7])
    with pytest.raises(
        DamagedCheckpointError, match=rf"truncated: expected {len(content)} bytes, it has {len(content) - 7}"
    ):
        AtomicCheckpointIO().load_checkpoint(path)
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    torch.load(path, weights_only=True)  # torch does not notice a flipped bit
    with pytest.raises(DamagedCheckpointError, match="does not match its SHA-256"):
        AtomicCheckpointIO().load_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "gone.ckpt")


def test_the_newest_intact_one_is_found(tmp_path):
    assert newest_intact(tmp_path / "missing").path is None
    paths = {step: save(tmp_path, step) for step in (900, 1000, 11000, 12000)}
    save(tmp_path, 13000, resumable=False)
    paths[12000].write_bytes(b"PK")
    paths[11000].with_name(paths[11000].name + ".sha256").unlink()
    found = newest_intact(tmp_path)
    assert (found.path, found.global_step) == (paths[1000], 1000)
    assert len(found.passed_over) == 2
    assert "step-00011000.ckpt has no step-00011000.ckpt.sha256" in found.passed_over[0]
    assert "step-00012000.ckpt is truncated" in found.passed_over[1]


def test_differences_of_models_are_named(tmp_path):
    model = {"a": torch.zeros(2, 3), "b": torch.zeros(4), "same": torch.zeros(1)}
    stored = {"a": torch.zeros(2, 5), "c": torch.zeros(1), "same": torch.ones(1)}
    assert state_differences(model, stored) == [
        "a is [2, 3] in the model and [2, 5] in the checkpoint",
        "b is missing from the checkpoint",
        "c is unknown to the model",
    ]
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {f"layer{index}": torch.zeros(1) for index in range(9)}}, path)
    with pytest.raises(ValueError, match=r"another model: a is missing .*; and 7 more\. Use the configuration"):
        require_same_model({"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)}, path)
    require_same_model({f"layer{index}": torch.zeros(1) for index in range(9)}, path)


def test_files_of_earlier_releases_are_brought_up_to_date(tmp_path):
    """Those of before there were formats have none; written by torch alone, as they were."""
    path = tmp_path / "step-00000005.ckpt"
    torch.save(checkpoint(5), path)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert (loaded[KEY], loaded["skipped_steps"]) == (FORMAT, 0)


@pytest.mark.parametrize("version", [FORMAT + 1, -1, "two"])
def test_files_of_later_releases_are_refused(tmp_path, version):
    path = tmp_path / "step-00000005.ckpt"
    torch.save(checkpoint(5) | {KEY: version}, path)
    with pytest.raises(ValueError, match=f"has format {version!r}; this release reads formats 0 to {FORMAT}. Install"):
        AtomicCheckpointIO().load_checkpoint(path)
