"""Configurations are found by path or by the name of a shipped file."""

import pytest
import yaml

from siglightning.cli import main
from siglightning.cli.configs import name_of_run, resolve_arguments, resolve_config, shipped_configs


@pytest.mark.parametrize("name", ["logger/csv", "logger/csv.yaml", "configs/logger/csv.yaml", "./configs/logger/csv"])
def test_shipped_files_are_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_config(name) == str(shipped_configs() / "logger" / "csv.yaml")


def test_a_file_of_the_user_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logger").mkdir()
    (tmp_path / "logger" / "csv.yaml").write_text("trainer: {}")
    assert resolve_config("logger/csv.yaml") == "logger/csv.yaml"


def test_every_form_of_the_flag_is_resolved():
    shipped = str(shipped_configs() / "logger" / "csv.yaml")
    arguments = ["--config", "logger/csv", "--config=logger/csv", "-c", "logger/csv", "--run_dir", "logger/csv"]
    assert resolve_arguments(arguments) == [
        *("--config", shipped, f"--config={shipped}", "-c", shipped, "--run_dir", "logger/csv")
    ]


def test_yaml_text_is_left_alone():
    text = "{trainer: {max_steps: 3}}"
    assert resolve_arguments(["--config", text]) == ["--config", text]
    assert name_of_run(["fit", "--config", text, "--config=a/b.yaml", "-c", "c.yaml"]) == "b"


def test_null_reaches_a_class_within_a_class():
    """As a flag jsonargparse would hand it on as the word "None"; a flag of one class alone it reads itself."""
    deep, words = (
        "--model.init_args.network.init_args.init_bias",
        "{init_args: {network: {init_args: {init_bias: null}}}}",
    )
    for arguments in ([f"{deep}=null"], [deep, "null"]):
        assert resolve_arguments(["fit", *arguments, "--x", "1"]) == ["fit", f"--config={{model: {words}}}", "--x", "1"]
    for left_alone in (["--trainer.logger=null"], [deep, "0.5"], [f"{deep}=nullable"], [deep], [deep, "--x", "null"]):
        assert resolve_arguments(left_alone) == left_alone


def test_a_null_within_a_group_arrives_as_one(capsys):
    """Jsonargparse hands on the word "None" of these, too; a text without any is left to it."""
    deep = "--model.network.init_args.image_tower.kwargs"
    group = "{a: null, b: [1, null], c: {d: x}}"
    for flags in ([f"{deep}={group}"], [deep, group]):
        assert main(["fit", "--config=quickstart", *flags, "--print_config"]) == 0
        network = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["network"]["init_args"]
        assert network["image_tower"]["kwargs"] == {"a": None, "b": [1, None], "c": {"d": "x"}}
        assert network["text_tower"]["kwargs"]["bottleneck"] == 64
    for text in ("{a: nullable}", "[1, 'null']", "{a: null", "a null"):
        assert resolve_arguments([f"{deep}={text}"]) == [f"{deep}={text}"]


FRAGMENTS = [f"data/{path.stem}" for path in sorted((shipped_configs() / "data").glob("*.yaml"))]
RECIPES = [f"recipe/{path.stem}" for path in sorted((shipped_configs() / "recipe").glob("*.yaml"))]


@pytest.mark.parametrize("name", [*FRAGMENTS, *RECIPES])
def test_every_shipped_file_is_understood(name, capsys):
    whole = ["--config=quickstart"] if name in FRAGMENTS else []
    assert main(["fit", *whole, f"--config={name}", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)["data"]
    written = yaml.safe_load((shipped_configs() / f"{name}.yaml").read_text())["data"]
    assert printed["class_path"] == written["class_path"]
    plain = {key: value for key, value in written["init_args"].items() if not isinstance(value, dict)}
    assert {key: printed["init_args"][key] for key in plain} == plain
