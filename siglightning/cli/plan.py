"""``siglightning plan``: the configuration of a run, read as ``fit`` reads it, and what it will need."""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as WordTokenizer
from tokenizers.models import WordLevel
from typing_extensions import override

from siglightning.cli.app import SigCLI
from siglightning.cli.length import resolve_length
from siglightning.cli.parser import restrict_imports
from siglightning.cli.session import USER_ERRORS, Session, own_error
from siglightning.commands.plan import Length, Plan, make_plan
from siglightning.commands.plan.report import as_text, as_values
from siglightning.data import EmbeddingDataModule
from siglightning.models.footprint import Precision
from siglightning.models.tokenizers import open_vocabulary
from siglightning.runtime.exits import ExitCode
from siglightning.runtime.files import write_text
from siglightning.runtime.processes import notice
from siglightning.tasks import ContrastiveTask

PRECISIONS = {
    "32-true": Precision(),
    "64-true": Precision(torch.float64),
    "bf16-true": Precision(torch.bfloat16),
    "16-true": Precision(torch.float16),
    "bf16-mixed": Precision(torch.float32, torch.bfloat16),
    "16-mixed": Precision(torch.float32, torch.float16),
}
_SHORT = {None: "32-true", "32": "32-true", "64": "64-true", "bf16": "bf16-true", "16": "16-true"}


def run_plan(
    arguments: Sequence[str],
    trusted: Sequence[str],
    devices: Sequence[int],
    memory_gib: float | None,
    out: str | None,
    *,
    debug: bool,
) -> ExitCode:
    """Print a plan.

    Args:
        arguments: options of ``fit``.
        trusted: packages whose classes the configuration may name, beside the usual ones.
        devices: numbers of devices to plan for.
        memory_gib: what one has, to look for the largest slice that fits.
        out: a file for the numbers as JSON.
        debug: let errors through.
    """
    try:
        restrict_imports(trusted)
        with tempfile.TemporaryDirectory(prefix="siglightning-") as folder:
            plan = PlanCLI(arguments, Path(folder)).plan(devices, memory_gib)
    except SystemExit as error:  # the parser has said what is wrong
        return ExitCode.BAD_INPUT if error.code else ExitCode.DONE
    except USER_ERRORS as error:
        if debug:
            raise
        print(f"error: {own_error(error)}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    print(as_text(plan))
    if out is not None:
        write_text(Path(out), json.dumps(as_values(plan), indent=2) + "\n")
    return ExitCode.DONE


class PlanCLI(SigCLI):
    """Parses what ``fit`` would run, builds the model on the meta device, and goes no further.

    Weights are not loaded, and files of data are not opened. A tokenizer that cannot be had is replaced by as many
    ids as the text tower states.
    """

    def __init__(self, arguments: Sequence[str], scratch: Path) -> None:
        self._scratch_folder = scratch
        super().__init__(Session(["fit", *arguments], ["plan", *arguments]))

    @override
    def _set_seed(self) -> None:
        """Nothing is drawn."""

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config.fit
        self._trainer_settings = config.trainer.clone()
        resolve_length(config)
        self._steps = (config.trainer.max_steps, config.trainer.max_epochs)
        config.trainer.logger, config.trainer.callbacks = False, None
        settings = config.model.get("init_args", {})
        optimizer = getattr(settings.get("optimizer"), "init_args", None)
        if optimizer is not None and "fused" in optimizer:
            optimizer.fused = None  # there are no fused kernels without a device; the state is the same
        network = getattr(settings.get("network"), "init_args", None)
        if network is None or network.get("text_tower") is None:
            raise ValueError(f"plan expects a ContrastiveTask with two towers, got {config.model.class_path}.")
        for tower in ("image_tower", "text_tower"):
            network[tower] = _without_weights(network[tower])
        network.tokenizer = self._tokenizer(network)

    def _tokenizer(self, network: Any) -> str | None:
        """The configured source of ids, or a file with as many as the text tower states."""
        count = getattr(network.text_tower, "kwargs", {}).get("vocab_size")
        try:
            if network.tokenizer is not None:
                open_vocabulary(network.tokenizer)
        except ValueError:
            if count is None:
                raise
            notice(
                f"There is no tokenizer {network.tokenizer!r} here: planned with the {count:,} ids of the text tower."
            )
            path = self._scratch_folder / "tokenizer.json"
            WordTokenizer(WordLevel({str(number): number for number in range(count)}, unk_token="0")).save(str(path))
            return str(path)
        return str(network.tokenizer) if network.tokenizer is not None else None

    @override
    def instantiate_classes(self) -> None:
        parser = self._parser("fit")
        with torch.device("meta"):
            built = parser.instantiate_classes(self.config.fit)
        self.model, self.datamodule = built.model, built.data

    @override
    def after_instantiate_classes(self) -> None:
        """Nothing: there is no run."""

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing: there is no run."""

    def plan(self, devices: Sequence[int], memory_gib: float | None) -> Plan:
        """The plan of the configuration.

        Raises:
            ValueError: the task has not two towers, or the run no length, or one within its warm-up.
        """
        task, data = self.model, self.datamodule
        if not isinstance(task, ContrastiveTask):
            raise ValueError(f"plan expects a ContrastiveTask, got {type(task).__name__}.")
        max_steps, max_epochs = self._steps
        if max_steps in (None, -1):
            raise ValueError(
                f"plan needs the length of the run, got max_epochs {max_epochs} and no data to count. Set "
                "`--examples_seen` or `--trainer.max_steps`."
            )
        task.schedule.check_length(max_steps)  # `fit` would refuse it, too
        batch = data.global_batch_size * self._trainer_settings.accumulate_grad_batches
        length = Length(batch, max_steps, task.schedule.num_warmup_steps(max_steps))
        return make_plan(
            task,
            length,
            _precision(self._trainer_settings.precision),
            devices,
            stored_features=isinstance(data, EmbeddingDataModule),
            memory_bytes=None if memory_gib is None else round(memory_gib * 2**30),
        )


def _precision(name: Any) -> Precision:
    key = str(_SHORT.get(None if name is None else str(name), name))
    if key not in PRECISIONS:
        raise ValueError(f"plan expects a precision of {', '.join(PRECISIONS)}, got {name!r}.")
    return PRECISIONS[key]


def _without_weights(tower: Any) -> Any:
    if hasattr(tower, "pretrained"):
        tower.pretrained = False
    return tower
