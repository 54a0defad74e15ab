"""LightningCLI with a run directory, exact resumes and refusals before costly work."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

import siglightning.data
import siglightning.distributed.strategy
import siglightning.tasks  # noqa: F401  # their names work in configurations
from siglightning.cli.advertisements import silence_advertisements
from siglightning.cli.changes import changes_since_last_start, require_same_recipe
from siglightning.cli.checks import require_file, require_known, require_one_beginning, require_typed_commands
from siglightning.cli.defaults import default_callbacks, with_atomic_checkpoints
from siglightning.cli.launch import as_launched, require_agreement
from siglightning.cli.length import resolve_length
from siglightning.cli.loggers import redirect_loggers, with_metrics_csv
from siglightning.cli.parser import SigParser, is_trusted
from siglightning.cli.session import Session
from siglightning.cli.trainer import SigTrainer
from siglightning.runtime.checkpoint import best_intact, newest_intact, require_resumable, require_same_model
from siglightning.runtime.environment import describe_environment
from siglightning.runtime.files import write_text
from siglightning.runtime.graceful_stop import GracefulStop, stop_is_agreed
from siglightning.runtime.processes import is_first_process, notice
from siglightning.runtime.run_checkpoint import RunCheckpoint
from siglightning.runtime.rundir import RunDir
from siglightning.runtime.watchdog import Watchdog
from siglightning.tasks.initial_weights import InitialWeights, begin_from


class BeganMarker(Callback):
    """Tell the session when work begins. The sanity check ends before: data may still be found wanting."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @override
    def on_train_start(self, *_: Any) -> None:
        self._session.training_begins()

    @override
    def on_validation_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._session.began = not trainer.sanity_checking

    @override
    def on_test_batch_start(self, *_: Any) -> None:
        self._session.began = True

    @override
    def on_predict_batch_start(self, *_: Any) -> None:
        self._session.began = True

    @override
    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loaders for training are made after the sanity check, and may refuse their configuration."""
        self._session.began = False


class SigCLI(LightningCLI):
    """The commands fit, validate, test, predict and embed.

    Differences from LightningCLI: everything goes into one run directory; a checkpoint's stored hyper-parameters
    never override the configuration or a flag; environment variables are not read.

    Args:
        session: what the command line says, and the state of this run.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        super().__init__(
            LightningModule,
            LightningDataModule,
            save_config_callback=None,
            trainer_class=SigTrainer,
            seed_everything_default=0,
            # Our loaders deal out global batches themselves; Lightning's sampler would repeat samples.
            # The tasks' table of groups says what Lightning's summary of modules does, and what is trained how.
            trainer_defaults={"use_distributed_sampler": False, "enable_model_summary": False},
            parser_kwargs={"allow_abbrev": False},
            parser_class=SigParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            args=session.arguments,
        )

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {**LightningCLI.subcommands(), "embed": {"model", "datamodule"}}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Directory of this run; default: runs/NAME, after the first configuration file.",
        )
        parser.add_argument(
            "--resume",
            type=Literal["auto", "must", "never"],
            default="auto",
            help="auto: go on with an unfinished run; must: refuse to begin anew; never: refuse to go on.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Run, checkpoint or model of another library: a new run begins with it, or it is evaluated.",
        )
        parser.add_argument(
            "--examples_seen",
            type=int | None,
            default=None,
            help="Length of the run in examples: sets trainer.max_steps, unless that or max_epochs is given.",
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Evaluate the final weights on the test sets after fit."
        )
        parser.add_argument(
            "--allow_changed_recipe",
            type=bool,
            default=False,
            help="Go on with a run although its model, data or recipe is another one than it has had so far.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(Watchdog, "watchdog")

    @override
    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.set_defaults(weights_only=True)
        if subcommand == "test":
            parser.set_defaults(verbose=False)  # our own table has chance levels and intervals
        if subcommand == "predict":
            parser.set_defaults(return_predictions=False)  # they go into files batch by batch
        return parser

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        self.config = parser.parse_args(self.session.arguments)

    @override
    def _parse_ckpt_path(self) -> None:
        """Leave the configuration alone: Lightning would put the checkpoint's stored values over the flags."""

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        refuse_at_once(config, self.session.command)
        resolve_length(config)
        self.session.open(str(self.subcommand), config)
        if self.subcommand == "fit" and self.session.start.checkpoint is None:
            require_one_beginning(config.init_from, config.ckpt_path)
        self._keep_config(config)
        self._tell_changes(config)
        run_dir = self.session.run_dir
        if run_dir is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="siglightning-")
            config.trainer.default_root_dir = self._scratch.name
        else:
            config.trainer.default_root_dir = str(run_dir.root)
            redirect_loggers(config.trainer, run_dir)

    def _keep_config(self, config: Any) -> None:
        kept = config.clone()
        kept.ckpt_path = None  # where this start took its weights from; a later one has the run's own
        kept.allow_changed_recipe = False  # for this start alone
        self._saved_config = self._parser(self.subcommand).dump(kept, skip_none=False)

    def _tell_changes(self, config: Any) -> None:
        """Say what is not as at the last start of the run; refuse what would make another run of it."""
        run_dir, start = self.session.run_dir, self.session.start
        if self.subcommand != "fit" or run_dir is None or start.number == 0:
            return
        changes = changes_since_last_start(run_dir, self._saved_config)
        if start.checkpoint is not None and not config.allow_changed_recipe:
            data_may_change = bool(config.data.get("init_args", {}).get("allow_changed_data"))
            require_same_recipe(run_dir, changes, start.global_step, data_may_change=data_may_change)
        for change in changes:
            notice(f"Changed since the last start: {change}")

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        configured = config["callbacks"]
        configured = configured if isinstance(configured, list) else [configured] if configured else []
        run_dir, start = self.session.run_dir, self.session.start
        config["plugins"] = with_atomic_checkpoints(config["plugins"], config["strategy"])
        config |= as_launched(config)
        if run_dir is not None:
            resume_step = start.global_step if start.checkpoint else None
            config["logger"], rows = with_metrics_csv(config["logger"], run_dir, resume_step)
        if config["enable_checkpointing"] is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, RunCheckpoint)]
        defaults = default_callbacks(configured, progress_bar=config["enable_progress_bar"] is not False)
        config["callbacks"] = [*configured, *defaults, BeganMarker(self.session), GracefulStop(self.session.signals)]
        silence_advertisements()
        trainer = super()._instantiate_trainer(config, callbacks)
        if run_dir is not None:
            rows.follow(trainer)
        self.session.trainer = trainer
        return trainer

    @override
    def after_instantiate_classes(self) -> None:
        if self.subcommand == "fit":
            if self.config["fit"].allow_changed_recipe and hasattr(self.datamodule, "allow_changed_data"):
                self.datamodule.allow_changed_data = True
            for part in (self.datamodule, self.model):
                if hasattr(part, "check_processes"):  # here, since later each process would say it
                    part.check_processes(self.trainer)
            pairs = getattr(self.datamodule, "global_batch_size", None)
            if pairs is not None and hasattr(self.model, "check_batch"):
                self.model.check_batch(self.trainer, pairs)
        self._checkpoint = self._choose_checkpoint()
        if self._checkpoint is not None and not is_overridden("configure_model", self.model):
            require_same_model(self.model.state_dict(), self._checkpoint)
        begun = self._begin()
        run_dir = self.session.run_dir
        if run_dir is not None and is_first_process():
            self._record_start(run_dir)
            if begun is not None:
                self.session.wrote(run_dir.init_from)
                write_text(run_dir.init_from, json.dumps(begun.record(), indent=2) + "\n")

    def _begin(self) -> InitialWeights | None:
        """Load the weights to begin with, unless a checkpoint brings them all.

        Here rather than when training starts: data modules ask for the identity of a tower's weights.
        """
        init_from = self.config[self.subcommand].init_from
        if init_from is None or self._checkpoint is not None:
            return None
        begun = begin_from(self.model, init_from)
        notice("\n".join(begun.lines()))
        return begun

    def _choose_checkpoint(self) -> Path | None:
        """The file to load: an unfinished run's own newest, else the one asked for, else the run's for evaluation."""
        config, start = self.config[self.subcommand], self.session.start
        for reason in start.passed_over:
            notice(f"Passed over: {reason}")
        if start.checkpoint is not None:
            notice(f"Resuming {config.run_dir} from step {start.global_step}")
            return start.checkpoint
        if config.ckpt_path is not None:
            if self.subcommand == "fit":
                require_resumable(Path(config.ckpt_path))
            return Path(config.ckpt_path)
        if self.subcommand in ("fit", "embed"):
            return None
        if config.resume == "never":
            notice("Evaluating the model as it is built, as --resume never says.")
            return None
        folder = RunDir(Path(config.run_dir)).checkpoints
        if config.init_from is not None and not folder.is_dir():
            return None  # a new run's first weights are evaluated
        best = best_intact(folder)
        if best is not None:
            notice(f"Evaluating {best}, the best of the run")
            return best
        found = newest_intact(folder)
        for reason in found.passed_over:
            notice(f"Passed over: {reason}")
        if found.path is None:
            raise ValueError(
                f"There is no intact checkpoint in {config.run_dir}. Give --run_dir of a trained run or --ckpt_path, "
                "or evaluate the model as it is built with --resume never."
            )
        notice(f"Evaluating {found.path}")
        return found.path

    def _record_start(self, run_dir: RunDir) -> None:
        number = self.session.start.number
        config_path, environment_path = run_dir.config_of(number), run_dir.environment_of(number)
        self.session.wrote(config_path, environment_path)
        write_text(config_path, self._saved_config)
        environment = describe_environment(self.trainer.world_size, self.session.command)
        write_text(environment_path, json.dumps(environment, indent=2) + "\n")
        notice(f"Run directory: {run_dir.root}")

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs | {"ckpt_path": self._checkpoint, "weights_only": True}

    def after_fit(self) -> None:
        """Evaluate the best weights on the test sets where the task keeps them, else the final ones."""
        if stop_is_agreed(self.trainer):
            raise self.session.signals.stop()
        # Lightning counts the last step only when it begins the next one: a resumed run that has none would log its
        # tests at the step before. The stop tests fail when the name goes.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step
        has_test = is_overridden("test_step", self.model) and is_overridden("test_dataloader", self.datamodule)
        if self.config[self.subcommand].test_after_fit and has_test and not self.trainer.interrupted:
            best = best_intact(Path(self.trainer.default_root_dir) / "checkpoints")
            if best is not None:
                notice(f"Evaluating {best}, the best of the run by {self.model.monitor}")
            self.trainer.test(
                self.model,
                datamodule=self.datamodule,
                verbose=False,
                ckpt_path=best,
                weights_only=True if best else None,
            )


def refuse_at_once(config: Any, typed: Sequence[str]) -> None:
    """Refuse what can be told from a parsed configuration alone.

    Args:
        config: of the command.
        typed: the command line.

    Raises:
        ValueError: an unknown strategy or accelerator, a checkpoint that is not there, other processes than a launcher
            has started, a second directory, or a command of the shell that nobody has typed.
    """
    if not is_trusted("webdataset"):
        require_typed_commands(config, typed)
    require_known("trainer.strategy", config.trainer.strategy, StrategyRegistry.available_strategies())
    require_known("trainer.accelerator", config.trainer.accelerator, AcceleratorRegistry.available_accelerators())
    require_file(config.ckpt_path)
    require_agreement(config.trainer)
    if config.trainer.default_root_dir is not None:
        raise ValueError(
            f"Everything of a run goes into one directory: use --run_dir {config.trainer.default_root_dir} "
            "instead of trainer.default_root_dir."
        )
