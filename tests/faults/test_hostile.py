"""Files from strangers that would run code or write elsewhere: refused, or read without either."""

import hashlib
import io
import os
import pickle
import tarfile
import time

import pytest
import torch
from runs import ONE, fit
from torchvision.io import encode_png

from siglightning.runtime.sidecar import Sidecar

TINY = ONE.replace("max_steps: 6", "max_steps: 2")


class Gadget:
    """Makes the folder ``witness`` in the working directory when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("witness",)


@pytest.fixture
def there(tmp_path, monkeypatch):
    """The working directory of the runs, where the gadget works: shown first, in the way that is unsafe."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Gadget()))
    (tmp_path / "witness").rmdir()
    yield tmp_path
    assert not (tmp_path / "witness").exists()


def evil_checkpoint(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "optimizer_states": [Gadget()], "global_step": 9}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    Sidecar(digest, path.stat().st_size, 9, resumable=True).write(path)


def refused(folder, *flags, **options):
    """Seconds of a command that must end with exit code 2 and one line."""
    ended = fit(folder, "run", *flags, **options)
    assert ended.code == 2, ended.output
    (error,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in ended.output
    return error, ended.seconds


@pytest.mark.parametrize("door", [
    "newest of the run",
    pytest.param("--ckpt_path", marks=pytest.mark.slow),
    pytest.param("--init_from", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_checkpoint_that_would_run_code(there, observe, door):
    """The checksum beside it is right: whoever made the one has made the other."""
    path = there / ("run/checkpoints/step-00000009.ckpt" if door == "newest of the run" else "evil.ckpt")
    evil_checkpoint(path)
    if door == "newest of the run":
        (there / "run" / "config.yaml").write_text("trainer: {}\n")
    error, seconds = refused(there, *([] if door == "newest of the run" else [f"{door}=evil.ckpt"]), config=TINY)
    assert "code" in error
    assert path.name in error
    observe(
        f"malicious checkpoint (a pickle that runs a command; right checksum): {door}",
        expected="refused, nothing is executed, exit 2",
        observed="refused in one line that names the file, nothing executed, exit 2",
        seconds=seconds,
    )


CONFIGS = {
    "os.system": "{model: {init_args: {optimizer: {class_path: os.system, init_args: {command: mkdir witness}}}}}",
    "subprocess.Popen": "{trainer: {logger: {class_path: subprocess.Popen, init_args: {args: [mkdir, witness]}}}}",
    "builtins.eval": "{data: {class_path: builtins.eval, init_args: {source: \"__import__('os').mkdir('witness')\"}}}",
    "a yaml tag": "trainer: !!python/object/apply:os.mkdir [witness]",
    "a module beside it": "{trainer: {callbacks: [{class_path: strange.Callback}]}}",
    "a command that writes a tar": "{data: {class_path: WebDatasetDataModule, init_args: {resampled: true, "
    "samples_per_epoch: 9, train: 'pipe:mkdir witness'}}}",
    "a command in braces": "{data: {class_path: WebDatasetDataModule, init_args: {resampled: true, "
    "samples_per_epoch: 9, train: 'pip{e:mkdir witness,e:true}'}}}",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_would_run_code(there, observe, name):
    (there / "strange.py").write_text("import os\nos.mkdir('witness')\n")
    (there / "evil.yaml").write_text(CONFIGS[name])
    ended = fit(there, "run", "--config", "evil.yaml", config=TINY)
    assert ended.code == 2, ended.output
    assert ended.output.count("error: ") == 1, ended.output
    assert not (there / "run").exists()
    observe(
        f"malicious configuration: {name}",
        expected="refused, nothing is executed or imported, exit 2",
        observed="refused in one line, nothing executed or imported, no run directory, exit 2",
        seconds=ended.seconds,
    )


def add(tar, name, content=b"", **header):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in header.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(content))


def evil_tar(path, secret, pictures):
    """Samples whose names leave the folder, and members that are links and devices instead of files."""
    picture = encode_png(torch.zeros(3, 32, 32, dtype=torch.uint8)).numpy().tobytes()
    with tarfile.open(path, "w") as tar:
        for number in range(pictures):
            name = (f"../witness-{number}", f"{secret.parent}/witness-{number}", f"a/../../witness-{number}")[
                number % 3
            ]
            add(tar, f"{name}.png", picture)
            add(tar, f"{name}.txt", f"caption {number}".encode())
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            add(tar, "link.txt", type=kind, linkname=str(secret))
            add(tar, "link.png", type=kind, linkname="../../picture.png")
        add(tar, "witness.png", type=tarfile.CHRTYPE, devmajor=1, devminor=5)
        add(tar, "pipe.txt", type=tarfile.FIFOTYPE)


TARS = """
data:
  class_path: siglightning.data.WebDatasetDataModule
  init_args: {{global_batch_size: 12, train: evil.tar, {more}}}
"""
KINDS = {
    "by position": "val_fraction: 0.2",
    "as a stream": "resampled: true, samples_per_epoch: 24, shuffle_buffer: 12, val: evil.tar",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_tar_whose_members_leave_their_folder(there, observe, kind):
    """Its samples are pictures like others: trained on, from memory. With links alone it has none."""
    secret = there / "secret.txt"
    secret.write_text("of somebody else")
    flag = f"--config={there}/tar.yaml"
    (there / "tar.yaml").write_text(TARS.format(more=KINDS[kind]))
    evil_tar(there / "evil.tar", secret, 48)
    before, begun = {path.name for path in there.parent.iterdir()}, time.monotonic()
    ended = fit(there, "run", flag, config=TINY)
    assert ended.code == 0, ended.output
    assert {path.name for path in there.parent.iterdir()} == before
    assert not list(there.rglob("*witness*"))
    assert all(b"of somebody else" not in path.read_bytes() for path in (there / "run").rglob("*") if path.is_file())
    seconds = time.monotonic() - begun
    evil_tar(there / "evil.tar", secret, 0)
    empty = fit(there, "empty", flag, config=TINY)
    assert empty.code == 2, empty.output
    observe(
        f"malicious tar, read {kind}: names ../x and /x, links out of it, a device, a pipe",
        expected="nothing is written outside or read through a link; exit 2 where no sample is left",
        observed="nothing written but the run directory, links and devices passed over; exit 2 without samples",
        seconds=seconds,
    )
