"""A trained checkpoint out to each format and back: numbers, refusals, and what is left behind when it goes wrong."""

import json
import os
import shutil

import pytest
import torch
import yaml
from exporting import BAG, SIGLIP, drawings, everything, require_same, require_same_values, run, train

from siglightning.cli import main
from siglightning.commands.export import verify as verify_module
from siglightning.commands.export.source import read_source
from siglightning.commands.export.verify import TOLERANCE, verify
from siglightning.models import TwoTower, load_two_tower
from siglightning.models.export import FORMATS
from siglightning.models.interop import open_checkpoint
from siglightning.tasks import ContrastiveTask, begin_from


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return train(tmp_path_factory.mktemp("siglip") / "x", SIGLIP)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    return train(tmp_path_factory.mktemp("bag") / "x", BAG)


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


def test_a_bag_of_words_goes_to_open_clip_and_safetensors(bag, tmp_path, capsys):
    """Trained; to ONNX goes the quickstart's own, in test_export_shipped.py."""
    network = read_source(str(bag)).network
    for name in ("open_clip", "safetensors"):
        assert run(capsys, bag, "--format", name, "--out", tmp_path / name, "--verify")[0] == 0
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
    code, printed = run(capsys, siglip / "config.yaml", "--format", "onnx", "--out", tmp_path / "out")
    assert (code, f"Give the folder that it lies in, {siglip}" in printed) == (2, True)
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


def test_the_folder_that_is_given_may_be_a_link_but_has_to_make_way(siglip, tmp_path, capsys, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    assert run(capsys, siglip, "--format", "safetensors", "--out", tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert {"config.json", "model.safetensors", "README.md"} <= {*everything(tmp_path / "empty")}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (".", tmp_path / "here"):
        code, printed = run(capsys, "no-such-run", "--format", "safetensors", "--out", place)  # before it is looked for
        assert (code, "Give a new folder, such as" in printed) == (2, True)


def test_files_have_the_mode_of_new_files(siglip, tmp_path, capsys):
    before = os.umask(0o027)
    try:
        assert run(capsys, siglip, "--format", "transformers", "--out", tmp_path / "out")[0] == 0
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()} == {0o640}


def test_what_went_wrong_is_told_though_somebody_uses_the_new_folder(siglip, tmp_path, monkeypatch):
    def crash(network, theirs):
        (tmp_path / "new" / "theirs.txt").write_text("theirs")
        raise RuntimeError("the machine is gone")

    monkeypatch.setattr(verify_module, "verify", crash)
    with pytest.raises(RuntimeError, match="the machine is gone"):
        main(["export", str(siglip), "--format", "safetensors", "--out", str(tmp_path / "new" / "out"), "--verify"])
    assert everything(tmp_path / "new") == ["theirs.txt"]


def test_an_export_of_a_folder_of_open_clip_needs_it_no_longer(siglip, tmp_path, capsys):
    """Which named its place; what is carried names its own, and the card says where."""
    source, network = siglip, read_source(str(siglip)).network
    for number, name in enumerate(["open_clip", "open_clip", "safetensors"]):
        out = tmp_path / str(number)
        code, printed = run(capsys, source, "--format", name, "--out", out, "--verify")
        assert (code, "names its own place" in printed) == (0, True), printed
        assert "Change it there when the folder is moved" in (out / "README.md").read_text()
        if number:
            source.rename(tmp_path / f"gone{number}")
        require_same_values(network, load_two_tower(out).eval(), *drawings(network), to_the_bit=False)
        source = out


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
