"""Runs and tests that begin with models of other libraries, by the command line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from siglightning.cli import main
from siglightning.models import load_two_tower

sys.path.append(str(Path(__file__).parents[1] / "models"))
from foreign import T_PRIME, as_big_vision, clip, sentencepiece_file, siglip

TASK = """
model:
  class_path: siglightning.tasks.ContrastiveTask
  init_args:
    network: {network}
    optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.0}}}}
data:
  class_path: siglightning.data.PictogramDataModule
  init_args: {{global_batch_size: 6, eval_batch_size: 32}}
trainer:
  accelerator: cpu
  max_steps: 1
  limit_val_batches: 1
  limit_test_batches: 1
  num_sanity_val_steps: 0
  enable_progress_bar: false
  logger: false
test_after_fit: false
"""
OURS = """{{class_path: siglightning.models.TwoTower, init_args:
      {{image_tower: "hf:{folder}", text_tower: "hf:{folder}", tokenizer: small.model}}}}"""
LOADED = """{{class_path: siglightning.models.load_two_tower, init_args:
      {{source: "{source}", tokenizer: small.model}}}}"""


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Call a command with a network; gives the exit code and all that is printed."""
    monkeypatch.chdir(tmp_path)
    sentencepiece_file(tmp_path / "small.model")

    def call(command, network, *arguments):
        (tmp_path / "all.yaml").write_text(TASK.format(network=network))
        capsys.readouterr()
        code = main([command, "--config", "all.yaml", *arguments])
        return code, "".join(capsys.readouterr())

    return call


def weights(run_dir):
    (path,) = Path(run_dir, "checkpoints").glob("step-*.ckpt")
    return torch.load(path, weights_only=True)["state_dict"]


def test_a_run_begins_with_a_folder_of_transformers(run, tmp_path):
    """The learning rate is zero: what the run saves is what it began with."""
    model = clip()
    model.save_pretrained("clip")
    code, out = run("fit", OURS.format(folder="clip"), "--init_from=clip", "--run_dir=first")
    assert code == 0, out
    assert "Beginning with the weights of clip, of transformers" in out
    assert "begins by rule: b = -log(B - 1) of the batch, since the checkpoint has none (softmax)" in out
    saved = weights("first")
    assert saved["network.bias"].item() == pytest.approx(-np.log(5))
    assert saved["network.log_scale"].item() == T_PRIME
    assert torch.equal(saved["network.image_tower.projection.weight"], model.visual_projection.weight)
    record = json.loads(Path("first/init_from.json").read_text())
    assert (record["kind"], record["bias_by_rule"]) == ("transformers", True)
    assert record["taken"]["image tower"] == sum("visi" in n or "visu" in n for n in model.state_dict())

    # The run is a source in its turn, for a network that loads itself, for Python, and for a test without training.
    code, out = run("test", LOADED.format(source="first"), "--run_dir=second", "--resume=never")
    assert code == 0, out
    assert f"Loaded first (run): t' = {T_PRIME:.5g}, b = -1.6094" in out
    network = load_two_tower("first").eval()
    assert network.tokenizer.source == "small.model"
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = model.get_image_features(network.normalise(images)).pooler_output
    torch.testing.assert_close(network.encode_image(images), torch.nn.functional.normalize(expected), rtol=0, atol=1e-6)


def test_a_model_is_tested_before_any_training(run):
    """`test --init_from` and a network that loads itself see the same weights."""
    siglip().save_pretrained("siglip")
    np.savez("siglip.npz", **as_big_vision(siglip()))
    found = []
    for network, extra in (
        (LOADED.format(source="siglip"), ["--resume=never", "--run_dir=a"]),
        (OURS.format(folder="siglip"), ["--init_from=siglip.npz", "--run_dir=b"]),
    ):
        code, out = run("test", network, *extra)
        assert code == 0, out
        found.append([line.split() for line in out.splitlines() if "recall@" in line or "zeroshot" in line])
    assert found[0]
    assert found[0] == found[1]


def test_what_does_not_fit_ends_in_one_line(run, tmp_path):
    siglip().save_pretrained("siglip")
    clip().save_pretrained("clip")
    network = OURS.format(folder="clip")
    code, out = run("fit", network, "--init_from=siglip", "--run_dir=first")
    assert code == 2, out
    assert "siglip does not fit the model: network.image_tower.trunk.embeddings.class_embedding is missing" in out
    assert "Take its own network (class_path: siglightning.models.load_two_tower, source: siglip)" in out
    (tmp_path / "siglip" / "model.safetensors").write_bytes(b"12345")
    code, out = run("fit", LOADED.format(source="siglip"), "--run_dir=first")
    assert code == 2, out
    assert "No weights for a two-tower model in 'siglip'" in out
    assert "Traceback" not in out
    assert not (tmp_path / "first").exists()
