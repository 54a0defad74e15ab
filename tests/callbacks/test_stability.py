"""Spikes and collapses of real runs on the embedded drawings: told where they are, not told where they are not."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from stability_runs import BATCH, AllAlike, pictograms, pocket_task, trainer

from siglightning.callbacks import CollapseAlarm, SpikeMonitor
from siglightning.evaluation import SpikeCounter
from siglightning.runtime.metrics_csv import MetricsCsvLogger
from siglightning.runtime.metrics_file import read_metrics

STEPS, BAD = 70, (45, 60)
RULE = {"window": 20}


class Misaligned(Callback):
    """The first batch again and again, soon known by heart; at some steps every picture has the caption of another."""

    def __init__(self, first=None):
        self.first, self.losses = first, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.first = self.first or {name: batch[name].clone() for name in ("image", "text", "match_id")}
        batch.update(self.first)
        if trainer.global_step in BAD:
            batch["text"] = batch["text"].roll(1, 0)
            batch["match_id"] = torch.arange(BATCH)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"].item())


class Fetches(SpikeMonitor):
    """Keeps the steps at which losses left the device."""

    def __init__(self):
        super().__init__(**RULE)
        self.steps = []

    def _fetch(self):
        self.steps.append(self._trainer.global_step)
        super()._fetch()


def shaken(folder, *callbacks, ckpt_path=None):
    """A run with two batches that are a shock."""
    logger = MetricsCsvLogger(folder / "metrics.csv")
    run = trainer(folder, list(callbacks), logger=logger, max_steps=STEPS, log_every_n_steps=10)
    run.fit(pocket_task(lr=3e-3), pictograms(), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return run


def test_every_step_counts_though_losses_are_fetched_at_logged_ones_only(tmp_path):
    witness, monitor = Misaligned(), Fetches()
    shaken(tmp_path, monitor, witness)
    assert all(witness.losses[step] > 1.5 * witness.losses[step - 1] for step in BAD)
    expected = []
    for end in range(10, STEPS + 1, 10):
        reference = SpikeCounter(**RULE)
        reference.add(witness.losses[:end])
        expected.append(reference.count)
    assert read_metrics(tmp_path / "metrics.csv")["train/spikes"].values.tolist() == expected
    assert expected[3] == 0
    assert expected[-1] == 2
    assert monitor.steps == list(range(10, STEPS + 1, 10))


class Saver(Callback):
    """Saves after one step."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_count_goes_on_after_a_resume_from_between_two_logged_steps(tmp_path):
    """Saved in the middle of the first spike, with six losses still on the device."""
    path = tmp_path / "46.ckpt"
    whole, second, witness = SpikeMonitor(**RULE), SpikeMonitor(**RULE), Misaligned()
    shaken(tmp_path, whole, witness, Saver(46, path))
    saved = next(iter(torch.load(path, weights_only=True)["callbacks"].values()))
    assert saved == {"count": 1, "recent": witness.losses[26:46], "is_above": True}
    shaken(tmp_path, second, Misaligned(witness.first), ckpt_path=path)
    assert second.state_dict() == whole.state_dict()
    assert second.state_dict()["count"] == 2


def alarms(folder, task, data, steps=80, alarm=None):
    """Warnings of an alarm; the largest cosine and the smallest rank that were logged after a quarter of the run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger = MetricsCsvLogger(folder / "metrics.csv")
        run = trainer(folder, [alarm or CollapseAlarm()], logger=logger, max_steps=steps, log_every_n_steps=2)
        run.fit(task, data)
    told = [str(item.message) for item in caught if "collapsed" in str(item.message)]
    metrics = read_metrics(folder / "metrics.csv")
    late = slice(steps // 8, None)  # logged every second step: the later three quarters
    cosine = max(metrics[f"train/{side}_mean_cosine"].values[late].max() for side in ("image", "text"))
    rank = min(metrics[f"train/{side}_effective_rank"].values[late].min() for side in ("image", "text"))
    return told, cosine, rank


def test_a_sound_run_raises_no_alarm(tmp_path):
    told, cosine, rank = alarms(tmp_path, pocket_task(), pictograms())
    assert told == []
    assert cosine < 0.99  # 0.984: captions pass through a narrow cone before they come apart
    assert rank > 3


def test_a_learning_rate_far_too_high_raises_it_once(tmp_path):
    told, cosine, _ = alarms(tmp_path, pocket_task(lr=0.1, warmup=0), pictograms())
    assert len(told) == 1
    assert "text embeddings have a mean cosine of" in told[0]
    assert "Look at the learning rate and its warm-up first" in told[0]
    assert "\n" not in told[0]
    assert cosine > 0.999


def test_captions_all_alike_raise_it(tmp_path):
    told, _, rank = alarms(tmp_path, pocket_task(match="none"), AllAlike(global_batch_size=BATCH), steps=30)
    assert len(told) == 1
    assert "text embeddings have a mean cosine of 1.000 and an effective rank of 1.0" in told[0]
    assert rank == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("cosine", "rank"), [(torch.nan, 9.0), (0.5, torch.nan), (torch.nan, torch.nan)])
def test_numbers_that_are_none_are_not_sound(cosine, rank):
    """NaN is neither above nor below a threshold; rows of zeros have it for a rank."""
    logged = {"train/image_mean_cosine": cosine, "train/image_effective_rank": rank}
    assert "nan" in CollapseAlarm()._complaint(SimpleNamespace(callback_metrics=logged), "image")
    sound = {"train/image_mean_cosine": 0.5, "train/image_effective_rank": 9.0}
    assert CollapseAlarm()._complaint(SimpleNamespace(callback_metrics=sound), "image") == ""


def test_the_alarm_waits_for_the_warm_up_and_remembers_that_it_rang(tmp_path):
    """Captions alike from the first step on, never sound: logged steps count from the fourth of 40 steps on."""
    alarm = CollapseAlarm(patience=3)
    data = AllAlike(global_batch_size=BATCH)
    told, _, _ = alarms(tmp_path, pocket_task(match="none"), data, steps=40, alarm=alarm)
    assert "by step 8:" in told[0]
    again = CollapseAlarm(patience=3)
    again.load_state_dict(alarm.state_dict())
    assert alarms(tmp_path, pocket_task(match="none"), data, steps=20, alarm=again)[0] == []


@pytest.mark.parametrize("options", [{"max_cosine": 2.0}, {"min_rank": 0.5}, {"patience": 0}])
def test_wrong_alarms_are_refused(options):
    with pytest.raises(ValueError, match=r"The defaults are 0\.995, 1\.5 and 5"):
        CollapseAlarm(**options)
