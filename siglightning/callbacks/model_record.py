"""What a run trains, written beside its configuration."""

import json
import re
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from siglightning.models.token_record import TokenRecord
from siglightning.models.tokenizers import Tokenizer
from siglightning.runtime.files import spared, write_text

FILE_NAME = "model.json"
_MAX_NAME = 60  # characters: a folder's name


class ModelRecord(Callback):
    """Writes ``model.json`` into the run directory when training begins.

    It holds the task's class, the image tower's name, the number of ``parameters``, how many of them are ``trained``
    (those that an optimizer has, now or in a later epoch), the number of ``classes`` where the data have names for
    them, and how captions become ids (``text``, a :class:`~siglightning.models.token_record.TokenRecord`). A parameter
    that two modules share counts once.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file: by now optimizers know their parameters."""
        if trainer.is_global_zero:
            text = json.dumps(_describe(trainer, pl_module), indent=2, ensure_ascii=False)
            with spared(FILE_NAME):
                write_text(Path(trainer.default_root_dir) / FILE_NAME, text + "\n")


def model_name(module: LightningModule) -> str:
    """A short name of the image tower that can name a folder: ``siglip-base-patch16-224``.

    A module without a named tower goes by its class.
    """
    tower = getattr(getattr(module, "network", None), "image_tower", None)
    name = getattr(tower, "name", None) or type(module).__name__
    last = str(name).partition(":")[2] or str(name)
    safe = re.sub(r"[^\w.-]+", "_", last.rstrip("/").rpartition("/")[2]).strip("._")
    return safe[:_MAX_NAME] or type(module).__name__


def _describe(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    trained = {id(parameter): parameter.numel() for group in groups for parameter in group["params"]}
    class_names = getattr(getattr(trainer, "datamodule", None), "class_names", None)
    tokenizer = getattr(getattr(module, "network", None), "tokenizer", None)
    return {
        "task": type(module).__name__,
        "model": model_name(module),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "trained": sum(trained.values()),
        "classes": len(class_names) if class_names else None,
        "text": TokenRecord.of(tokenizer).values() if isinstance(tokenizer, Tokenizer) else None,
    }
