"""The command line. This front door answers simple questions at once; training starts behind it.

Importing torch and Lightning takes seconds, so help, version, typos in a command's name and missing configuration
files are answered before.
"""

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from siglightning import __version__
from siglightning.cli.configs import resolve_arguments

__all__ = ["main"]

COMMANDS = {
    "fit": "train, and test at the end",
    "validate": "evaluate a trained run on its validation data",
    "test": "evaluate a trained run on its test sets",
    "predict": "write a trained run's predictions",
    "embed": "store the features of locked towers, to train on them",
    "plan": "parameters, steps and memory of a run, before there are data or devices",
    "doctor": "look for what would go wrong in a run, on its data and devices, before it costs anything",
}
OTHERS = {
    "bench": "measure the losses on this machine: siglightning bench loss --help",
    "export": "write a run or checkpoint for transformers, open_clip or ONNX: siglightning export --help",
    "dashboard": "a workspace of W&B for the runs of a task: siglightning dashboard --help",
    "compare": "put runs side by side, as a table and a page: siglightning compare RUN RUN ...",
}

HELP = f"""siglightning {__version__}: language-image training, SigLIP style

usage: siglightning COMMAND --config FILE [--config FILE ...] [--key value ...]

commands:
{chr(10).join(f"  {name:<10}{text}" for name, text in (COMMANDS | OTHERS).items())}

often used:
  --config FILE         a path, or the name of a shipped file: quickstart, logger/wandb; later files win
  --run_dir DIR         where everything of the run goes; default: runs/NAME-OF-THE-FIRST-CONFIG
  --resume MODE         auto: go on with an unfinished run; must; never
  --init_from RUN       begin with the weights of another run, or of a checkpoint file
  --trainer.max_steps N and every other key of the configuration
  --trust_imports PKG   let configurations name classes of this package, too
  --debug               show the traceback of every error
  --print_config        print the resulting configuration and stop
  --devices 4,16,32     of plan, which also takes --memory_gib N and --out FILE
  --checkpoint PATH     of doctor, which also takes --json FILE, --samples N and --strict

siglightning COMMAND --help lists every key. Version: siglightning --version.
First steps: siglightning fit --config quickstart
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; default: those of the process.

    Returns:
        The exit code: 0 done, 1 a bug, 2 bad configuration or input, 3 not finite, 4 hang, 75 preempted,
        130 interrupted, 143 terminated.
    """
    arguments = command = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if arguments[0] in ("--version", "-V", "version"):
        print(f"siglightning {__version__}")
        return 0
    try:
        _require_command(arguments[0])
        if arguments[0] in OTHERS:
            return _run_other(arguments[0], arguments[1:])
        arguments, trusted = _take_values(arguments, "--trust_imports")
        arguments, debug = _take_flag(arguments, "--debug")
        debug = debug or os.environ.get("SIGLIGHTNING_DEBUG", "") not in ("", "0")
        arguments = resolve_arguments(arguments)
        if arguments[0] == "plan":
            return _run_plan(arguments[1:], trusted, debug=debug)
        if arguments[0] == "doctor":
            return _run_doctor(arguments[1:], trusted, debug=debug)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from siglightning.cli.session import run  # imports torch and Lightning

    return run(arguments, command, trusted, debug=debug)


def _run_plan(arguments: list[str], trusted: Sequence[str], *, debug: bool) -> int:
    """Take what only ``plan`` knows from the arguments; the others are those of ``fit``.

    Raises:
        ValueError: a number of devices, or of GiB, that is none.
    """
    arguments, devices = _take_values(arguments, "--devices")
    arguments, memory = _take_values(arguments, "--memory_gib")
    arguments, out = _take_values(arguments, "--out")
    counts = [number for value in devices for number in value.split(",")]
    if not all(number.isdigit() and int(number) > 0 for number in counts):
        raise ValueError(f"--devices expects numbers such as 4,16,32, got {', '.join(devices)}.")
    try:
        gib = float(memory[-1]) if memory else None
    except ValueError:
        raise ValueError(f"--memory_gib expects the memory of a device in GiB, got {memory[-1]!r}.") from None
    from siglightning.cli.plan import run_plan

    counted = [int(number) for number in counts] or [4, 16, 32]
    return int(run_plan(arguments, trusted, counted, gib, out[-1] if out else None, debug=debug))


def _run_doctor(arguments: list[str], trusted: Sequence[str], *, debug: bool) -> int:
    """Take what only ``doctor`` knows from the arguments; the others are those of ``fit``.

    Raises:
        ValueError: a number of samples that is none.
    """
    arguments, strict = _take_flag(arguments, "--strict")
    arguments, checkpoint = _take_values(arguments, "--checkpoint")
    arguments, report = _take_values(arguments, "--json")
    arguments, samples = _take_values(arguments, "--samples")
    if not all(number.isdigit() and int(number) > 0 for number in samples):
        raise ValueError(f"--samples expects how many pictures of each set to look at, got {samples[-1]!r}.")
    from siglightning.cli.doctor import DoctorOptions, run_doctor

    count = int(samples[-1]) if samples else DoctorOptions.samples
    options = DoctorOptions(([None, *checkpoint])[-1], ([None, *report])[-1], count, strict, debug)
    return int(run_doctor(arguments, trusted, options))


def _run_other(name: str, arguments: Sequence[str]) -> int:
    """Run a command that has no configuration; it reads its own arguments."""
    main_of = import_module(f"siglightning.commands.{name}").main
    try:
        return int(main_of(arguments))
    except SystemExit as error:  # argparse has said what is wrong
        return error.code if isinstance(error.code, int) else 2
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _require_command(name: str) -> None:
    known = [*COMMANDS, *OTHERS]
    if name in known:
        return
    if name.startswith("-"):
        raise ValueError(f"Expected a command before {name!r}: one of {', '.join(known)}.")
    near = get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(known)}."
    raise ValueError(f"There is no command {name!r}. {hint}")


def _take_values(arguments: list[str], flag: str) -> tuple[list[str], list[str]]:
    """Split ``flag VALUE`` and ``flag=VALUE`` from the other arguments.

    Trust is taken here, before any configuration is read, so that no configuration can grant it to itself.
    """
    rest: list[str] = []
    values: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name != flag:
            rest.append(argument)
            continue
        value = value if equals else next(remaining, "")
        if not value or value.startswith("-"):
            raise ValueError(f"{flag} expects a value, got nothing.")
        values.append(value)
    return rest, values


def _take_flag(arguments: list[str], flag: str) -> tuple[list[str], bool]:
    rest = [argument for argument in arguments if argument != flag]
    return rest, len(rest) < len(arguments)
