"""Mistakes end before training: one line, the nearest right name, exit code 2, nothing left behind."""

import os

import pytest
import torch


def contents(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


TYPOS = {
    "flag": (["--trainer.max_step=2"], "--trainer.max_step'. Did you mean '--trainer.max_steps'?"),
    "abbreviation": (["--trainer.max_st=2"], "There is no option '--trainer.max_st'"),
    "config key": (["--config", "{trainer: {max_step: 2}}"], "'trainer.max_step'. Did you mean 'trainer.max_steps'?"),
    "section": (["--config", "{trainr: {max_steps: 2}}"], "'trainr.max_steps'. Did you mean 'trainer.max_steps'?"),
    "class": (["--model", "TinyTusk"], "There is no class 'TinyTusk'. Did you mean 'TinyTask'?"),
    "class path": (["--data", "cli_examples.TinyDate"], "'cli_examples.TinyDate'. Did you mean 'TinyData'?"),
    "argument": (["--model.widht=3"], "There is no argument 'widht'. Did you mean 'width'?"),
    "optimizer": (["--model.optimizer=torch.optim.AdamV"], "Did you mean 'Adam"),
    "strategy": (["--trainer.strategy=dpp"], "There is no trainer.strategy 'dpp'. Did you mean 'ddp'?"),
    "accelerator": (["--trainer.accelerator=cuba"], "There is no trainer.accelerator 'cuba'. Did you mean 'cuda'?"),
    "type": (["--trainer.max_steps=ten"], "trainer.max_steps: expected int, got 'ten'."),
    "type in a config": (["--config", "{model: {init_args: {width: wide}}}"], "width: expected int, got 'wide'."),
    "resume": (["--resume", "maybe"], "resume"),
    "checkpoint": (["--ckpt_path", "gone.ckpt"], "'gone.ckpt', which does not exist"),
    "value": (["--model.width=0"], "TinyTask expects width >= 1, got 0."),
    "data": (["--data.folder=missing"], "expects a folder, got 'missing', which does not exist."),
    "trust": (["--trust_imports", "no_such_package_xyz"], "no_such_package_xyz"),
    "keep": (["--checkpoint.keep_last=0"], "keep_last >= 1"),
    "must": (["--resume=must"], "`--resume must` expects a run with checkpoints"),
}


@pytest.mark.parametrize("name", TYPOS)
def test_mistakes(name, fit, here):
    arguments, expected = TYPOS[name]
    before = contents(here)
    code, err = fit(*arguments)
    assert code == 2, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in err
    assert contents(here) == before


CHOICES = {
    "--model.train=head": "train: expected 'linear', 'full', {last_n: ..., from_epoch: ...} or a list of these, got",
    "--model.train=fulll": "Did you mean 'full'?",
    "--model.train={last_m: 3}": "There is no argument 'last_m'. Did you mean 'last_n'?",
    "--model.loss=focal": "loss: expected 'cross_entropy', 'bce', 'wan', 'an_ls', 'epr', 'em' or {name: ...",
}


@pytest.mark.parametrize("argument", CHOICES)
def test_words_and_groups_of_settings_are_listed(argument, here, capsys):
    from siglightning.cli import main

    assert main(["fit", "--config", "recipe/fashion_mnist_few_shot", argument]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert CHOICES[argument] in error


MASKS = {
    ("--model.negatives=hard",): "negatives: expected {kind: ..., ratio: ..., seed: ...}, got 'hard'.",
    ("--model.negatives.kind=hard",): "Missing: ratio. Give negatives: {kind: ..., ratio: ..., seed: ...}.",
    ("--model.negatives.ratio=2",): "Missing: kind. Give negatives: {kind: ..., ratio: ..., seed: ...}.",
    ("--model.negatives={kind: hrad, ratio: 2}",): "'random', 'hard' or 'easy', got 'hrad'. Did you mean 'hard'?",
    ("--model.negatives={kid: hard, ratio: 2}",): "There is no argument 'kid'. Did you mean 'kind'?",
    ("--model.negatives.kind=hard", "--model.negatives.ratio=0.5"): "ratio of at least 1, got 0.5",
    ("--model.negatives.kind=hard", "--model.negatives.ratio=128"): "at most 127, all that a global batch of 128 has",
}


@pytest.mark.parametrize("arguments", MASKS, ids=" ".join)
def test_masks_that_cannot_be_are_refused(arguments, here, capsys):
    from siglightning.cli import main

    assert main(["fit", "--config", "quickstart", *arguments]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert MASKS[arguments] in error


def test_the_towers_of_another_task_are_named_otherwise(here, capsys):
    from siglightning.cli import main

    before = contents(here)
    assert main(["predict", "--config=quickstart", "--model=MultiLabelTask"]) == 2
    assert "--model.network.source RUN" in capsys.readouterr().err
    assert contents(here) == before


def test_missing_sections_are_named(here, capsys):
    from siglightning.cli import main

    assert main(["fit", "--trust_imports", "cli_examples"]) == 2
    assert "error: Missing: data, model. Give a configuration" in capsys.readouterr().err


def test_debug_shows_the_traceback(fit):
    code, err = fit("--data.folder=missing", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert "error: TinyData expects a folder" in err


@pytest.mark.parametrize("root", ["file/run", "/proc/run"])
def test_unwritable_run_directory(root, fit, here):
    (here / "file").write_text("")
    code, err = fit("--run_dir", root)
    assert code == 2
    assert f"error: The run directory {root} cannot be written" in err
    assert not (here / "runs").exists()


def test_an_empty_directory_of_the_user_stays_empty(fit, here):
    (here / "mine").mkdir()
    code, _ = fit("--run_dir", "mine", "--data.folder=missing")
    assert code == 2
    assert contents(here / "mine") == []


def test_foreign_files_are_not_touched(fit, here):
    (here / "photos").mkdir()
    (here / "photos" / "cat.jpg").write_text("meow")
    code, err = fit("--run_dir", "photos")
    assert code == 2
    assert "error: photos holds files but no config.yaml" in err
    assert contents(here / "photos") == ["cat.jpg"]


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_a_checkpoint_with_code_is_refused(fit, here):
    torch.save({"state_dict": {}, "x": Payload()}, "evil.ckpt")
    code, err = fit("--ckpt_path", "evil.ckpt")
    assert code == 2
    assert "error: evil.ckpt cannot be loaded" in err
    assert contents(here) == ["evil.ckpt", "tiny.yaml"]


EVIL = {
    "model": "{model: {class_path: evil_module.Model}}",
    "callback": "{trainer: {callbacks: [{class_path: evil_module.Callback}]}}",
    "nested": "{model: {init_args: {optimizer: {class_path: evil_module.run}}}}",
    "system": "{model: {init_args: {optimizer: {class_path: os.system, init_args: {command: 'mkdir owned'}}}}}",
    "through ours": "{model: {init_args: {optimizer: {class_path: siglightning.runtime.files.os.system}}}}",
    "logger": "{trainer: {logger: {class_path: subprocess.Popen, init_args: {args: [mkdir, owned]}}}}",
}


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.parametrize("extra", [[], ["--print_config"]])
def test_a_strangers_config_imports_nothing(name, extra, fit, here, monkeypatch):
    """The module would be importable: it leaves a file behind when it is."""
    (here / "evil_module.py").write_text("open('owned', 'w')")
    (here / "evil.yaml").write_text(EVIL[name])
    monkeypatch.syspath_prepend(str(here))
    code, err = fit("--config", "evil.yaml", *extra)
    assert code == 2, err
    assert not (here / "owned").exists()
    assert not (here / "runs").exists()
    if "evil_module" in EVIL[name]:
        assert "--trust_imports evil_module" in err


PIPE = """
data:
  class_path: WebDatasetDataModule
  init_args: {resampled: true, samples_per_epoch: 9, train: [a.tar, "pipe:mkdir owned"], val: gone.tar}
"""


@pytest.mark.parametrize(("more", "is_refused"), [
    ([], True),
    (["--data.init_args.train=pipe:mkdir owned too"], False),
    (["--data.init_args.tests={a: 'pipe:mkdir owned too'}"], True),
    (["--trust_imports", "webdataset"], False),
])  # fmt: skip
def test_a_command_of_a_file_does_not_run(more, is_refused, here, capsys):
    """One that was typed gets as far as the tar that is not there, but runs no sooner than training."""
    from siglightning.cli import main

    (here / "evil.yaml").write_text(PIPE)
    for command in ("fit", "doctor"):
        assert main([command, "--config", "quickstart", "--config", "evil.yaml", *more]) == 2
        err = capsys.readouterr().err
        refused = "error: The configuration would run a command, data.init_args.train: pipe:mkdir owned. If you wrote"
        assert (refused in err) == is_refused, err
        assert contents(here) == ["evil.yaml", "tiny.yaml"]
