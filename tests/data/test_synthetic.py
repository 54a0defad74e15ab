"""Synthetic pairs: what the captions say is seen in the pixels by another hand."""

import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_map_style import SMALL

from siglightning.batch import InputSpec
from siglightning.cli import main
from siglightning.data import SampleKey, SyntheticDataModule, SyntheticSource
from siglightning.data.draws import uniform

PAINTS = {
    "red": (214, 40, 40), "orange": (255, 140, 0), "yellow": (250, 215, 50), "green": (40, 140, 60),
    "blue": (30, 80, 220), "purple": (140, 50, 200), "brown": (120, 75, 50), "black": (20, 20, 20),
}  # fmt: skip
SIDE = 256
CAPTION = re.compile(r"a (\w+) (\w+) (\w+) (left of|right of|above|below) a (\w+) (\w+) (\w+)")


def polygon(kind, radius):
    """A shape as Pillow draws it, in the middle of a picture."""
    picture = Image.new("1", (SIDE, SIDE))
    pen, middle = ImageDraw.Draw(picture), SIDE / 2

    def at(*points):
        return [(middle + x * radius, middle + y * radius) for x, y in points]

    if kind in ("circle", "ring"):
        pen.ellipse(at((-1, -1), (1, 1)), fill=1)
        pen.ellipse(at((-0.5, -0.5), (0.5, 0.5)), fill=int(kind == "circle"))
    elif kind == "cross":
        pen.rectangle(at((-1, -0.3), (1, 0.3)), fill=1)
        pen.rectangle(at((-0.3, -1), (0.3, 1)), fill=1)
    else:
        corners = {
            "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            "triangle": [(0, -1), (0.9, 0.8), (-0.9, 0.8)],
            "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
        }
        pen.polygon(at(*corners[kind]), fill=1)
    return np.asarray(picture)


def look(pixels, colour):
    """Where a colour is: a mask, and the middle of the box around it, (x, y)."""
    mask = (np.abs(pixels.astype(int) - np.array(PAINTS[colour])[:, None, None]) < 6).all(0)
    ys, xs = np.nonzero(mask)
    return mask, ((xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2)


def overlap(mask, centre, kind, radius):
    """Intersection over union of what is there and what Pillow draws in its place."""
    shift = tuple(round(c - SIDE / 2) for c in (centre[1] + (0.1 * radius if kind == "triangle" else 0), centre[0]))
    drawn = np.roll(polygon(kind, radius), shift, axis=(0, 1))
    return (mask & drawn).sum() / (mask | drawn).sum()


def test_the_caption_is_true():
    source = SyntheticSource(10**9, SIDE, seed=3)
    seen = 0
    for index in range(0, 10**9, 4_000_037):
        raw = source.read(index)
        size, colour, kind, relation, other_size, other_colour, other_kind = CAPTION.fullmatch(raw.captions[0]).groups()
        assert source.class_names[raw.labels[0]] == kind
        if colour == other_colour:
            continue
        found = []
        for name, paint, extent in ((kind, colour, size), (other_kind, other_colour, other_size)):
            mask, centre = look(raw.image.numpy(), paint)
            scores = {
                (shape, big): overlap(mask, centre, shape, radius * SIDE)
                for shape in source.class_names
                for big, radius in (("small", 0.11), ("large", 0.2))
            }
            assert max(scores, key=scores.get) == (name, extent)
            assert scores[name, extent] > 0.75
            found.append(centre)
        (x, y), (other_x, other_y) = found
        assert {"left of": x < other_x, "right of": x > other_x, "above": y < other_y, "below": y > other_y}[relation]
        seen += 1
    assert seen > 180


def test_samples_are_functions_of_seed_part_and_index():
    source = SyntheticSource(100, 32, seed=1)
    for index in (0, 7, 99):
        again = SyntheticSource(10**6, 32, seed=1).read(index)
        assert again.captions == source.read(index).captions
        assert torch.equal(again.image, source.read(index).image)
    image = source.read(5).image
    assert (image.dtype, image.shape) == (torch.uint8, (3, 32, 32))
    others = [SyntheticSource(100, 32, seed=2), *(SyntheticSource(100, 32, 1, part) for part in ("val", "test"))]
    for other in others:
        assert sum(other.read(n).captions == source.read(n).captions for n in range(100)) <= 1
        assert other.fingerprint != source.fingerprint
    assert source.fingerprint == SyntheticSource(100, 32, seed=1).fingerprint
    assert (source.key(7), others[1].key(7)) == ("train/7", "val/7")


def test_everything_occurs_about_as_often():
    source = SyntheticSource(4000, 16)
    groups = list(zip(*(CAPTION.fullmatch(source.read(n).captions[0]).groups() for n in range(4000)), strict=True))
    for words, count in zip(groups, (2, 8, 6, 4, 2, 8, 6), strict=True):
        counts = Counter(words)
        assert len(counts) == count
        expected = 4000 / count
        assert all(abs(number - expected) < 4.5 * expected**0.5 for number in counts.values())
    draws = uniform("synthetic", 0, 0, np.arange(4000), 14)
    assert list(groups[3]) == [("left of", "right of", "above", "below")[int(draw * 4)] for draw in draws[:, 0]]


MILLIONS = """
import resource, sys
from siglightning.batch import InputSpec
from siglightning.data import SyntheticDataModule

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def built(count):
    module = SyntheticDataModule(count, global_batch_size=256, side=32)
    module.input_spec = InputSpec(32, None)
    module.setup()
    return module

built(1000).val_set[0]
before = peak()
batch = built(5_000_000).train_set.__getitems__(range(0, 5_000_000, 19531))
print(len(batch), peak() - before)
"""


def test_millions_take_no_memory():
    child = subprocess.run([sys.executable, "-c", MILLIONS], capture_output=True, text=True, timeout=120, check=True)
    count, grown = child.stdout.split()
    assert int(count) == 257
    assert float(grown) < 100  # MiB; 5 million pictures would be 15 GB, their numbers 40 MB


def test_a_fit_needs_no_files(tmp_path, monkeypatch, capsys):
    """The whole pipeline from the shipped configuration, and both kinds of evaluation."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    data = ["--config", "data/synthetic", "--data.init_args.num_samples=400", "--data.init_args.num_val_samples=40"]
    more = ["--data.init_args.num_test_samples=30", "--data.init_args.global_batch_size=32", "--run_dir", "run"]
    assert main(["fit", "--config", "small.yaml", *data, *more]) == 0, "".join(capsys.readouterr())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"zeroshot_acc", "t2i_recall@1"} <= summary["test"].keys()


def test_sets_and_their_augmentation():
    module = SyntheticDataModule(50, 20, 10, side=48, global_batch_size=8)
    module.input_spec = InputSpec(32, None)
    module.setup()
    assert [len(part) for part in (module.train_set, module.val_set, module.test_sets["test"])] == [50, 20, 10]
    assert module.class_names == ["circle", "square", "triangle", "diamond", "ring", "cross"]
    assert (module.augmentation.flip, module.augmentation.hue, module.augmentation.rotation) == (0, 0, 0)
    one, other = (module.train_set[SampleKey(3, epoch)] for epoch in (0, 1))
    assert one["captions"] == other["captions"]
    assert not torch.equal(one["image"], other["image"])
    assert one["image"].shape == (3, 32, 32)


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"num_samples": 5, "side": 8}])
def test_wrong_sizes_are_refused(options):
    with pytest.raises(ValueError, match="at least one sample and a side of at least 16, got"):
        SyntheticSource(**options)
