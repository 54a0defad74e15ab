"""Bias, temperature (SigLIP paper, Table 4) and noise (section 4.10) from the command line, on real rows."""

import csv
import math

import pytest
import yaml

from siglightning.cli import main

SMALL = """
model:
  init_args:
    network:
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 8, depths: [1, 1, 1]}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 8, depth: 0, heads: 2}}
        embed_dim: 8
    scalar_lr_mult: 0.0  # t' and b are logged as they begin
data:
  init_args: {global_batch_size: 16}
trainer:
  max_steps: 2
  limit_val_batches: 0
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
"""
NETWORK = "--model.init_args.network.init_args"


@pytest.fixture
def fit(here):
    (here / "small.yaml").write_text(SMALL)

    def run(*arguments):
        common = ["--config", "quickstart", "--config", "small.yaml", "--test_after_fit=false"]
        assert main(["fit", *common, "--run_dir", "run", *arguments]) == 0
        with (here / "run" / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    return run


@pytest.mark.parametrize(
    ("bias", "log_scale"),
    [("null", math.log(10)), ("-10", math.log(10)), ("-10", 0.0), ("0", math.log(10)), ("0", 0.0)],
)
def test_every_row_of_table_four_can_be_trained(fit, bias, log_scale):
    rows = fit(f"{NETWORK}.init_bias={bias}", f"{NETWORK}.init_log_scale={log_scale}")
    assert len(rows) == 2
    for row in rows:
        assert float(row["train/logit_scale"]) == pytest.approx(math.exp(log_scale), rel=1e-6)
        assert math.isfinite(float(row["train/loss"]))
        assert ("train/logit_bias" in row) == (bias != "null")
        assert bias == "null" or float(row["train/logit_bias"]) == float(bias)


def test_bias_matched_to_the_batch_and_a_scale_beyond_the_hundred_of_clip(fit, here):
    """`auto` is -log(B - 1); t' is not clamped, at the start or by steps; noise is a setting like any other."""
    noise = "--data.init_args.noise={corrupt: [image, text], probability: 0.5}"
    more = [f"{NETWORK}.init_log_scale={math.log(150)}", "--model.init_args.scalar_lr_mult=1.0", noise]
    rows = fit(f"{NETWORK}.init_bias=auto", *more)
    assert float(rows[0]["train/logit_bias"]) == pytest.approx(-math.log(15), rel=1e-6)
    assert all(float(row["train/logit_scale"]) > 149 for row in rows)
    resolved = yaml.safe_load((here / "run" / "config.yaml").read_text())["data"]["init_args"]["noise"]
    assert resolved == {"corrupt": ["image", "text"], "probability": 0.5, "seed": 0}
