"""The shipped optimizer settings on the real task and data: built as written, saved readably, resumed to the bit."""

import pytest
import torch
import yaml

from siglightning.cli import main
from siglightning.cli.configs import shipped_configs

NAMES = sorted(path.stem for path in (shipped_configs() / "optimizer").glob("*.yaml"))
SMALL = """
model:
  init_args:
    network:
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 32, depths: [1, 1]}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 32, depth: 1, heads: 2, bottleneck: null}}
        embed_dim: 32
    rules: [{pattern: "^network.image_tower", lr_mult: 0.1, weight_decay_mult: 0.0}]
    schedule: {warmup_steps: 2}
data:
  init_args: {global_batch_size: 12}
trainer:
  max_steps: 6
  limit_val_batches: 0
  log_every_n_steps: 1
  enable_progress_bar: false
test_after_fit: false
checkpoint: {every_n_steps: 2}
"""


@pytest.fixture
def small(here):
    """Arguments of a small run; the working directory is empty but for its configuration."""
    (here / "small.yaml").write_text(SMALL)
    return ["fit", "--config=quickstart", "--config=small.yaml", "--trust_imports=cli_examples"]


@pytest.mark.parametrize("name", NAMES)
def test_settings_arrive_as_they_are_written(name, small, capsys):
    assert main([*small, f"--config=optimizer/{name}", "--print_config"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    written = yaml.safe_load((shipped_configs() / "optimizer" / f"{name}.yaml").read_text())["model"]["init_args"]
    assert printed["weight_decay_convention"] == written["weight_decay_convention"]
    assert printed["optimizer"]["class_path"] == written["optimizer"]["class_path"]
    given = written["optimizer"]["init_args"]
    assert {key: printed["optimizer"]["init_args"][key] for key in given} == given
    assert {"lr", "weight_decay"} <= given.keys()  # else those of an earlier file would stay


def test_a_type_that_a_library_has_for_a_default_is_saved_readably(small, capsys):
    """timm's momentum_dtype is torch.bfloat16 unless given, and only words without "torch." are read by it."""
    assert main([*small, "--model.optimizer=timm.optim.AdafactorBigVision", "--print_config"]) == 0
    assert (
        yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]["init_args"]["momentum_dtype"]
        == "bfloat16"
    )


def test_a_cut_off_run_ends_like_an_undisturbed_one(small, here, capsys):
    """Adafactor has states of three shapes and two types; files are read with weights_only."""
    arguments = [*small, "--config=optimizer/adafactor_big_vision"]
    assert main([*arguments, "--run_dir=whole"]) == 0
    crash = "{trainer: {callbacks: [{class_path: cli_examples.Crash, init_args: {step: 5}}]}}"
    assert main([*arguments, "--run_dir=cut", "--config", crash]) == 1
    capsys.readouterr()
    assert main([*arguments, "--run_dir=cut"]) == 0
    assert "Resuming cut from step 4" in capsys.readouterr().out
    whole, cut = (
        torch.load(here / run / "checkpoints" / "step-00000006.ckpt", weights_only=True) for run in ("whole", "cut")
    )
    torch.testing.assert_close(cut["state_dict"], whole["state_dict"], rtol=0, atol=0)
    states = [each["optimizer_states"][0]["state"] for each in (cut, whole)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    kept = {name: value.dtype for state in states[0].values() for name, value in state.items()}
    assert kept["exp_avg"] == torch.bfloat16
    assert {"exp_avg_sq_r", "exp_avg_sq_c", "exp_avg_sq"} <= kept.keys()  # matrices are factored, small ones not
    assert whole["optimizer_states"][0]["param_groups"] == cut["optimizer_states"][0]["param_groups"]
