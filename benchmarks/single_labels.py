"""What a classifier learns from one label a picture, and how its scores become labels: questions of a report.

    python -m benchmarks.single_labels --runs DIR            # features go to DIR/features-*, runs below
    python -m benchmarks.single_labels --runs DIR --write    # and benchmarks/results/single_labels.{md,png}

First, cross entropy against binary cross entropy on one-hot labels (its section 4.4), beside losses made for single
positives: 52 classes of embedded drawings, one drawing a picture, one label each. Then sigmoid(z / T) with T = 1, with
4 (its section 4.2) and fitted, on collages of one to four drawings: trained on one label of each, measured on all of
them. And the same temperatures where all labels were told: keywords of emoji and tags of clip art. A linear classifier
on a locked EfficientNet-Lite0, whose features are stored once. Needs the extra `pretrained-demo`. What DIR already
holds is not computed again.
"""

import argparse
import json
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quickstart import circumstances
from siglightning.cli import main as siglightning

RESULTS = Path(__file__).parent / "results"
TOWER = {"image_tower": "package:efficientnet_lite0", "image_size": 128, "freeze_image": True}
SETS = {"single": ("one", 1), "one": ("one", 4), "all": ("all", 4)}  # labels told, most drawings in a picture
LOSSES: dict[str, dict[str, Any]] = {
    "cross_entropy": {}, "bce": {}, "bce, sum over classes": {"class_reduction": "sum"}, "wan": {}, "an_ls": {},
    "em": {}, "epr": {"expected_positives": 1.0},
}  # fmt: skip
OPTIMIZERS = {"AdamW": ("torch.optim.AdamW", 3e-3), "Lion": ("lion_pytorch.Lion", 3e-4)}
TEMPERATURES = ("1.0", "4.0", "fit")
MEASURES = ("nll", "brier", "ece", "ece_equal_mass", "mAP", "macro_f1", "micro_f1")


def command(arguments: Sequence[str], config: dict[str, Any], path: Path) -> None:
    """Run a command with a configuration of its own; ends the program where it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    if code := siglightning([arguments[0], "--config", str(path), *arguments[1:], *quiet]):
        raise SystemExit(code)


def pictures(name: str, count: int) -> dict[str, Any]:
    """Collages, or all embedded pictures with their tags."""
    still = dict.fromkeys(["crop", "stretch", "rotation", "flip", "brightness", "contrast", "saturation", "hue"], 0)
    if name == "tags":
        options: dict[str, Any] = {"targets": "tags", "min_tag_count": 20, "augmentation": still}
        return {"class_path": "siglightning.data.PictogramDataModule", "init_args": options}
    labels, most = SETS[name]
    options = {
        "labels": labels, "max_drawings": most, "num_samples": count, "num_val_samples": count // 5,
        "num_test_samples": count // 2, "held_out": "drawings", "augmentation": still,
    }  # fmt: skip
    return {"class_path": "siglightning.data.CollageDataModule", "init_args": options}


def embed(name: str, runs: Path, count: int) -> None:
    """Store the features of a set of collages."""
    text = {"name": "local:text_transformer", "kwargs": {"width": 16, "depth": 0, "heads": 2}}
    towers = TOWER | {"text_tower": text, "embed_dim": 16}
    network = {"class_path": "siglightning.models.TwoTower", "init_args": towers}
    model = {"class_path": "siglightning.tasks.ContrastiveTask", "init_args": {"network": network}}
    config = {"model": model, "data": pictures(name, count)}
    folder = runs / f"features-{name}"
    command(["embed", "--run_dir", str(folder)], config, runs / "configs" / f"embed-{name}.yaml")


def fit(features: str, loss: str, optimizer: str, seed: int, runs: Path, epochs: int) -> Path:
    """Train a linear classifier on stored features."""
    kind, lr = OPTIMIZERS[optimizer]
    task = {
        "network": {"class_path": "siglightning.models.ImageEncoder", "init_args": TOWER},
        "loss": {"name": loss.partition(",")[0], **LOSSES[loss]},
        "optimizer": {"class_path": kind, "init_args": {"lr": lr, "weight_decay": 0.01}},
        "seed": seed,
    }
    config = {
        "model": {"class_path": "siglightning.tasks.FineTuneTask", "init_args": task},
        "data": stored(runs, features, seed),
        "trainer": {"max_epochs": epochs},
    }
    name = f"{features}-{loss}-{optimizer}-{seed}".replace(", ", "_").replace(" ", "_")
    if not (runs / name / "summary.json").is_file():
        command(["fit", "--run_dir", str(runs / name)], config, runs / "configs" / f"{name}.yaml")
    return runs / name


def stored(runs: Path, name: str, seed: int = 0) -> dict[str, Any]:
    """The features of a set as data."""
    options = {"root": str(runs / f"features-{name}"), "global_batch_size": 64, "seed": seed}
    return {"class_path": "siglightning.data.EmbeddingDataModule", "init_args": options}


def several(run: Path, temperature: str, features: str, runs: Path) -> dict[str, tuple[str, dict[str, float]]]:
    """A trained classifier on all labels: for each test set, how its scores are called, and what they are worth."""
    network = {"class_path": "siglightning.models.ImageEncoder", "init_args": TOWER}
    task = {"network": network, "temperature": "fit" if temperature == "fit" else float(temperature)}
    model = {"class_path": "siglightning.tasks.MultiLabelTask", "init_args": task}
    name = f"labels-{run.name}-{temperature}"
    summary = runs / name / "test" / "summary.json"
    if not summary.is_file():
        (best,) = (run / "checkpoints").glob("best-*.ckpt")
        arguments = ["test", "--run_dir", str(runs / name), "--ckpt_path", str(best)]
        command(arguments, {"model": model, "data": stored(runs, features)}, runs / "configs" / f"{name}.yaml")
    found = {}
    for key, values in json.loads(summary.read_text()).items():  # the calibrated scores come last of each set
        set_name, _, scores = key.partition(", ")
        found[set_name] = scores, {measure: values[measure]["value"] for measure in MEASURES}
    return found


def accuracy(run: Path) -> float:
    """Of the test set."""
    return float(json.loads((run / "summary.json").read_text())["test"]["acc"]["value"])


def spread(values: Sequence[float]) -> str:
    """Median, and the least and largest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def losses_table(runs: Path, seeds: int, epochs: int) -> str:
    """Accuracy of every loss with both optimizers."""
    lines = [f"| loss | {' | '.join(OPTIMIZERS)} |", "| --- | ---: | ---: |"]
    for loss in LOSSES:
        cells = []
        for optimizer in OPTIMIZERS:
            found = [accuracy(fit("single", loss, optimizer, seed, runs, epochs)) for seed in range(seeds)]
            cells.append(spread(found))
        lines.append(f"| {loss} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def temperatures_table(trained: Sequence[Path], features: str, runs: Path) -> str:
    """Measures of sigmoid(z / T) for every T and test set, and the names that the fit gave its own."""
    found = {T: [several(run, T, features, runs) for run in trained] for T in TEMPERATURES}
    lines = [f"| test set | T | {' | '.join(MEASURES)} |", "| --- | --- |" + " ---: |" * len(MEASURES)]
    for set_name in found["fit"][0]:
        for temperature, of_runs in found.items():
            names = sorted({sets[set_name][0] for sets in of_runs})
            cells = [spread([sets[set_name][1][measure] for sets in of_runs]) for measure in MEASURES]
            lines.append(f"| {set_name} | {temperature}: {', '.join(names)} | {' | '.join(cells)} |")
    print(*lines, sep="\n", flush=True)
    return "\n".join(lines)


def main() -> None:
    """Embed once, train, measure, print, and write when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="new directory for features and runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=5000, help="to train on, in each set")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    for name in (*SETS, "tags"):
        embed(name, args.runs, args.pictures)
    seeds = range(args.seeds)
    one = [fit("one", "cross_entropy", "AdamW", seed, args.runs, args.epochs) for seed in seeds]
    temperatures = temperatures_table(one, "all", args.runs)
    told = [fit("tags", "bce", "AdamW", seed, args.runs, args.epochs) for seed in seeds]
    tags = temperatures_table(told, "tags", args.runs)
    losses = losses_table(args.runs, args.seeds, args.epochs)
    options = f"--seeds {args.seeds} --pictures {args.pictures} --epochs {args.epochs}"
    text = (
        "Median of seeds, and the least and the largest. 52 classes; a linear classifier on EfficientNet-Lite0 at 128\n"
        f"px, {args.pictures:,} training pictures, {args.epochs} epochs.\n\n"
        f"Test accuracy, one drawing and one label a picture (chance 1/52):\n\n{losses}\n\n"
        "Collages of one to four drawings, trained on one label each (cross entropy, AdamW), measured on all labels; "
        f"T is\nfitted on the validation collages:\n\n{temperatures}\n\n"
        "Keywords of emoji and tags of clip art that at least 20 training pictures bear, all told in training (BCE, "
        f"AdamW):\n\n{tags}\n\n"
        f"`python -m benchmarks.single_labels {options}`; {circumstances()}\n"
    )
    print(text)
    if args.write:
        (RESULTS / "single_labels.md").write_text(text)
        figure = args.runs / "labels-one-cross_entropy-AdamW-0-fit" / "test" / "figures" / "reliability_test.png"
        shutil.copy(figure, RESULTS / "single_labels.png")


if __name__ == "__main__":
    main()
