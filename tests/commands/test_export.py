"""A trained checkpoint out to each format and back: numbers, refusals, and what is left behind when it goes wrong."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from siglightning.cli import main
from siglightning.commands.export import verify as verify_module
from siglightning.commands.export.source import read_source
from siglightning.commands.export.verify import TOLERANCE, verify
from siglightning.data import PictogramArchive
from siglightning.data.transforms import resize
from siglightning.evaluation.retrieval import recall_at_k, retrieval_ranks
from siglightning.models import TwoTower, load_two_tower
from siglightning.models.export import FORMATS
from siglightning.models.export.reloaded import Outputs
from siglightning.models.interop import open_checkpoint
from siglightning.tasks import ContrastiveTask, begin_from

sys.path.append(str(Path(__file__).parents[1] / "models"))
import foreign
from foreign import as_big_vision, open_clip_model, sentencepiece_file

CLOSE = 1e-5  # what the project promises; fp32 sums in another order differ by some 1e-7
SIGLIP = {
    "image_tower": {
        "name": "timm:vit_base_patch16_siglip_224",
        "kwargs": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    },
    "text_tower": {
        "name": "local:text_transformer",
        "kwargs": {"width": 16, "depth": 2, "heads": 2, "pooling": "last", "mask_padding": False, "bottleneck": 8},
    },
    "image_size": 32,
    "context_length": 12,
}
BAG = {  # a convolutional network with GroupNorm, and the quickstart's bag of words, smaller
    "image_tower": {
        "name": "timm:resnetv2_18",
        "kwargs": {"layers": [0, 1, 1, 1], "channels": [32, 64, 64, 64], "stem_chs": 32, "norm_layer": "groupnorm"},
    },
    "text_tower": {
        "name": "local:text_transformer",
        "kwargs": {"width": 16, "depth": 0, "heads": 2, "bottleneck": 8, "norm_bias": False},
    },
    "embed_dim": 16,
    "image_size": 64,
    "context_length": 12,
}
TRAINER = {"max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 1,
           "log_every_n_steps": 1, "num_sanity_val_steps": 0, "val_check_interval": 3}  # fmt: skip


def train(folder, network, *options, class_path="TwoTower"):
    config = {
        "model": {
            "class_path": "siglightning.tasks.ContrastiveTask",
            "init_args": {"network": {"class_path": class_path, "init_args": network}},
        },
        "data": {"class_path": "PictogramDataModule", "init_args": {"global_batch_size": 16, "train_styles": ["noto"]}},
        "trainer": TRAINER,
        "test_after_fit": False,
    }
    folder.mkdir()
    (folder / "c.yaml").write_text(json.dumps(config))
    assert main(["fit", "--config", str(folder / "c.yaml"), "--run_dir", str(folder / "run"), *options]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return train(tmp_path_factory.mktemp("siglip") / "x", SIGLIP)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return train(tmp_path_factory.mktemp("bag") / "x", BAG)


def run(capsys, *arguments):
    capsys.readouterr()
    code = main(["export", *map(str, arguments)])
    return code, "".join(capsys.readouterr())


def everything(folder):
    return sorted(path.name for path in folder.iterdir())


def drawings(network, count=40):
    archive = PictogramArchive.open()
    names, rows = archive.concepts["name_en"].to_pylist(), range(0, count * 50, 50)
    concepts = [archive.pictures["concept"][row].as_py() for row in rows]
    pictures = resize([archive.read_image(row) for row in rows], network.image_size)
    return pictures, [str(names[concept]) for concept in concepts]


@torch.no_grad()
def require_same(network, theirs: Outputs, pictures, captions):
    """Embeddings, logits and recall."""
    image, text = network(pictures, network.tokenizer(captions))
    logits = network.log_scale.exp() * image @ text.T + (0 if network.bias is None else network.bias)
    for ours, other in ((image, theirs.image), (text, theirs.text), (logits, theirs.logits)):
        assert (ours - other).abs().max() < CLOSE
    rows = torch.arange(len(captions))
    for ours, other in (
        (retrieval_ranks(image, text, rows, rows), retrieval_ranks(theirs.image, theirs.text, rows, rows)),
        (retrieval_ranks(text, image, rows, rows), retrieval_ranks(theirs.text, theirs.image, rows, rows)),
    ):
        assert [recall_at_k(ours, k) for k in (1, 5, 10)] == [recall_at_k(other, k) for k in (1, 5, 10)]


@pytest.mark.parametrize("name", ["transformers", "open_clip", "safetensors", "onnx"])
def test_a_pocket_siglip_goes_to_every_format(siglip, tmp_path, capsys, name):
    code, printed = run(capsys, siglip, "--format", name, "--out", tmp_path / "deep" / "out", "--verify")
    assert code == 0, printed
    assert "tokens of captions: equal\n" in printed  # awkward strings included
    assert everything(tmp_path) == ["deep"]
    assert everything(tmp_path / "deep") == ["out"]
    network = read_source(str(siglip)).network
    theirs = FORMATS[name].reload(tmp_path / "deep" / "out")
    pictures, captions = drawings(network)
    for count in (1, 7, 40):  # any batch, of ONNX's graphs too
        out = theirs.outputs(theirs.pixels(list(pictures[:count])), theirs.tokens(captions[:count]))
        require_same(network, out, pictures[:count], captions[:count])
    card = (tmp_path / "deep" / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == "zero-shot-image-classification"
    for told in ("PictogramDataModule", "3 optimizer steps", "| validation | i2t_recall@1 |", "step-00000003.ckpt"):
        assert told in card
    assert str(tmp_path) not in card
    assert str(siglip) not in card


# Whether weights keep their names, so that nothing is computed in another order.
COMES_BACK = {
    ("siglip", "safetensors"): True,
    ("siglip", "transformers"): False,
    ("siglip", "open_clip"): False,
    ("bag", "open_clip"): False,
}


@pytest.mark.parametrize(("trained", "name"), COMES_BACK)
def test_and_comes_back(request, tmp_path, capsys, trained, name):
    """Run, export, network: by `load_two_tower`, and by `--init_from` into towers of the same library."""
    source = request.getfixturevalue(trained)
    assert run(capsys, source, "--format", name, "--out", tmp_path / "out")[0] == 0
    network, back = read_source(str(source)).network, load_two_tower(tmp_path / "out").eval()
    pictures, captions = drawings(network)
    require_same_values(network, back, pictures, captions, to_the_bit=COMES_BACK[trained, name])
    checkpoint = open_checkpoint(tmp_path / "out")
    assert checkpoint.kind == name
    task = ContrastiveTask(network=TwoTower(**checkpoint.arguments))
    assert begin_from(task, tmp_path / "out").taken.keys() >= {"image tower", "text side", "t'", "b"}
    require_same_values(back, task.network.eval(), pictures, captions, to_the_bit=True)


@torch.no_grad()
def require_same_values(network, other, pictures, captions, *, to_the_bit):
    """t', b, tokens, the preparation of pictures, embeddings, logits and recall."""
    assert torch.equal(network.log_scale, other.log_scale)
    assert torch.equal(network.bias, other.bias)
    ids, theirs = network.tokenizer(captions), other.tokenizer(captions)
    pads = (network.tokenizer.pad_id, other.tokenizer.pad_id)  # where that of ours is an ordinary token: docs/export.md
    assert torch.equal(ids.masked_fill(ids == pads[0], -1), theirs.masked_fill(theirs == pads[1], -1))
    image, text = other(pictures, theirs)
    require_same(network, Outputs(image, text, other.log_scale.exp() * image @ text.T + other.bias), pictures, captions)
    assert (network.image_tower.mean, network.image_tower.std) == (other.image_tower.mean, other.image_tower.std)
    assert (network.resizing.crop, network.resizing.interpolation) == (
        other.resizing.crop,
        other.resizing.interpolation,
    )
    if to_the_bit:
        mine, yours = network.state_dict(), other.state_dict()
        assert all(torch.equal(mine[key], yours[key]) for key in {*mine, *yours})
        assert network.resizing == other.resizing


def test_runs_that_began_with_others_go_out(siglip, tmp_path, capsys):
    """With `--init_from` and adapters, and with a network that loads itself; then out and back again."""
    assert run(capsys, siglip, "--format", "safetensors", "--out", tmp_path / "out")[0] == 0
    runs = [
        train(tmp_path / "lora", SIGLIP | {"lora": {"rank": 2}}, "--init_from", str(siglip)),
        train(tmp_path / "loaded", {"source": str(tmp_path / "out")}, class_path="siglightning.models.load_two_tower"),
    ]
    for number, path in enumerate(runs):
        source = read_source(str(path))
        assert source.checkpoint.origin.global_step == 3
        assert not any("lora" in name for name in source.network.state_dict())
        out = tmp_path / f"again{number}"
        code, printed = run(capsys, path, "--format", "transformers", "--out", out, "--verify")
        assert code == 0, printed
        pictures, captions = drawings(source.network)
        require_same_values(source.network, load_two_tower(out).eval(), pictures, captions, to_the_bit=False)
        assert not torch.equal(source.network.bias, read_source(str(siglip)).network.bias)  # it was trained on


def test_a_bag_of_words_goes_to_open_clip_onnx_and_safetensors(bag, tmp_path, capsys):
    network = read_source(str(bag)).network
    pictures, captions = drawings(network)
    for name in ("open_clip", "onnx", "safetensors"):
        assert run(capsys, bag, "--format", name, "--out", tmp_path / name, "--verify")[0] == 0
        theirs = FORMATS[name].reload(tmp_path / name)
        for count in (1, 7, 40):  # any batch
            out = theirs.outputs(theirs.pixels(list(pictures[:count])), theirs.tokens(captions[:count]))
            require_same(network, out, pictures[:count], captions[:count])
    back = load_two_tower(tmp_path / "safetensors")
    assert all(torch.equal(value, back.state_dict()[key]) for key, value in network.state_dict().items())


def test_what_a_format_cannot_hold_is_refused_before_anything_is_written(bag, tmp_path, capsys):
    code, printed = run(capsys, bag, "--format", "transformers", "--out", tmp_path / "new" / "out")
    assert code == 2
    assert "transformers cannot hold this network: it projects pictures" in printed
    assert "Formats that can: open_clip, safetensors, onnx." in printed
    assert everything(tmp_path) == []


def test_mistakes_typed_by_hand(siglip, tmp_path, capsys):
    for typed, meant in (("open-clip", "open_clip"), ("Transformers", "transformers"), ("safetensor", "safetensors")):
        code, printed = run(capsys, siglip, "--format", typed, "--out", tmp_path / "out")
        assert (code, f"Nearest: {meant}" in printed) == (2, True)
    code, printed = run(capsys, tmp_path / "no-run", "--format", "onnx", "--out", tmp_path / "out")
    assert (code, "which does not exist" in printed) == (2, True)
    assert run(capsys, siglip, "--out", tmp_path / "out")[0] == 2
    assert everything(tmp_path) == []


def test_a_folder_that_is_there_is_left_alone(siglip, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, printed = run(capsys, siglip, "--format", "safetensors", "--out", tmp_path / "out")
    assert (code, "exists already" in printed) == (2, True)
    assert everything(tmp_path / "out") == ["mine.txt"]
    (tmp_path / "out" / "mine.txt").unlink()
    assert run(capsys, siglip, "--format", "safetensors", "--out", tmp_path / "out")[0] == 0  # an empty one serves
    assert everything(tmp_path) == ["out"]


def test_a_checkpoint_by_itself_needs_its_configuration(siglip, tmp_path, capsys):
    shutil.copy(siglip / "checkpoints" / "step-00000003.ckpt", tmp_path / "my.ckpt")
    order = [tmp_path / "my.ckpt", "--format", "safetensors", "--out", tmp_path / "out"]
    code, printed = run(capsys, *order)
    assert (code, "on the command line --config FILE" in printed) == (2, True)
    assert run(capsys, *order, "--config", siglip / "config.yaml", "--verify")[0] == 0
    other = yaml.safe_load((siglip / "config.yaml").read_text())
    other["model"]["init_args"]["network"]["init_args"]["image_tower"]["kwargs"]["embed_dim"] = 32
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    code, printed = run(capsys, *order[:-1], tmp_path / "out2", "--config", tmp_path / "other.yaml")
    assert (code, "does not fit the network that it describes: image_tower" in printed) == (2, True)


def test_wrong_numbers_leave_nothing_behind(siglip, tmp_path, capsys, monkeypatch):
    """The written weights differ a little from what was trained: found by reading them back."""

    def shifted(network, theirs):
        with torch.no_grad():
            network.bias += 10 * TOLERANCE
        return verify(network, theirs)

    monkeypatch.setattr(verify_module, "verify", shifted)
    code, printed = run(capsys, siglip, "--format", "safetensors", "--out", tmp_path / "a" / "out", "--verify")
    assert (code, "is not what was trained" in printed) == (2, True)
    assert everything(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_crash_while_verifying_leaves_nothing_behind(siglip, tmp_path, monkeypatch, error):
    def crash(network, theirs):
        raise error("the machine is gone")

    monkeypatch.setattr(verify_module, "verify", crash)
    with pytest.raises(error):
        main(["export", str(siglip), "--format", "safetensors", "--out", str(tmp_path / "a" / "out"), "--verify"])
    assert everything(tmp_path) == []


def test_a_moved_open_clip_folder_says_where_it_was(siglip, tmp_path, capsys):
    _, printed = run(capsys, siglip, "--format", "open_clip", "--out", tmp_path / "out")
    assert "names its own place" in printed
    config = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert config["model_cfg"]["vision_cfg"]["timm_model_name"] == f"local-dir:{tmp_path / 'out' / 'image_tower'}"
    (tmp_path / "out").rename(tmp_path / "moved")
    FORMATS["open_clip"].settle(tmp_path / "moved", tmp_path / "moved")
    FORMATS["open_clip"].reload(tmp_path / "moved")


def foreign_sources(folder):
    """One of each library, at random, and what has to be said of it."""
    tokenizer = ["--tokenizer", sentencepiece_file(folder / "small.model")]
    foreign.siglip().save_pretrained(folder / "siglip")
    np.savez(folder / "siglip.npz", **as_big_vision(foreign.siglip()))
    model, config = open_clip_model(folder, "clip")
    torch.save(model.state_dict(), folder / "clip.pt")
    return {
        "transformers": [folder / "siglip", *tokenizer],
        "big_vision": [folder / "siglip.npz", *tokenizer],
        "open_clip": [folder / "clip.pt", *tokenizer, "--architecture", config],
    }


@torch.no_grad()
def test_checkpoints_of_other_libraries_go_out(tmp_path, capsys):
    """Their cards say what is known: name, kind and checksum, and nothing of data, recipe and metrics."""
    for kind, order in foreign_sources(tmp_path).items():
        out = tmp_path / f"out_{kind}"
        code, printed = run(capsys, *order, "--format", "safetensors", "--out", out, "--verify")
        assert code == 0, printed
        assert f"Exporting {order[0]} (of {kind}) to safetensors" in printed
        back, options = load_two_tower(out, init_bias=None if kind == "open_clip" else "auto").eval(), {}
        if kind == "open_clip":
            options = {"architecture": str(order[-1]), "init_bias": None}
        direct = load_two_tower(order[0], tokenizer=str(order[2]), **options).eval()
        assert all(torch.equal(value, back.state_dict()[name]) for name, value in direct.state_dict().items())
        assert (direct.image_tower.mean, direct.resizing) == (back.image_tower.mean, back.resizing)
        assert torch.equal(direct.tokenizer(["two dogs"]), back.tokenizer(["two dogs"]))
        card = (out / "README.md").read_text()
        file = order[0] / "model.safetensors" if order[0].is_dir() else order[0]
        assert f"# {order[0].name}\n" in card
        assert f"From `{order[0].name}`, a checkpoint of kind {kind}." in card
        assert f"`{file.name}`, SHA-256 `{hashlib.sha256(file.read_bytes()).hexdigest()}`" in card
        assert str(tmp_path) not in card
        assert re.findall("^## (.*)$", card, re.MULTILINE) == ["Use", "Export"]
