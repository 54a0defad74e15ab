"""Lightning modules: what is trained, and how it is measured."""

from siglightning.tasks.base import BaseTask
from siglightning.tasks.contrastive import ContrastiveTask
from siglightning.tasks.finetune import FineTuneTask
from siglightning.tasks.initial_weights import begin_from
from siglightning.tasks.multilabel import MultiLabelTask

__all__ = ["BaseTask", "ContrastiveTask", "FineTuneTask", "MultiLabelTask", "begin_from"]
