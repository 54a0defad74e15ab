"""What a configuration changed since the last start of its run, and which changes make another run of it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

import siglightning
from siglightning.runtime.environment import describe_environment
from siglightning.runtime.rundir import RunDir

# Of these parts every argument decides what is trained, except for what follows: evaluation, inference, how the same
# sums are added up, and where data lie or how they are loaded. Data modules compare what they find there themselves.
_FREE = {
    "model": {"micro_batch_size", "chunk_size", "comm", "allow_accumulation", "templates", "prompts", "temperature"}
    | {"accumulators", "backend", "compile_towers", "fused", "foreach"}
    | {"thresholds", "per_class_bias", "calibration_file", "calibration_in_fit"},
    "data": {"root", "path", "image_root", "train", "val", "tests", "cache_dir", "cache_gib", "storage_options"}
    | {"download", "num_workers", "eval_batch_size", "eval_captions", "test_styles", "zeroshot_sets"}
    | {"max_bad_fraction", "allow_changed_data"},
}
# Of all other parts none does, except for these. The length of a run may change: that is how it is made longer.
_OF_TRAINING = {
    *("seed_everything", "trainer.precision", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val"),
    *("trainer.gradient_clip_algorithm", "trainer.limit_train_batches", "trainer.overfit_batches"),
    "trainer.sync_batchnorm",
}
# Callbacks that change weights, and what a checkpoint holds of them; all others may come and go.
_TRAINING_CALLBACKS = (
    *("WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging"),
    "GradientAccumulationScheduler",
)
_SHOWN = 12  # changes in a refusal: another class brings all its arguments
_ABSENT = "(absent)"


@dataclass(frozen=True)
class Change:
    """One key of two configurations.

    Attributes:
        key: with dots, ``trainer.max_steps``.
        before: its value in the older configuration.
        after: in the newer one.
    """

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        if "storage_options" in self.key.split("."):
            return f"{self.key}: changed"  # it may be a secret
        return f"{self.key}: {self.before} -> {self.after}"

    @property
    def decides_training(self) -> bool:
        """Whether other weights would come out of it."""
        if self.key == "trainer.callbacks":
            return _that_train(self.before) != _that_train(self.after)
        part, *names = self.key.split(".")
        free = _FREE.get(part)
        return self.key in _OF_TRAINING if free is None else free.isdisjoint(names)

    @property
    def is_on_one_side(self) -> bool:
        """Whether one of the configurations lacks the key."""
        return _ABSENT in (self.before, self.after)


def config_changes(before: str, after: str) -> list[Change]:
    """Differences of two configurations, each a YAML text."""
    old, new = dict(_flat(yaml.safe_load(before))), dict(_flat(yaml.safe_load(after)))
    pairs = ((key, old.get(key, _ABSENT), new.get(key, _ABSENT)) for key in {**old, **new})
    return [Change(key, was, now) for key, was, now in pairs if was != now]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _that_train(callbacks: Any) -> list[Any]:
    entries = callbacks if isinstance(callbacks, list) else []
    names = [str(entry.get("class_path", "")).rpartition(".")[2] for entry in entries]
    return [entry for entry, name in zip(entries, names, strict=True) if name in _TRAINING_CALLBACKS]


def changes_since_last_start(run_dir: RunDir, config: str) -> list[Change]:
    """What ``config``, a YAML text, changes of the last start in a directory that holds a run."""
    return config_changes(run_dir.config_of(run_dir.last_start()).read_text(), config)


def require_same_recipe(run_dir: RunDir, changes: Sequence[Change], global_step: int, *, data_may_change: bool) -> None:
    """Refuse to go on with another model, other data or another recipe than a run has had so far.

    A key that only one of the configurations has counts where the same release wrote both; otherwise it is an option
    that has come or gone since, and stands at its default.

    Args:
        run_dir: the run's directory.
        changes: since its last start.
        global_step: from which it would go on.
        data_may_change: do not look at ``data``.

    Raises:
        ValueError: something that decides the training has changed; the message has a line for each change.
    """
    same_release = any(change.is_on_one_side for change in changes) and _is_of_this_release(run_dir)
    refused = [
        str(change)
        for change in changes
        if change.decides_training
        and (same_release or not change.is_on_one_side)
        and not (data_may_change and change.key.startswith("data."))
    ]
    if refused:
        more = [f"and {len(refused) - _SHOWN} more"] if len(refused) > _SHOWN else []
        lines = "".join(f"\n  {line}" for line in [*refused[:_SHOWN], *more])
        raise ValueError(
            f"Expected the model, data and recipe that {run_dir.root} has had up to step {global_step}, got others:"
            f"{lines}\nPut the old values back, start a new run in another --run_dir (--init_from takes the weights of "
            "this one), or go on all the same with --allow_changed_recipe=true."
        )


def _is_of_this_release(run_dir: RunDir) -> bool:
    """Whether the last start had this version and, in a checkout, this commit."""
    try:
        then = json.loads(run_dir.environment_of(run_dir.last_start()).read_text())
        now = describe_environment(1, [])
        commits = [(environment["git"] or {}).get("commit") for environment in (then, now)]
        return bool(then["versions"]["siglightning"] == siglightning.__version__ and commits[0] == commits[1])
    except (OSError, ValueError, KeyError, TypeError):
        return False
