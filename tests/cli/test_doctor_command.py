"""The command: exit codes, the report, errors in the words of ``fit``, and no trace of it anywhere."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from examined import small_config

from siglightning.cli import main


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return small_config(tmp_path)


def weights(run):
    path = next((Path(run) / "checkpoints").glob("step-*.ckpt"))
    return torch.load(path, weights_only=True)["state_dict"]


def test_it_reports_and_leaves_nothing_behind(recipe, tmp_path, capsys):
    fit = ["fit", recipe, "--run_dir=run", "--test_after_fit=false"]
    assert main([*fit[:2], "--run_dir=before", *fit[3:]]) == 0
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    files = {path.name for path in tmp_path.iterdir()}
    capsys.readouterr()

    assert main(["doctor", recipe, "--run_dir=run", "--json=found.json", "--samples=50"]) == 0
    text = capsys.readouterr().out
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())
    assert {path.name for path in tmp_path.iterdir()} - files == {"found.json", "found-samples.png"}

    report = json.loads((tmp_path / "found.json").read_text())
    assert [check["check"] for check in report["checks"]] == [
        "sample", "pictures", "duplicates", "classes", "captions", "tokens", "negatives", "step 0", "groups", "length",
        "memory", "disk", "precision", "workers", "loader", "ring",
    ]  # fmt: skip
    assert all(f"{check['check']:<11} " in text for check in report["checks"])
    assert report["errors"] == 0
    assert f"0 errors, {report['warnings']} warning" in text

    assert main(fit) == 0
    after, before = weights("run"), weights("before")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_tokens_are_compared_with_those_of_the_checkpoints_run(recipe, tmp_path, capsys):
    assert main(["fit", recipe, "--run_dir=run", "--test_after_fit=false"]) == 0
    assert json.loads((tmp_path / "run" / "model.json").read_text())["text"]["context_length"] == 24
    capsys.readouterr()
    arguments = ["doctor", recipe, "--run_dir=next", "--checkpoint=run", "--samples=20", "--json=found.json"]
    assert main(arguments) == 2  # after four steps the weights do not know the pairs
    text = capsys.readouterr().out
    assert "weights of run/checkpoints/step-00000004.ckpt, step 4" in text
    assert "do not tell pairs from others here" in text
    assert "captions become ids as for the run of run/checkpoints" in text
    assert main([*arguments, "--model.network.canonicalize=true"]) == 2
    assert "strips_punctuation True, there False" in capsys.readouterr().out


def test_exit_codes(recipe, capsys):
    odd = ["doctor", recipe, "--run_dir=run", "--samples=20", "--data.global_batch_size=4"]
    assert main(odd) == 0
    assert "warning  negatives" in capsys.readouterr().out
    assert main([*odd, "--strict"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--model.network.image_tower=local:cnov"],
        ["--data.global_batch_size=400"],
        ["--trainer.accumulate_grad_batches=2"],
        ["--trainer.strategy=ring_dpp"],
        ["--trainer.max_step=3"],
        ["--ckpt_path=nowhere.ckpt"],
        ["--model.network.micro_batch_size=5"],
    ],
)
def test_a_broken_configuration_is_told_as_fit_tells_it(recipe, arguments, capsys):
    errors = []
    for command in ("fit", "doctor"):
        assert main([command, recipe, "--run_dir=run", *arguments]) == 2
        errors.append(capsys.readouterr().err.strip().splitlines()[-1])
    assert errors[0] == errors[1]
    assert errors[0].startswith("error: ")
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples=many"], "--samples expects how many pictures of each set to look at, got 'many'."),
        (["--json=nowhere/found.json"], "--json expects a file in a folder that is there"),
        (["--checkpoint"], "--checkpoint expects a value, got nothing."),
        (["--checkpoint=nowhere"], "'nowhere', which does not exist"),
    ],
)
def test_its_own_options(recipe, arguments, message, capsys):
    assert main(["doctor", recipe, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_finished_run_is_refused_as_by_fit(recipe, capsys):
    assert main(["fit", recipe, "--run_dir=run", "--trainer.max_steps=1", "--test_after_fit=false"]) == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in Path("run").rglob("*"))
    assert main(["doctor", recipe, "--run_dir=run", "--trainer.max_steps=1"]) == 2
    assert "run holds a finished run" in capsys.readouterr().err
    assert main(["doctor", recipe, "--run_dir=run", "--samples=20"]) in (0, 2)
    assert "goes on at step 1 of run" in capsys.readouterr().out
    assert before == sorted((path, path.stat().st_mtime_ns) for path in Path("run").rglob("*"))


def test_one_broken_check_leaves_the_others(recipe, capsys):
    assert main(["doctor", recipe, "--run_dir=run", "--samples=20", "--model.schedule={warmup_steps: 4}"]) == 2
    text = capsys.readouterr().out
    assert "error    length      The warm-up of 4 steps must be shorter than the run of 4 steps." in text
    assert "ok       ring " in text
