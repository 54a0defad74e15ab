"""Damage of every sort, at random but seeded: a checkpoint either loads or is refused by a ValueError."""

import json
import random
import shutil

import pytest
import yaml
from foreign import sentencepiece_file
from test_interop_doors import CHECKPOINT, MAKERS, OURS

from siglightning.commands.doctor.origin import describe
from siglightning.models import TowerConfig, TwoTower, load_two_tower
from siglightning.models.interop import open_checkpoint
from siglightning.tasks import ContrastiveTask, begin_from

OTHERS = (None, True, 0, -1, 2.5, "x", "", [], [1], {}, {"a": 1})
TOWERS = {name: TowerConfig(**OURS[name]) for name in ("image_tower", "text_tower")}
TIMES = 6  # of each sort, for each file


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Of each kind one that is whole, without the checksum that would refuse all damage at once."""
    root = tmp_path_factory.mktemp("whole")
    tokenizer = sentencepiece_file(root / "small.model")
    found = {kind: (make(root / kind), root / kind) for kind, make in MAKERS.items()}
    (root / "run" / f"{CHECKPOINT}.sha256").unlink()
    return found, tokenizer


def cut(path, rng):
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def flip(path, rng):
    """Up to four bits, half of them near one of the ends, where formats keep what they need to be read."""
    content = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 4)):
        near = rng.choice((len(content), 600))
        at = rng.randrange(min(near, len(content)))
        content[rng.choice((at, -at - 1))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def places(value, where=()):
    """Every key and index within nested values."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield (*where, key)
        yield from places(below, (*where, key))


def edit(path, rng, change):
    content = yaml.safe_load(path.read_text())
    *outer, last = rng.choice(list(places(content)))
    inner = content
    for key in outer:
        inner = inner[key]
    change(inner, last)
    path.write_text(json.dumps(content))


def replace(path, rng):
    edit(path, rng, lambda inner, key: inner.__setitem__(key, rng.choice(OTHERS)))


def remove(path, rng):
    edit(path, rng, lambda inner, key: inner.pop(key))


def is_refused(door, source, *given, **named):
    """Anything but a ValueError of one line that names the source comes through."""
    try:
        door(source, *given, **named)
    except ValueError as error:
        told = str(error)
    else:
        return False
    assert str(source) in told
    assert "\n" not in told
    return True


@pytest.mark.parametrize("kind", MAKERS)
def test_damage_is_refused_or_harmless(intact, kind, tmp_path):
    found, tokenizer = intact
    whole, folder = found[kind]
    extra = {} if kind in ("run", "safetensors") else {"tokenizer": tokenizer}
    assert not is_refused(load_two_tower, whole, **extra)
    task = ContrastiveTask(network=TwoTower(**(OURS | TOWERS)))
    rng = random.Random(kind)
    refused = tried = 0
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "tiny_interop_clip.json"):
        is_text = file.suffix in (".json", ".yaml")
        for damage in (cut, flip, replace, remove) if is_text else (cut, flip):
            for number in range(TIMES):
                copy = tmp_path / f"{file.name}-{damage.__name__}-{number}"
                shutil.copytree(folder, copy)
                damage(copy / file.relative_to(folder), rng)
                source = copy / whole.relative_to(folder)
                refused += is_refused(load_two_tower, source, **extra)
                if number % 2:
                    is_refused(lambda source: describe(open_checkpoint(source)), source)
                    is_refused(lambda source: begin_from(task, source), source)
                tried += 1
                shutil.rmtree(copy)
    assert refused > tried / 3
