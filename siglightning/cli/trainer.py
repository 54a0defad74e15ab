"""Lightning's Trainer with the one command that it lacks."""

from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from typing_extensions import override

from siglightning.commands.embed import EmbedOptions, embed


class _NoSignals(_SignalConnector):
    """Leaves signals to :class:`~siglightning.runtime.signals.StopSignals`: Lightning's handlers communicate."""

    @override
    def register_signal_handlers(self) -> None:
        self.received_sigterm = False


class SigTrainer(Trainer):
    """A Trainer that LightningCLI can ask to embed, and that takes no signals."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._signal_connector = _NoSignals(self)

    def embed(
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        views: int = 1,
        texts: bool | None = None,
        shard_size: int = 4096,
        dtype: Literal["float32", "float16"] = "float32",
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Store the features of locked towers in the run directory, for EmbeddingDataModule.

        Args:
            model: a task with two towers, the image tower locked.
            datamodule: the data.
            views: epochs of training data to store: as many other captions and, with augmentation, other pictures.
            texts: store features of captions, too; by default if the text tower is locked.
            shard_size: samples in a file.
            dtype: of the features.
            ckpt_path: a checkpoint whose weights to use; by default the model as it is built.
            weights_only: refuse checkpoints that hold more than weights and plain values.
        """
        embed(self, model, datamodule, EmbedOptions(views, texts, shard_size, dtype), ckpt_path, weights_only)
