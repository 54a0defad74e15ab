"""Runs to examine: a small recipe, changed here and there, as the command line would build it."""

import io
import tempfile
from pathlib import Path

import torch
import yaml
from PIL import Image

from siglightning.cli.doctor import DoctorCLI, DoctorOptions, untouched
from siglightning.commands.doctor import CHECKS
from siglightning.data import PictogramArchive

TEXT = {"name": "local:text_transformer", "kwargs": {"width": 32, "depth": 1, "heads": 2}}
IMAGE = {"name": "local:conv", "kwargs": {"width": 8, "depths": [1], "patch": 8}}
NETWORK = {
    "class_path": "siglightning.models.TwoTower",
    "init_args": {
        "image_tower": IMAGE, "text_tower": TEXT, "embed_dim": 64, "image_size": 32, "context_length": 24,
        "init_bias": "auto",
    },
}  # fmt: skip
CLASSIFIER = {
    "class_path": "siglightning.tasks.FineTuneTask",
    "init_args": {
        "network": {
            "class_path": "siglightning.models.ImageEncoder",
            "init_args": {"image_tower": IMAGE, "image_size": 32},
        }
    },
}
SYNTHETIC = {"num_samples": 200, "num_val_samples": 40, "num_test_samples": 40, "side": 32, "global_batch_size": 32}
SMALL = {
    "model": {
        "class_path": "siglightning.tasks.ContrastiveTask",
        "init_args": {"network": NETWORK, "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}}},
    },
    "data": {"class_path": "siglightning.data.SyntheticDataModule", "init_args": SYNTHETIC},
    "trainer": {
        "accelerator": "cpu", "max_steps": 4, "log_every_n_steps": 1, "val_check_interval": 2,
        "check_val_every_n_epoch": None,
    },
}  # fmt: skip


def small_config(folder: Path, **changes) -> str:
    """Write the recipe, its top-level keys replaced by ``changes``; the argument that names the file."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))
    return f"--config={path}"


def case_of(folder: Path, *arguments: str, checkpoint=None, report=None, samples=1000, **changes):
    """The case of a run, with the recipe's keys replaced by ``changes``."""
    scratch = Path(tempfile.mkdtemp(dir=folder))
    options = DoctorOptions(checkpoint and str(checkpoint), report and str(report), samples)
    run_dir = f"--run_dir={folder / 'run'}"
    with untouched():
        return DoctorCLI([small_config(folder, **changes), run_dir, *arguments], scratch, options).case()


def found(name: str, case):
    """Findings of one check."""
    return list(next(check for check in CHECKS if check.name == name).run(case))


def one(name: str, case, level: str):
    """The findings of a check of one level, in one text; there must be some."""
    texts = [f"{finding.text} -> {finding.remedy}" for finding in found(name, case) if finding.level == level]
    assert texts, [finding.text for finding in found(name, case)]
    return "\n".join(texts)


def quiet(name: str, case):
    """Assert that a check warns of nothing."""
    assert [finding.text for finding in found(name, case) if finding.level != "ok"] == []


def drawings(count: int, first: int = 0):
    """Embedded drawings, uint8 ``[3, 64, 64]``."""
    archive = PictogramArchive.open()
    return [archive.read_image(row) for row in range(first, first + count)]


def png(image: torch.Tensor, size: int | None = None, quality: int | None = None) -> bytes:
    """A picture's file, PNG or, with a quality, JPEG, perhaps resized."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture = picture if size is None else picture.resize((size, size), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "PNG" if quality is None else "JPEG", **({} if quality is None else {"quality": quality}))
    return file.getvalue()


def table_data(folder: Path, pictures, captions, val=None, test=None, **settings):
    """A data module of pictures (files' bytes) and captions that are written to CSV files."""
    parts = {"train": (pictures, captions)}
    for name, files in {"val": val, "test": test}.items():
        if files is not None:
            parts[name] = (files, [f"held out {number}" for number in range(len(files))])
    for name, (files, words) in parts.items():
        (folder / name).mkdir(exist_ok=True)
        lines = ["image,caption"]
        for number, (content, caption) in enumerate(zip(files, words, strict=True)):
            (folder / name / f"{number:03d}.png").write_bytes(content)
            lines.append(f'{name}/{number:03d}.png,"{caption}"')
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    paths = {name: str(folder / f"{name}.csv") for name in parts}
    paths |= {"tests": {"held_out": paths.pop("test")}} if "test" in paths else {}
    augmentation = dict.fromkeys(("crop", "stretch", "rotation", "brightness", "contrast", "saturation", "hue"), 0.0)
    return {
        "class_path": "siglightning.data.TableDataModule",
        "init_args": {"global_batch_size": 8, "augmentation": augmentation, **paths, **settings},
    }


def with_network(**settings):
    """The recipe's model with other settings of its network."""
    network = {**NETWORK, "init_args": {**NETWORK["init_args"], **settings}}
    return {**SMALL["model"], "init_args": {**SMALL["model"]["init_args"], "network": network}}
