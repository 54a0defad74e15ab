"""The command line with the real task on real rows: a small tower on the embedded pictograms."""

import csv
import json

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from siglightning.cli import main

SMALL = """
model:
  init_args:
    network:
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 8, depths: [1, 1, 1]}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 16, depth: 1, heads: 2}}
        embed_dim: 16
data:
  init_args: {global_batch_size: 16}
trainer:
  max_steps: 8
  val_check_interval: 4
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: null
  num_sanity_val_steps: 0
  limit_val_batches: 1
  limit_test_batches: 1
"""


@pytest.fixture
def fit(here, capsys):
    """Call ``siglightning fit`` with the quickstart made small; gives the exit code and all that is printed."""
    (here / "small.yaml").write_text(SMALL)

    def run(*arguments: str) -> tuple[int, str]:
        common = ["fit", "--config", "quickstart", "--config", "small.yaml", "--trust_imports", "cli_examples"]
        code = main([*common, *arguments])
        return code, "".join(capsys.readouterr())

    return run


def metrics(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [
        {
            k: v
            for k, v in row.items()
            if not k.startswith(("throughput/", "memory/", "epoch/seconds", "epoch/peak_memory"))
        }
        for row in rows
    ]


def test_a_cut_off_run_ends_like_an_undisturbed_one(fit, here):
    """The real sampler, augmentation, loss, optimizer and schedule, stopped between two checkpoints."""
    more = ["--test_after_fit=false", "--checkpoint.every_n_steps=3"]
    code, out = fit("--run_dir", "whole", *more)
    assert code == 0, out
    crash = "{trainer: {callbacks: [{class_path: cli_examples.Crash, init_args: {step: 7}}]}}"
    assert fit("--run_dir", "cut", *more, "--config", crash)[0] == 1
    code, out = fit("--run_dir", "cut", *more)
    assert code == 0, out
    assert "Resuming cut from step 6" in out

    assert metrics(here / "cut") == metrics(here / "whole")
    assert len([row for row in metrics(here / "cut") if row["train/loss"]]) == 8
    cut, whole = (
        torch.load(here / name / "checkpoints" / "step-00000008.ckpt", weights_only=True) for name in ("cut", "whole")
    )
    torch.testing.assert_close(cut["state_dict"], whole["state_dict"], rtol=0, atol=0)
    moments = [checkpoint["optimizer_states"][0]["state"] for checkpoint in (cut, whole)]
    assert len(moments[0]) > 10
    torch.testing.assert_close(*moments, rtol=0, atol=0)
    assert cut["lr_schedulers"] == whole["lr_schedulers"]


def test_a_whole_run_leaves_what_the_reader_needs(fit, here):
    code, out = fit("--run_dir", "run", "--trainer.max_steps=2")
    assert code == 0, out
    expected = {"config.yaml", "env.json", "metrics.csv", "exit.json", "checkpoints", "figures", "summary.json"}
    assert expected <= {path.name for path in (here / "run").iterdir()}
    assert json.loads((here / "run" / "exit.json").read_text())["status"] == "done"
    last = metrics(here / "run")[-1]
    assert 0 <= float(last["test/seen_concepts/t2i_recall@1"]) <= 1
    assert "seen_concepts" in out


SHARDED = '{"class_path": "lightning.pytorch.strategies.ModelParallelStrategy"}'


def test_the_softmax_loss_is_two_flags_away(fit, here):
    flags = ["--model.init_args.loss=softmax", "--model.init_args.network.init_args.init_bias=null"]
    code, out = fit("--run_dir", "run", "--trainer.max_steps=1", "--test_after_fit=false", *flags)
    assert code == 0, out
    model = yaml.safe_load((here / "run" / "config.yaml").read_text())["model"]["init_args"]
    assert (model["loss"], model["network"]["init_args"]["init_bias"]) == ("softmax", None)
    assert model["network"]["init_args"]["embed_dim"] == 16  # what other files say stays


THREE = ["--trainer.devices=3", "--trainer.strategy=ddp"]
MISTAKES = {
    "no folder": (["--data.root=missing"], "missing"),
    "empty folder": (["--data.root=empty"], "empty"),
    "batch": (["--data.global_batch_size=100000"], "100000"),
    "image tower": (["--model.network.init_args.image_tower.name=timm:vit_tiny_patch16_22"], "vit_tiny_patch16_224"),
    "text tower": (["--model.network.init_args.text_tower.name=local:text_transfromer"], "text_transformer"),
    "class": (["--data=PictogramDataModul"], "Did you mean 'PictogramDataModule'?"),
    "argument": (["--data.global_batchsize=4"], "Did you mean 'global_batch_size'?"),
    "run directory": (["--run_dir=small.yaml/run"], "small.yaml/run"),
    "indivisible batch": ([*THREE, "--data.global_batch_size=128"], "The nearest sizes are 126 and 129."),
    "sharded strategy": (
        ["--trainer.devices=3", "--data.global_batch_size=126", f"--trainer.strategy={SHARDED}"],
        "expected `trainer.strategy: ring_ddp`, got ModelParallelStrategy",
    ),
    "second directory": (["--trainer.default_root_dir=elsewhere"], "use --run_dir elsewhere"),
    "slices": (["--model.network.init_args.micro_batch_size=5"], "Nearest sizes that do: "),
    "tower argument": (["--model.network.init_args.image_tower.kwargs={width: wide}"], "local:conv"),
    "accumulation": (["--trainer.accumulate_grad_batches=4"], "negatives per image stay"),
    "masks": (["--model.negatives={kind: hard, ratio: 5000}", "--data.root=missing"], "a ratio of at most "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_bad_input_ends_before_training(name, fit, here):
    (here / "empty").mkdir()
    before = sorted(here.rglob("*"))
    arguments, expected = MISTAKES[name]
    code, out = fit(*arguments)
    assert code == 2, out
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, out
    assert expected in errors[0]
    assert "Traceback" not in out
    assert sorted(here.rglob("*")) == before


def test_a_checkpoint_of_another_size_is_refused(fit, here):
    assert fit("--run_dir", "run", "--trainer.max_steps=1", "--test_after_fit=false")[0] == 0
    other = ("--run_dir", "run", "--trainer.max_steps=2", "--model.network.init_args.embed_dim=24")
    code, out = fit(*other)
    assert code == 2, out
    assert "model.init_args.network.init_args.embed_dim: 16 -> 24" in out
    code, out = fit(*other, "--allow_changed_recipe=true")
    assert code == 2, out
    assert "is a checkpoint of another model: " in out
    assert "in the model and " in out


def test_predict_writes_the_embeddings_of_the_trained_weights(fit, here, capsys):
    assert fit("--run_dir", "run", "--trainer.max_steps=1", "--test_after_fit=false")[0] == 0
    config = ["--config", "run/config.yaml", "--run_dir", "run"]
    assert main(["predict", *config]) == 0
    assert sorted(path.name for path in (here / "run" / "predict").glob("*.parquet")) == [
        "seen_concepts.parquet",
        "unseen_concepts.parquet",
    ]
    table = pq.read_table(here / "run" / "predict" / "unseen_concepts.parquet").to_pydict()
    images, texts = torch.tensor(table["image_embed"]), torch.tensor(table["text_embed"])
    assert images.shape == texts.shape == (320, 16)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(320))
    assert len(set(table["id"])) == 320
    assert all(key.startswith("twemoji/") for key in table["id"])


def test_evaluating_what_was_never_trained_is_refused(here, capsys):
    assert main(["test", "--config", "quickstart", "--run_dir", "quikstart"]) == 2
    assert "no intact checkpoint in quikstart" in capsys.readouterr().err
    assert not (here / "quikstart").exists()


def test_a_refused_second_start_leaves_the_first_ones_records(fit, here):
    """The first start dies before its first checkpoint; a wrong one must not take its place, a right one may go on."""
    crash = "{trainer: {callbacks: [{class_path: cli_examples.Crash, init_args: {step: 2}}]}}"
    more = ["--run_dir", "run", "--trainer.max_steps=3", "--test_after_fit=false"]
    assert fit(*more, "--config", crash)[0] == 1
    kept = {name: (here / "run" / name).read_text() for name in ("config.yaml", "env.json", "exit.json")}
    assert fit(*more, "--data.global_batch_size=100000")[0] == 2
    assert {name: (here / "run" / name).read_text() for name in kept} == kept
    code, out = fit(*more)
    assert code == 0, out
    assert (here / "run" / "config.yaml").read_text() == kept["config.yaml"]
    assert (here / "run" / "config.resume-1.yaml").is_file()


def test_weights_that_are_not_finite_are_never_saved(fit, here):
    """NaN between two logging steps: exit 3, and the newest checkpoint is the last sound one."""
    more = ["--test_after_fit=false", "--checkpoint.every_n_steps=3", "--trainer.log_every_n_steps=100"]
    poison = "{trainer: {callbacks: [{class_path: cli_examples.Poison, init_args: {step: 5}}]}}"
    code, out = fit("--run_dir", "run", *more, "--config", poison)
    assert code == 3, out
    assert "not finite at step 6" in out
    checkpoints = sorted(path.name for path in (here / "run" / "checkpoints").glob("*.ckpt"))
    assert checkpoints[-1] == "step-00000004.ckpt"  # after the validation at step 4
    assert json.loads((here / "run" / "exit.json").read_text())["exit_code"] == 3
