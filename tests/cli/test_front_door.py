"""Simple questions are answered at once, without torch."""

import subprocess
import sys
import time

import pytest

from siglightning import __version__


def run(*arguments: str, code: str = "") -> subprocess.CompletedProcess:
    """One run of the program in a process of its own; its exit status is 99 when torch was imported."""
    program = (
        "import sys; from siglightning.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(99 if {'torch', 'lightning'} & sys.modules.keys() else code)"
    )
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]])
def test_help_and_version_need_no_torch_and_half_a_second(arguments):
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = run(*arguments)
        seconds.append(time.perf_counter() - start)
        assert result.returncode == 0, result.stderr
    assert min(seconds) < 0.5
    assert __version__ in result.stdout
    if arguments != ["--version"]:
        assert all(word in result.stdout for word in ("fit", "validate", "--config", "--run_dir", "--resume"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fti"], "Did you mean 'fit'?"),
        (["--config", "x.yaml"], "Expected a command before '--config'"),
        (["fit", "--config", "quickstrat"], "There is no configuration file 'quickstrat'"),
        (["fit", "--config", "logger/wandbb.yaml"], "Did you mean logger/wandb"),
        (["fit", "--config"], "--config expects a file"),
        (["fit", "--trust_imports"], "--trust_imports expects a value"),
    ],
)
def test_first_mistakes_get_one_line_without_torch(arguments, expected):
    result = run(*arguments)
    assert result.returncode == 2
    assert expected in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_the_module_runs_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "siglightning", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout == f"siglightning {__version__}\n"
