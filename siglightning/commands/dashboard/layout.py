"""What the workspaces of the three tasks show: sections of panels that name metric keys. No W&B here."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TASKS = ("contrastive", "finetune", "multilabel")


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: above it.
        keys: of the metrics that it shows.
        pattern: or a regular expression that finds them, where their names depend on the test sets.
        kind: curves or histograms over steps, pictures, or a table.
        x: the horizontal axis of curves.
        logarithmic: whether the vertical axis is.
    """

    title: str
    keys: tuple[str, ...] = ()
    pattern: str = ""
    kind: Literal["curves", "pictures", "table"] = "curves"
    x: str = "global_step"
    logarithmic: bool = False

    def shows(self, key: str) -> bool:
        """Whether a key is on this panel."""
        return key in self.keys or bool(self.pattern and re.search(self.pattern, key))


Sections = dict[str, list[Panel]]

# Keys that no panel shows, and why.
LEFT_OUT = {
    "epoch": "the curves have steps and examples as axes; an epoch's numbers are in a section of their own",
    "examples_seen": "an axis",
    "validate": "of a validation by itself, which is a run apart: its own page shows the table",
}


def sections_of(task: str, sets: Sequence[str] = ("test",)) -> Sections:
    """Sections of a task's workspace, first on top.

    Args:
        task: one of :data:`TASKS`.
        sets: names of the test sets, whose tables and pictures have panels.

    Raises:
        ValueError: another task.
    """
    if task not in TASKS:
        raise ValueError(f"Expected a task of {', '.join(TASKS)}, got {task!r}.")
    first = _contrastive(sets) if task == "contrastive" else _classifier(sets, several=task == "multilabel")
    return first | _course() | _tests(sets) | _machine()


def _contrastive(sets: Sequence[str]) -> Sections:
    sides = ("image", "text")
    return {
        "Pairs": [
            Panel("loss per image [nats]", ("train/loss", "val/loss"), logarithmic=True),
            Panel("loss over examples seen", ("train/loss", "val/loss"), x="examples_seen", logarithmic=True),
            Panel("loss per pair [nats]", ("train/loss_per_pair",), logarithmic=True),
            Panel("t = exp(t')", ("train/logit_scale",)),
            Panel("b", ("train/logit_bias",)),
            Panel("mean logits", ("train/positive_logit", "train/negative_logit")),
            Panel("logits of matching pairs", ("val/positive_logits",)),
            Panel("logits of other pairs", ("val/negative_logits",)),
            Panel("hardest negatives", ("val/hardest_negatives",), kind="pictures"),
            Panel("pairs seen", ("train/pairs_seen",)),
        ],
        "Retrieval and zero-shot": [
            Panel("picture to text", tuple(f"val/i2t_recall@{k}" for k in (1, 5, 10))),
            Panel("text to picture", tuple(f"val/t2i_recall@{k}" for k in (1, 5, 10))),
            Panel("mean rank", ("val/i2t_mean_rank", "val/t2i_mean_rank"), logarithmic=True),
            Panel("zero-shot accuracy", pattern=r"^val/(.+/)?zeroshot_(class_)?acc(@5)?$"),
            Panel("zero-shot over examples seen", ("val/zeroshot_acc",), x="examples_seen"),
        ],
        "Collapse": [
            Panel("mean cosine within a batch", tuple(f"train/{side}_mean_cosine" for side in sides)),
            Panel("effective rank of a batch", tuple(f"train/{side}_effective_rank" for side in sides)),
        ],
        "Tested pairs": [
            Panel("recall", pattern=r"^test/.+/(i2t|t2i)_recall@\d+$"),
            Panel("mean rank", pattern=r"^test/.+/(i2t|t2i)_mean_rank$"),
            Panel("zero-shot accuracy", pattern=r"^test/.+/zeroshot_(class_)?acc(@5)?$"),
            Panel("calibration of pairs", pattern=r"^(val|test/.+)/pair_(ece|prior|mean_probability)$"),
            Panel("retrieval", ("retrieval",), kind="table"),
            *_pair_media(sets),
        ],
    }


def _pair_media(sets: Sequence[str]) -> list[Panel]:
    return [
        panel
        for name in sets
        for panel in (
            Panel(f"hardest negatives of {name}", (f"{name}/hardest_negatives",), kind="pictures"),
            Panel(f"logits of matching pairs of {name}", (f"{name}/positive_logits",)),
            Panel(f"logits of other pairs of {name}", (f"{name}/negative_logits",)),
        )
    ]


def _classifier(sets: Sequence[str], *, several: bool) -> Sections:
    measures = ["nll", "macro_f1"] if not several else ["nll", "brier", "macro_f1", "micro_f1", "coverage_error"]
    errors = ["ece", "ece_equal_mass"] if several else []
    quality = ("val/acc", "val/mAP") if several else ("val/acc", "val/acc@5")
    return {
        "Classification": [
            Panel("loss [nats]", ("train/loss", "val/loss"), logarithmic=True),
            Panel("loss over examples seen", ("train/loss", "val/loss"), x="examples_seen", logarithmic=True),
            Panel("accuracy in training", ("train/acc", "train/epoch_acc")),
            Panel("mAP and accuracy" if several else "accuracy", quality),
            Panel("over examples seen", quality, x="examples_seen"),
            *(Panel(name, (f"val/{name}",)) for name in measures),
            *([Panel("calibration error", tuple(f"val/{name}" for name in errors))] if several else []),
            Panel("mean loss of an epoch", ("train/epoch_loss",)),
        ],
        "Tested classes": [
            Panel("accuracy", pattern=r"^test/.+/(acc(@5)?|mAP)$"),
            Panel("loss [nats]", pattern=r"^test/.+/(loss|nll)$"),
            Panel("F1", pattern=r"^test/.+/(macro|micro)_f1$"),
            *([Panel("calibration", pattern=r"^test/.+/(ece|ece_equal_mass|brier)$")] if several else []),
            *([Panel("coverage error", pattern=r"^test/.+/coverage_error$")] if several else []),
        ],
    }


def _course() -> Sections:
    return {
        "Course": [
            Panel("gradient norm", ("train/grad_norm",), logarithmic=True),
            Panel("update norm", ("train/update_norm",), logarithmic=True),
            Panel("norm of the trained weights", ("train/param_norm",)),
            Panel("learning rate", ("train/lr",)),
            Panel("spikes and steps left out", ("train/spikes", "train/skipped_steps")),
        ]
    }


def _tests(sets: Sequence[str]) -> Sections:
    tables = [(f"predictions of {name}", f"{name}/predictions") for name in sets]
    tables += [(f"classes of {name}", f"{name}/per_class") for name in sets]
    return {"Tables": [Panel(title, (key,), kind="table") for title, key in [("all test results", "test"), *tables]]}


def _machine() -> Sections:
    epochs = ("val_loss", "val_acc", "val_mAP", "train_loss", "train_acc")
    return {
        "Machine": [
            Panel("images per second", ("throughput/images_per_s",)),
            Panel("TFLOP per second", ("throughput/tflops_per_s",)),
            Panel("share of the devices' peak", ("throughput/mfu",)),
            Panel("share of time waiting for data", ("throughput/data_wait",)),
            Panel("memory [MiB]", ("memory/peak_mib", "memory/pss_peak_mib")),
        ],
        "Epochs": [
            Panel("losses, accuracies", pattern=f"^epoch/({'|'.join(epochs)})$"),
            Panel("seconds", ("epoch/seconds",)),
            Panel("memory [MiB]", ("epoch/peak_memory_mib",)),
            Panel("learning rate", ("epoch/lr",)),
            Panel("gradient norm", ("epoch/grad_norm_mean", "epoch/grad_norm_max"), logarithmic=True),
        ],
    }
