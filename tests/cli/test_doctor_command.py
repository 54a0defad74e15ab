"""The command: exit codes, the report, errors in the words of ``fit``, and no trace of it anywhere."""

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from examined import SMALL, SYNTHETIC, drawings, png, small_config

from siglightning.cli import doctor, main
from siglightning.commands.doctor import CHECKS, NamedCheck

BROKEN_DATA = """
from siglightning.data import SyntheticDataModule

class BrokenDataModule(SyntheticDataModule):
    def build(self, spec):
        raise RuntimeError("a bug of mine")
"""
ENDLESS_DATA = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield {"image": torch.zeros(3, 32, 32, dtype=torch.uint8), "text": torch.zeros(24, dtype=torch.long)}

class EndlessDataModule(LightningDataModule):
    global_batch_size = 8

    def train_dataloader(self):
        return DataLoader(Endless(), batch_size=8)
"""


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A run of the recipe, which lies beside it."""
    folder = tmp_path_factory.mktemp("doctor")
    assert main(["fit", small_config(folder), f"--run_dir={folder / 'before'}", "--test_after_fit=false"]) == 0
    return folder / "before"


@pytest.fixture
def recipe(before, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return f"--config={before.parent / 'small.yaml'}"


@pytest.fixture
def only(monkeypatch):
    """Let the command run these checks alone: it is the command that is tested."""
    return lambda *names: monkeypatch.setattr(doctor, "CHECKS", [each for each in CHECKS if each.name in names])


def weights(run):
    path = next((Path(run) / "checkpoints").glob("step-*.ckpt"))
    return torch.load(path, weights_only=True)["state_dict"]


def test_it_reports_and_leaves_nothing_behind(before, recipe, tmp_path, capsys):
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert main(["doctor", recipe, "--run_dir=run", "--json=found.json", "--samples=50"]) == 0
    text = capsys.readouterr().out
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert {path.name for path in tmp_path.iterdir()} == {"found.json", "found-samples.png"}

    report = json.loads((tmp_path / "found.json").read_text())
    assert [check["check"] for check in report["checks"]] == [
        "sample", "pictures", "duplicates", "classes", "pixels", "captions", "tokens", "negatives", "step 0", "groups",
        "length", "memory", "disk", "precision", "workers", "loader", "ring",
    ]  # fmt: skip
    assert all(f"{check['check']:<11} " in text for check in report["checks"])
    assert (report["errors"], report["finished"], report["checkpoint"]) == (0, True, None)
    assert f"0 errors, {report['warnings']} warning" in text

    assert main(["fit", recipe, "--run_dir=run", "--test_after_fit=false"]) == 0
    after = weights("run")
    assert all(torch.equal(after[name], value) for name, value in weights(before).items())


def test_the_weights_of_a_run(before, recipe, capsys, only):
    assert json.loads((before / "model.json").read_text())["text"]["context_length"] == 24
    only("tokens", "pixels", "step 0")
    assert main(["doctor", recipe, "--run_dir=next", f"--checkpoint={before}", "--json=found.json"]) == 2
    text = capsys.readouterr().out
    assert "step-00000004.ckpt, step 4; set up in" in text
    assert "do not tell pairs from others here" in text  # after four steps
    assert f"captions become ids as for the run of {before}" in text
    assert f"as {before}/checkpoints/step-00000004.ckpt had them" in text
    report = json.loads(Path("found.json").read_text())
    assert (report["checkpoint_kind"], report["checkpoint_step"]) == ("run", 4)
    assert main(["doctor", recipe, f"--init_from={before}", "--model.network.canonicalize=true"]) == 2
    assert "strips_punctuation True, there False" in capsys.readouterr().out


def test_exit_codes(recipe, capsys, only):
    only("negatives")
    odd = ["doctor", recipe, "--run_dir=run", "--data.global_batch_size=4"]
    assert main(odd) == 0
    assert "warning  negatives" in capsys.readouterr().out
    assert main([*odd, "--strict"]) == 2
    assert main(["doctor", recipe, "--run_dir=run", "--strict"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.network.image_tower=local:cnov"],
        ["--data.global_batch_size=400"],
        ["--trainer.strategy=ring_dpp"],
        ["--trainer.max_step=3"],
    ],
)
def test_a_broken_configuration_is_told_as_fit_tells_it(recipe, arguments, capsys):
    errors = []
    Path("found.json").write_text('{"level": "ok"}')  # of an earlier configuration
    for command, more in {"fit": [], "doctor": ["--json=found.json"]}.items():
        assert main([command, recipe, "--run_dir=run", *arguments, *more]) == 2
        errors.append(capsys.readouterr().err.strip().splitlines()[-1])
    assert errors[0] == errors[1]
    assert errors[0].startswith("error: ")
    report = json.loads(Path("found.json").read_text())
    assert (report["level"], report["finished"]) == ("error", False)
    assert report["refused"] == errors[0].removeprefix("error: ") or "standard error says" in report["refused"]
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples=many"], "--samples expects how many pictures of each set to look at, got 'many'."),
        (["--json=nowhere/found.json"], "--json expects a file in a folder that is there"),
        (["--checkpoint"], "--checkpoint expects a value, got nothing."),
        (["--checkpoint=nowhere"], "--checkpoint expects a checkpoint file or a directory, got 'nowhere'"),
    ],
)
def test_its_own_options(recipe, arguments, message, capsys):
    assert main(["doctor", recipe, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_help_names_its_own_options(capsys):
    assert main(["doctor", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--strict" in text
    assert "--trainer.max_steps" in text


def test_a_finished_run_is_refused_as_by_fit(before, recipe, capsys, only):
    only("length")
    files = sorted((path, path.stat().st_mtime_ns) for path in before.rglob("*"))
    arguments = ["doctor", recipe, f"--run_dir={before}"]
    assert main(arguments) == 2
    assert "holds a finished run" in capsys.readouterr().err
    assert main([*arguments, "--trainer.max_steps=6"]) == 0
    assert f"goes on at step 4 of {before}" in capsys.readouterr().out
    assert main([*arguments, "--trainer.fast_dev_run=true"]) == 0  # which writes nowhere
    assert files == sorted((path, path.stat().st_mtime_ns) for path in before.rglob("*"))


def test_one_broken_check_leaves_the_others(recipe, capsys, only):
    only("length", "ring")
    assert main(["doctor", recipe, "--run_dir=run", "--model.schedule={warmup_steps: 4}"]) == 2
    text = capsys.readouterr().out
    assert "error    length      The warm-up of 4 steps must be shorter than the run of 4 steps." in text
    assert "ok       ring " in text


def test_what_was_found_is_kept_when_it_is_interrupted(recipe, capsys, monkeypatch):
    def interrupted(case):
        raise KeyboardInterrupt
        yield

    kept = [each for each in CHECKS if each.name == "workers"]
    monkeypatch.setattr(doctor, "CHECKS", [*kept, NamedCheck("slow", interrupted)])
    assert main(["doctor", recipe, "--json=found.json"]) == 130
    report = json.loads(Path("found.json").read_text())
    assert ([each["check"] for each in report["checks"]], report["finished"]) == (["workers"], False)


@pytest.fixture
def own_data(before, tmp_path, monkeypatch):
    """A module with data of the user's own, and a recipe that names a class of it."""

    def write(module, source, name):
        monkeypatch.syspath_prepend(tmp_path)
        (tmp_path / f"{module}.py").write_text(source)
        return small_config(tmp_path, data={"class_path": f"{module}.{name}"})

    return write


def test_a_bug_is_no_bad_configuration(recipe, own_data, capsys):
    config = own_data("broken_data", BROKEN_DATA, "BrokenDataModule")
    assert main(["doctor", config, "--trust_imports", "broken_data", "--json=found.json"]) == 1
    assert "RuntimeError: a bug of mine" in capsys.readouterr().err
    assert "RuntimeError: a bug of mine" in json.loads(Path("found.json").read_text())["refused"]


def test_data_of_another_kind_without_length(recipe, own_data, capsys):
    """What can be said of the model and the machine is said; what asks for data says why it does not."""
    config = own_data("endless_data", ENDLESS_DATA, "EndlessDataModule")
    assert main(["doctor", config, "--trust_imports", "endless_data", "--json=found.json"]) == 0
    checks = {each["check"]: each for each in json.loads(Path("found.json").read_text())["checks"]}
    assert {name for name, each in checks.items() if each["skipped"] is None} >= {
        "tokens", "groups", "disk", "precision", "ring",
    }  # fmt: skip
    assert "EndlessDataModule is no siglightning.data.BaseDataModule" in checks["sample"]["skipped"]


def test_a_stream_of_tars(recipe, tmp_path, capsys):
    """It has the length that it is given, and no pictures that could be gone through but those to validate on."""
    for part, count in {"train": 12, "val": 6}.items():
        with tarfile.open(tmp_path / f"{part}.tar", "w") as tar:
            for number, image in enumerate(drawings(count)):
                for suffix, content in {"png": png(image), "txt": f"thing {number}".encode()}.items():
                    member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    tars = {"train": str(tmp_path / "train.tar"), "val": str(tmp_path / "val.tar"), "resampled": True}
    sizes = {"samples_per_epoch": 80, "global_batch_size": 8}
    data = {"class_path": "siglightning.data.WebDatasetDataModule", "init_args": {**tars, **sizes}}
    config = small_config(tmp_path, data=data)
    assert main(["doctor", config, "--json=found.json"]) == 0, capsys.readouterr().err
    checks = {each["check"]: each for each in json.loads(Path("found.json").read_text())["checks"]}
    assert [each["values"]["set"] for each in checks["pictures"]["findings"]] == ["val"]
    assert checks["duplicates"]["skipped"] == "a stream of training pictures cannot be gone through"
    assert checks["length"]["findings"][0]["values"]["epochs"] == 0.4
    assert checks["loader"]["findings"][0]["values"]["images"] > 0


def test_a_report_is_json_whatever_was_measured(recipe, capsys, only):
    """A loss that overflows: JSON has no word for it."""
    only("step 0")
    trainer = {**SMALL["trainer"], "precision": "32-true"}
    config = small_config(Path(), trainer=trainer, data={**SMALL["data"], "init_args": SYNTHETIC})
    network = "--model.network.init_log_scale=200"
    assert main(["doctor", config, network, "--json=found.json"]) == 2
    findings = json.loads(Path("found.json").read_text(), parse_constant=lambda word: pytest.fail(word))["checks"]
    assert findings[0]["level"] == "error"
