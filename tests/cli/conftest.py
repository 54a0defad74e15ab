"""Run the real command line in this process, in an empty working directory."""

import signal

import lightning.pytorch  # noqa: F401  # its log handler keeps the stream of its first import: not that of one test
import pytest
from cli_examples import TINY

from siglightning.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory that holds ``tiny.yaml`` alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture
def fit(here, capsys):
    """Call ``siglightning fit --config tiny.yaml ...``; gives the exit code and all that is printed."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*arguments: str, command: str = "fit") -> tuple[int, str]:
        capsys.readouterr()
        code = main([command, "--config", "tiny.yaml", "--trust_imports", "cli_examples", *arguments])
        return code, "".join(capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
