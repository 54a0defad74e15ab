"""Bad checkpoints at every door: `siglightning export X`, `load_two_tower(X)`, `--init_from X` refuse them alike."""

import json
import pickle
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from foreign import as_big_vision, open_clip_model, sentencepiece_file, siglip
from safetensors.torch import load_file, save_file
from test_checkpoint_safety import Hostile, cut, hostile_files
from test_checkpoint_safety import trace as trace  # a fixture

from siglightning.cli import main
from siglightning.models import TowerConfig, TwoTower, load_two_tower
from siglightning.models.export import FORMATS
from siglightning.models.interop import open_checkpoint
from siglightning.runtime.checkpoint import AtomicCheckpointIO
from siglightning.tasks import ContrastiveTask, begin_from

OURS = {
    "image_tower": {"name": "local:conv", "kwargs": {"width": 8, "depths": [1], "patch": 8}},
    "text_tower": {"name": "local:text_transformer", "kwargs": {"width": 16, "depth": 1, "heads": 2, "bottleneck": 8}},
    "embed_dim": 16,
    "image_size": 32,
    "context_length": 8,
}
CHECKPOINT = "checkpoints/step-1.ckpt"


def small():
    torch.manual_seed(0)
    towers = {name: TowerConfig(**OURS[name]) for name in ("image_tower", "text_tower")}
    return TwoTower(**(OURS | towers)), OURS | towers


def a_run(folder):
    network, _ = small()
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    (folder / "checkpoints").mkdir(parents=True)
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, "global_step": 1}, folder / CHECKPOINT)
    described = {"class_path": "siglightning.models.TwoTower", "init_args": OURS}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"network": described}}}))
    return folder / CHECKPOINT


def a_safetensors_folder(folder):
    folder.mkdir()
    network, arguments = small()
    FORMATS["safetensors"].write(network, folder, arguments)
    return folder


def a_transformers_folder(folder):
    siglip().save_pretrained(folder)
    return folder


def an_open_clip_folder(folder):
    folder.mkdir()
    model, config = open_clip_model(folder, "clip")
    described = {"model_cfg": json.loads(config.read_text()), "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def a_big_vision_file(folder):
    folder.mkdir()
    np.savez(folder / "siglip.npz", **as_big_vision(siglip()))
    return folder / "siglip.npz"


MAKERS = {
    "run": a_run,
    "safetensors": a_safetensors_folder,
    "transformers": a_transformers_folder,
    "open_clip": an_open_clip_folder,
    "big_vision": a_big_vision_file,
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Of each kind one that is whole, a task of its architecture, and the tokenizer that three of them lack."""
    root = tmp_path_factory.mktemp("intact")
    tokenizer = sentencepiece_file(root / "small.model")
    found = {}
    for kind, make in MAKERS.items():
        source = make(root / kind)
        checkpoint = open_checkpoint(source)
        assert checkpoint.kind == kind
        extra = {} if kind in ("run", "safetensors") else {"tokenizer": tokenizer}
        task = ContrastiveTask(network=TwoTower(**(checkpoint.arguments | extra)))
        found[kind] = (source, root / kind, task, extra)
    return found


def through_export(source, task, extra, out, capsys):
    capsys.readouterr()
    options = [word for name, value in extra.items() for word in (f"--{name}", value)]
    code = main(["export", str(source), "--format", "safetensors", "--out", str(out), *options])
    assert not out.exists() or code == 0
    return code, "".join(capsys.readouterr())


def through_load_two_tower(source, task, extra, out, capsys):
    try:
        load_two_tower(source, **extra)
    except ValueError as error:
        return 2, str(error)
    return 0, ""


def through_init_from(source, task, extra, out, capsys):
    before = {name: value.clone() for name, value in task.state_dict().items()}
    try:
        begin_from(task, source)
    except ValueError as error:
        assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
        return 2, str(error)
    return 0, ""


DOORS = (through_export, through_load_two_tower, through_init_from)


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_whole_goes_through_every_door(intact, kind, tmp_path, capsys):
    source, _, task, extra = intact[kind]
    for door in DOORS:
        code, told = door(source, task, extra, tmp_path / "out", capsys)
        assert code == 0, told


def renamed(weights):
    """A tensor of another shape, one that is missing, one too many."""
    names = sorted(
        name for name, value in weights.items() if value.ndim == 2 and "proj" in name and "logit" not in name
    )
    weights[names[0]] = torch.zeros(17, 3)
    weights["extra"] = weights.pop(names[-1])
    return weights


def spoil_safetensors(path, edit):
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def spoil_run(folder):
    path = folder / CHECKPOINT
    content = torch.load(path, weights_only=True)
    state = {name.removeprefix("network."): value for name, value in content["state_dict"].items()}
    content["state_dict"] = {f"network.{name}": value for name, value in renamed(state).items()}
    AtomicCheckpointIO().save_checkpoint(content, path)


def spoil_arrays(folder):
    with np.load(folder / "siglip.npz") as archive:
        arrays = dict(archive)
    arrays["params/txt/head/kernel"] = np.zeros((16, 17), np.float32)
    arrays["params/extra"] = np.ones(3)
    np.savez(folder / "siglip.npz", **arrays)


def break_index(folder):
    content = (folder / "siglip.npz").read_bytes()
    (folder / "siglip.npz").write_bytes(content.replace(b"PK\x01\x02", b"PK\x00\x00"))


def pickled(path):
    """Hostile whatever its name says: what a file is, its content tells."""
    torch.save({"visual.proj": Hostile()}, path)


def hostile_run(folder):
    (folder / f"{CHECKPOINT}.sha256").unlink()  # else its checksum would refuse it first
    torch.save({"state_dict": {"network.bias": Hostile()}, "global_step": 1}, folder / CHECKPOINT)


def hostile_transformers(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": Hostile()}, folder / "pytorch_model.bin")


def with_module(folder, name, content):
    """A module that leaves a trace when it is imported, and a file that names it."""
    folder.mkdir(exist_ok=True)
    # Of one's own for each folder: transformers imports the same module once.
    (folder / "evil.py").write_text(f"# {folder}\nimport os\nos.system('touch \"$SIGLIGHTNING_TEST_TRACE\"')\n")
    (folder / name).write_text(json.dumps(content))


MODEL_OF_ITS_OWN = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}


def transformers_with_code(folder):
    config = json.loads((folder / "config.json").read_text())
    with_module(folder, "config.json", config | MODEL_OF_ITS_OWN)


def hostile_open_clip(folder):
    (folder / "open_clip_model.safetensors").unlink()
    pickled(folder / "open_clip_pytorch_model.bin")


def edit_config(folder, edit, name="config.json"):
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


NEVER = "code from a checkpoint is never run"
# The first ones of each sort, in whatever order a model has them.
SHAPES = (
    r"(?=.*is \[\d+, \d+\] in the model and \[17, 3\] in the)(?=.*is missing from)(?=.*extra is unknown to the model)"
)
# kind: what is done to its folder, and what all three doors say.
BAD = {
    "a run, cut short": ("run", lambda at: cut(at / CHECKPOINT, 0.7), "is truncated: expected"),
    "a run with code": ("run", hostile_run, "only running its code could restore"),
    "a run of another model": ("run", spoil_run, SHAPES),
    "an export, cut short": ("safetensors", lambda at: cut(at / "model.safetensors", 0.7), "damaged or cut short"),
    "an export with code": ("safetensors", lambda at: pickled(at / "model.safetensors"), NEVER),
    "an export of another model": (
        "safetensors",
        lambda at: spoil_safetensors(at / "model.safetensors", renamed),
        SHAPES,
    ),
    "an export without weights": ("safetensors", lambda at: (at / "model.safetensors").unlink(), "does not exist"),
    "an export that describes nothing": (
        "safetensors",
        lambda at: edit_config(at, lambda content: content.pop("network")),
        "config.json is damaged.*KeyError: 'network'",
    ),
    "transformers, cut short": ("transformers", lambda at: cut(at / "model.safetensors", 0.7), "No weights for a two"),
    "transformers with pickled code": ("transformers", hostile_transformers, "No weights for a two-tower model"),
    "transformers with modules of its own": ("transformers", transformers_with_code, "could not be loaded"),
    "transformers of another model": (
        "transformers",
        lambda at: spoil_safetensors(at / "model.safetensors", renamed),
        SHAPES,
    ),
    "open_clip, cut short": ("open_clip", lambda at: cut(at / "open_clip_model.safetensors", 0.7), "damaged or cut"),
    "open_clip with code": ("open_clip", hostile_open_clip, NEVER),
    "open_clip of another model": (
        "open_clip",
        lambda at: spoil_safetensors(at / "open_clip_model.safetensors", renamed),
        SHAPES,
    ),
    "big_vision, cut short": ("big_vision", lambda at: cut(at / "siglip.npz", 0.7), "cut short"),
    "big_vision, its index spoilt": ("big_vision", break_index, "index at the end of the archive cannot be read"),
    "big_vision of another model": (
        "big_vision",
        spoil_arrays,
        r"text_tower.trunk.head.weight is \[16, 16\] in the model and \[17, 16\].*extra is unknown to the model",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_is_refused_at_every_door(intact, name, tmp_path, trace, capsys):
    kind, spoil, message = BAD[name]
    whole, folder, task, extra = intact[kind]
    shutil.copytree(folder, tmp_path / "copy")
    spoil(tmp_path / "copy")
    source = tmp_path / "copy" / whole.relative_to(folder)
    require_refused(source, task, extra, message, tmp_path, capsys)


def require_refused(source, task, extra, message, tmp_path, capsys):
    for door in DOORS:
        code, told = door(source, task, extra, tmp_path / "out", capsys)
        assert code == 2, (door.__name__, told)
        line = " ".join(told.split())
        assert re.search(message, line), (door.__name__, line)
        assert "Traceback" not in told


def test_foreign_and_hostile_files(intact, tmp_path, trace, capsys):
    _, _, task, extra = intact["run"]
    expected = dict.fromkeys(hostile_files(tmp_path), NEVER)
    (tmp_path / "bare2.pkl").write_bytes(pickle.dumps([Hostile()]))
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "resnet.pt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / "jit.pt")
    (tmp_path / "graphs").mkdir()
    for name in ("config.json", "vision_model.onnx"):
        (tmp_path / "graphs" / name).write_text("{}")
    (tmp_path / "empty").mkdir()
    expected |= {
        "bare2.pkl": NEVER,
        "resnet.pt": "of no library that is known.*got fc.weight",
        "jit.pt": "TorchScript archive, which holds code",
        "graphs": "holds graphs of ONNX",
        "empty": r"is no checkpoint: expected config.json",
    }
    for name, message in expected.items():
        require_refused(tmp_path / name, task, extra, message, tmp_path, capsys)
