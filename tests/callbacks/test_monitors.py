"""Throughput, memory and progress on real runs of a tiny Trainer."""

import gc
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch.utils.data import DataLoader, Dataset

import siglightning.callbacks.progress as progress_module
import siglightning.callbacks.throughput as throughput_module
from siglightning.callbacks import MemoryMonitor, RunProgressBar, ThroughputMonitor
from siglightning.callbacks.device_peak import peak_tflops
from siglightning.callbacks.memory import peak_bytes, process_tree_pss_bytes
from siglightning.callbacks.progress import clock, total_steps
from siglightning.models import ImageEncoder, TowerConfig
from siglightning.models.flops import step_flops


class Clock:
    """A clock that the run itself moves, so that rates are exact."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Pictures(Dataset):
    """Loading a picture takes a quarter of a second on the run's clock."""

    def __init__(self, clock, length=96, size=2):
        self.clock, self.length, self.size = clock, length, size

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.clock.now += 0.25
        return {"image": torch.zeros(3, self.size, self.size, dtype=torch.uint8)}


class Task(LightningModule):
    """A training step takes three seconds, one of validation 1,000."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        self.clock.now += 3.0
        self.log("train/loss", torch.tensor(1.0 / (1 + self.global_step)))
        return self.weight.sum() * 0.0

    def validation_step(self, batch, batch_idx):
        self.clock.now += 1000.0

    def test_step(self, batch, batch_idx):
        self.clock.now += 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Recorder(Callback):
    """Keeps what reached the loggers' store at each step."""

    def __init__(self, prefix):
        self.prefix, self.seen = prefix, {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen[trainer.global_step] = {
            name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith(self.prefix)
        }

    def on_train_end(self, trainer, pl_module):
        self.on_train_batch_start(trainer, pl_module, None, 0)


@pytest.fixture
def run_clock(monkeypatch):
    ticking = Clock()
    monkeypatch.setattr(throughput_module, "perf_counter", ticking)
    monkeypatch.setattr(progress_module, "perf_counter", ticking)
    return ticking


def tiny_trainer(tmp_path, *callbacks, **options):
    options = {"devices": 1, "max_steps": 12, "log_every_n_steps": 4, "val_check_interval": 6} | options
    bar = any(isinstance(callback, RunProgressBar) for callback in callbacks)
    return Trainer(
        accelerator="cpu", callbacks=list(callbacks), default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=bar, enable_model_summary=False,
        num_sanity_val_steps=0, limit_val_batches=2, **options,
    )  # fmt: skip


def loader(ticking, **options):
    return DataLoader(Pictures(ticking, **options), batch_size=8)


def test_throughput_counts_images_and_waits_but_not_validation(tmp_path, run_clock):
    """A step of eight images costs 2 s of loading and 3 s of work; validation's 2,004 s at step 6 count for nothing."""
    recorder = Recorder("throughput")
    trainer = tiny_trainer(tmp_path, ThroughputMonitor(), recorder)
    trainer.fit(Task(run_clock), loader(run_clock), loader(run_clock))
    assert recorder.seen[3] == {}
    for step in (4, 8, 12):
        assert recorder.seen[step] == pytest.approx({"throughput/images_per_s": 8 / 5, "throughput/data_wait": 2 / 5})


def test_throughput_with_accumulation_counts_every_micro_batch_and_logs_once_a_step(tmp_path, run_clock):
    class Counting(Task):
        num_logged = 0

        def log(self, name, value, **options):
            self.num_logged += name == "throughput/images_per_s"
            super().log(name, value, **options)

    recorder, task = Recorder("throughput"), Counting(run_clock)
    options = {"max_steps": 6, "log_every_n_steps": 2, "accumulate_grad_batches": 2, "val_check_interval": 12}
    tiny_trainer(tmp_path, ThroughputMonitor(), recorder, **options).fit(task, loader(run_clock))
    assert recorder.seen[6]["throughput/images_per_s"] == pytest.approx(8 / 5)
    assert task.num_logged == 3


class Towers(Task):
    """Its network is what the operations are counted of; training it is not the point."""

    def __init__(self, clock, network):
        super().__init__(clock)
        self.network = network


@pytest.mark.parametrize("accumulated", [1, 2])
def test_operations_are_those_of_the_images_and_their_share_is_of_the_peak(tmp_path, run_clock, accumulated):
    network = ImageEncoder(TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1], "groups": 4}), image_size=32)
    recorder, peak = Recorder("throughput"), 1e-9
    options = {"max_steps": 6, "log_every_n_steps": 2, "accumulate_grad_batches": accumulated, "val_check_interval": 12}
    monitor = ThroughputMonitor(peak_tflops=peak)
    tiny_trainer(tmp_path, monitor, recorder, **options).fit(Towers(run_clock, network), loader(run_clock, size=32))
    flops = step_flops(network, {"image": torch.zeros(8, 3, 32, 32, dtype=torch.uint8)})
    assert flops > 8 * 2 * 32 * 32  # something was counted
    found = recorder.seen[6]
    assert found["throughput/tflops_per_s"] == pytest.approx(flops / 5 / 1e12)
    assert found["throughput/mfu"] == pytest.approx(flops / 5 / 1e12 / peak)


def test_what_cannot_be_counted_is_not_logged_and_ends_nothing(tmp_path, run_clock):
    network = ImageEncoder(TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1], "groups": 4}), image_size=32)
    network.image_tower.plain_features = lambda image: image.mean().item()
    recorder = Recorder("throughput")
    tiny_trainer(tmp_path, ThroughputMonitor(), recorder).fit(Towers(run_clock, network), loader(run_clock, size=32))
    assert set(recorder.seen[12]) == {"throughput/images_per_s", "throughput/data_wait"}


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312.0),
        ("NVIDIA A100-SXM4-80GB", "32-true", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16-mixed", None),
        ("GRID A100-10C", "bf16-mixed", None),
        ("NVIDIA A100-1-5C", "bf16-mixed", None),
        ("NVIDIA L40S-12Q", "bf16-mixed", None),
        ("NVIDIA H100 80GB HBM3", "bf16-true", 989.5),
        ("NVIDIA H100 PCIe", "16-mixed", 756.5),
        ("NVIDIA H100 NVL", "bf16-mixed", 835.5),
        ("NVIDIA H200", "bf16-mixed", 989.5),
        ("NVIDIA GH200 480GB", "bf16-mixed", 989.5),
        ("NVIDIA L40S", "bf16-mixed", 362.0),
        ("NVIDIA L4", "bf16-mixed", 121.0),
        ("NVIDIA L40", "bf16-mixed", None),
        ("NVIDIA GeForce RTX 2060", "16-mixed", None),
    ],
)
def test_peaks_are_of_known_devices_in_half_precision(name, precision, peak):
    assert peak_tflops(name, precision) == peak


def test_a_peak_must_be_above_zero():
    with pytest.raises(ValueError, match=r"peak_tflops above 0, .*got 0"):
        ThroughputMonitor(peak_tflops=0)


def test_no_logging_interval_means_no_logging(tmp_path, run_clock):
    recorder = Recorder(("throughput", "memory"))
    trainer = tiny_trainer(tmp_path, ThroughputMonitor(), MemoryMonitor(), recorder, log_every_n_steps=0)
    trainer.fit(Task(run_clock), loader(run_clock))
    assert recorder.seen[12] == {}


class RateOnOwnClock(Recorder):
    """In each process a clock of its own; the first one's rates go to a file."""

    def __init__(self, path):
        super().__init__("throughput")
        self.path = path

    def on_fit_start(self, trainer, pl_module):
        throughput_module.perf_counter = pl_module.clock

    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        if trainer.is_global_zero:
            self.path.write_text(json.dumps(self.seen[trainer.global_step]))


@pytest.mark.slow
def test_throughput_is_that_of_all_processes(tmp_path):
    """Each of two processes does eight images in 3 s; the pictures of a spawned process come from a clock apart."""
    task = Task(Clock())
    recorder = RateOnOwnClock(tmp_path / "rate.json")
    options = {"devices": 2, "strategy": "ddp_spawn", "max_steps": 4, "log_every_n_steps": 2, "val_check_interval": 6}
    trainer = tiny_trainer(tmp_path, ThroughputMonitor(), recorder, **options)
    trainer.fit(task, DataLoader(Pictures(Clock()), batch_size=8))
    rates = json.loads(recorder.path.read_text())
    assert rates == pytest.approx({"throughput/images_per_s": 16 / 3, "throughput/data_wait": 0.0})


def test_memory_is_logged_and_holds_a_big_tensor(tmp_path, run_clock):
    """256 MiB that a step fills and drops must show up in the peak, and stay in it."""
    recorder = Recorder("memory")

    class Hungry(Task):
        def training_step(self, batch, batch_idx):
            before = process_tree_pss_bytes(os.getpid())
            if self.global_step == 5:
                self.ballast = torch.ones(256 * 2**20, dtype=torch.uint8)
                self.gained = process_tree_pss_bytes(os.getpid()) - before
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                self.resident_mib = pages * os.sysconf("SC_PAGESIZE") / 2**20
            if self.global_step == 9:
                del self.ballast
                gc.collect()
            return super().training_step(batch, batch_idx)

    task = Hungry(run_clock)
    tiny_trainer(tmp_path, MemoryMonitor(), recorder).fit(task, loader(run_clock))
    assert task.gained == pytest.approx(256 * 2**20, rel=0.05)
    assert recorder.seen[8]["memory/pss_peak_mib"] - recorder.seen[4]["memory/pss_peak_mib"] > 200
    assert recorder.seen[12]["memory/pss_peak_mib"] >= recorder.seen[8]["memory/pss_peak_mib"]
    assert recorder.seen[8]["memory/peak_mib"] >= 0.99 * task.resident_mib  # the kernel counts pages in batches
    assert recorder.seen[8]["memory/peak_mib"] < 64 * 1024


HOLD_200_MIB = "ballast = bytearray(b'x' * 2**20) * 200; print('ready', flush=True); input()"


def test_pss_includes_child_processes_and_missing_ones_read_as_none():
    before = process_tree_pss_bytes(os.getpid())
    with subprocess.Popen([sys.executable, "-c", HOLD_200_MIB], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        during = process_tree_pss_bytes(os.getpid())
        child.communicate(b"\n")
    assert during - before > 180 * 2**20
    assert process_tree_pss_bytes(child.pid) is None
    assert peak_bytes(torch.device("cpu")) > 50 * 2**20


def test_without_terminal_a_line_each_quarter_with_rate_loss_and_time_left(tmp_path, run_clock):
    out = io.StringIO()
    bar = RunProgressBar(percent_per_line=25, console=Console(file=out))
    trainer = tiny_trainer(tmp_path, bar, val_check_interval=12)
    trainer.fit(Task(run_clock), loader(run_clock), loader(run_clock))
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    # 3 steps of 5 s each for 24 images; 9 steps of 5 s are left.
    assert lines[0] == "step 3/12 (25%)  loss 0.3333  2 images/s  0:45 left"
    assert [line.split()[1] for line in lines] == ["3/12", "6/12", "9/12", "12/12"]
    assert lines[-1].endswith("0:00 left")


def test_last_step_has_its_line_even_out_of_turn(tmp_path, run_clock):
    out = io.StringIO()
    bar = RunProgressBar(percent_per_line=30, console=Console(file=out))
    tiny_trainer(tmp_path, bar).fit(Task(run_clock), loader(run_clock))
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["4/12", "8/12", "11/12", "12/12"]


def test_time_left_counts_validation_that_has_been_seen(tmp_path, run_clock):
    out = io.StringIO()
    bar = RunProgressBar(percent_per_line=25, console=Console(file=out))
    tiny_trainer(tmp_path, bar, val_check_interval=3).fit(Task(run_clock), loader(run_clock), loader(run_clock))
    after_one = out.getvalue().splitlines()[1]
    assert "  2 images/s  " in after_one  # 24 images in 15 s, validation left out
    # 2,004 s of validation and 6 steps of 5 s, once more in the remaining half: over half an hour.
    assert re.search(r"(\d+):\d\d left", after_one).group(1) in {"33", "34"}


def test_bar_on_a_terminal_shows_the_same_facts(tmp_path, run_clock):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120, _environ={})
    bar = RunProgressBar(console=console)
    trainer = tiny_trainer(tmp_path, bar)
    trainer.fit(Task(run_clock), loader(run_clock), loader(run_clock))
    text = out.getvalue()
    assert "12/12" in text
    assert "images/s" in text
    assert "loss 0.0833" in text
    assert "0:00 left" in text
    trainer.test(Task(run_clock), loader(run_clock), verbose=False)
    assert "testing" in out.getvalue()


def test_resumed_run_measures_its_own_steps_only(tmp_path, run_clock):
    trainer = tiny_trainer(tmp_path, max_steps=6)
    trainer.fit(Task(run_clock), loader(run_clock))
    trainer.save_checkpoint(tmp_path / "six.ckpt")
    out = io.StringIO()
    bar = RunProgressBar(percent_per_line=25, console=Console(file=out))
    again = tiny_trainer(tmp_path, bar)
    again.fit(Task(run_clock), loader(run_clock), ckpt_path=tmp_path / "six.ckpt", weights_only=False)
    first = out.getvalue().splitlines()[0]
    assert first.startswith("step 9/12 (75%)")
    assert first.endswith("0:15 left")


def test_disabled_bar_is_silent(tmp_path, run_clock):
    out = io.StringIO()
    bar = RunProgressBar(percent_per_line=25, console=Console(file=out))
    bar.disable()
    tiny_trainer(tmp_path, bar).fit(Task(run_clock), loader(run_clock))
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_steps": 20, "max_epochs": 3}, 18),
        ({"max_steps": 7}, 7),
        ({"max_epochs": 2, "max_steps": -1, "accumulate_grad_batches": 5}, 4),
        ({"max_epochs": -1, "max_steps": -1}, None),
    ],
)
def test_total_steps_is_the_nearer_end(tmp_path, options, expected):
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", default_root_dir=tmp_path, **options)
    trainer.fit_loop.max_batches = 6
    assert total_steps(trainer) == expected
    trainer.fit_loop.max_batches = math.inf
    assert total_steps(trainer) == (options["max_steps"] if options["max_steps"] > 0 else None)


def test_clock_and_misuse():
    assert [clock(s) for s in (0, 59.6, 61, 3725)] == ["0:00", "1:00", "1:01", "1:02:05"]
    with pytest.raises(ValueError, match="percent_per_line"):
        RunProgressBar(percent_per_line=0)
