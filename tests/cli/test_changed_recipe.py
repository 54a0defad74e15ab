"""A run goes on with the model, data and recipe that it has had; what differs is told key by key."""

import json

import pytest
import yaml
from cli_examples import fails

from siglightning.cli.changes import config_changes


@pytest.fixture
def begun(fit, here):
    """A run that has failed after its checkpoint of step 4."""
    assert fit("--run_dir", "run", fails(5))[0] == 1
    return here / "run"


@pytest.mark.parametrize(
    ("flags", "lines"),
    [
        (["--model.width=5", "--data.width=5"], ["model.init_args.width: 3 -> 5", "data.init_args.width: 3 -> 5"]),
        (["--model.optimizer.lr=0.1"], ["model.init_args.optimizer.init_args.lr: 0.05 -> 0.1"]),
        (["--seed_everything=1"], ["seed_everything: 0 -> 1"]),
        (["--trainer.gradient_clip_val=1"], ["trainer.gradient_clip_val: None -> 1"]),
        (["--trainer.precision=bf16-mixed"], ["trainer.precision: None -> bf16-mixed"]),
        (["--trainer.accumulate_grad_batches=2"], ["trainer.accumulate_grad_batches: 1 -> 2"]),
    ],
)
def test_another_recipe_is_refused_line_by_line(begun, fit, flags, lines):
    before = {path.name for path in begun.iterdir()}
    code, out = fit("--run_dir", "run", *flags)
    assert code == 2
    assert "Expected the model, data and recipe that run has had up to step 4, got others:" in out
    assert [line.strip() for line in out.splitlines() if " -> " in line] == lines
    assert {path.name for path in begun.iterdir()} | {".lock"} == before | {".lock"}


def test_what_does_not_decide_the_training_may_change(begun, fit):
    code, out = fit("--run_dir", "run", "--trainer.max_steps=12", "--checkpoint.keep_last=3", "--watchdog.hang_s=60")
    assert code == 0, out
    assert "Changed since the last start: trainer.max_steps: 10 -> 12" in out


def test_another_recipe_by_permission_is_then_that_of_the_run(begun, fit):
    lower = "--model.optimizer.lr=0.01"
    code, out = fit("--run_dir", "run", lower, "--allow_changed_recipe=true", fails(7), "--checkpoint.every_n_steps=1")
    assert (code, "Changed since the last start: model.init_args.optimizer.init_args.lr: 0.05 -> 0.01" in out) == (
        1,
        True,
    )
    assert fit("--run_dir", "run")[0] == 2
    assert yaml.safe_load((begun / "config.resume-1.yaml").read_text())["allow_changed_recipe"] is False
    assert fit("--run_dir", "run", lower)[0] == 0


@pytest.mark.parametrize(("release", "code"), [("0.0.1", 0), (None, 2)])
def test_an_option_that_came_with_a_release_is_no_change(begun, fit, release, code):
    """A run that began before an option existed has had its default; within a release the option was taken out."""
    config = yaml.safe_load((begun / "config.yaml").read_text())
    del config["model"]["init_args"]["name"]
    (begun / "config.yaml").write_text(yaml.safe_dump(config))
    environment = json.loads((begun / "env.json").read_text())
    environment["versions"] |= {} if release is None else {"siglightning": release}
    (begun / "env.json").write_text(json.dumps(environment))
    assert fit("--run_dir", "run")[0] == code


@pytest.mark.parametrize(
    ("before", "after", "decides"),
    [
        ("model: {network: {micro_batch_size: 4}}", "model: {network: {micro_batch_size: 8}}", False),
        ("model: {network: {compile_towers: false}}", "model: {network: {compile_towers: true}}", False),
        ("model: {optimizer: {fused: null}}", "model: {optimizer: {fused: true}}", False),
        ("model: {backend: auto}", "model: {backend: eager}", False),
        ("model: {init_args: {lora: null}}", "model: {init_args: {lora: {rank: 4}}}", True),
        ("model: {init_args: {kwargs: {}}}", "model: {init_args: {kwargs: {depth: 4}}}", True),
        ("data: {init_args: {root: here}}", "data: {init_args: {root: there}}", False),
        ("data: {init_args: {templates: [a]}}", "data: {init_args: {templates: [b]}}", True),
        ("model: {init_args: {templates: [a]}}", "model: {init_args: {templates: [b]}}", False),
        ("trainer: {callbacks: null}", "trainer: {callbacks: [{class_path: x.Progress}]}", False),
        ("trainer: {callbacks: [{class_path: x.EMAWeightAveraging}]}", "trainer: {callbacks: null}", True),
        ("data: {init_args: {zeroshot_sets: null}}", "data: {init_args: {zeroshot_sets: {root: there}}}", False),
    ],
)
def test_which_keys_decide(before, after, decides):
    assert {change.decides_training for change in config_changes(before, after)} == {decides}
