"""Our training: ContrastiveTask under the Trainer of `siglightning fit`, with the callbacks of every run."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule

from benchmarks.gpu.train_setup import Batches, Shape, Window, Work, adamw, tokenizer_file
from siglightning.batch import Batch
from siglightning.cli.defaults import default_callbacks
from siglightning.cli.trainer import SigTrainer
from siglightning.models import TwoTower
from siglightning.models.flops import step_flops
from siglightning.models.towers import TowerConfig
from siglightning.optim import Schedule
from siglightning.runtime.metrics_csv import MetricsCsvLogger
from siglightning.tasks import ContrastiveTask


class OurTraining:
    """One network that is trained in turns, each of them a `fit` of its own.

    Args:
        work: what is trained.
        shape: of its inputs.
        folder: where runs may write.
        weights: an open_clip model whose towers and weights are taken; ``None``: the towers of our recipes, at random.
    """

    def __init__(self, work: Work, shape: Shape, folder: Path, weights: Any = None) -> None:
        self.work, self.folder, self.turns = work, folder, 0
        self.network = _network(work, shape, folder, own_towers=weights is None)
        if weights is not None:
            for tower, theirs in ((self.network.image_tower, weights.visual), (self.network.text_tower, weights.text)):
                tower.trunk.load_state_dict(theirs.state_dict())
        self.task = ContrastiveTask(self.network, optimizer=adamw, schedule=Schedule(kind="constant"))

    def turn(self, batches: Batches, window: Window) -> None:
        """Train so many steps, timed by the window."""
        self.turns += 1
        run_dir = self.folder / f"turn-{self.turns}"
        run_dir.mkdir(parents=True)
        trainer = SigTrainer(
            accelerator="gpu" if self.work.device.type == "cuda" else "cpu",
            devices=1,
            precision=self.work.precision,
            max_steps=window.total,
            log_every_n_steps=window.steps,  # once in the steps that count
            callbacks=[*default_callbacks([], progress_bar=False), _Finished(window)],
            logger=MetricsCsvLogger(run_dir / "metrics.csv"),
            default_root_dir=run_dir,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(self.task, datamodule=_Resident(batches, window.total))


class _Finished(Callback):
    def __init__(self, window: Window) -> None:
        self.window = window

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.window.finished(batch_idx + 1)


class _Resident(LightningDataModule):
    """So many batches out of those that lie in memory."""

    def __init__(self, batches: Batches, steps: int) -> None:
        super().__init__()
        self.batches, self.steps_per_epoch = batches, steps
        self.global_batch_size = len(batches.images[0])
        self.ids = [str(number) for number in range(self.global_batch_size)]

    def train_dataloader(self) -> "_Resident":
        return self

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        for step in range(self.steps_per_epoch):
            place = step % len(self.batches.images)
            yield Batch(image=self.batches.images[place], text=self.batches.texts[place], id=self.ids)


def _network(work: Work, shape: Shape, folder: Path, own_towers: bool) -> TwoTower:
    """With open_clip's towers, or with those of configs/recipe/siglip_b16_224.yaml at the same sizes."""
    tokenizer = tokenizer_file(folder, shape.vocabulary)
    options: dict[str, Any] = {
        "tokenizer": str(tokenizer),
        "context_length": shape.context,
        "image_size": shape.side,
        "compile_towers": work.compiled,
    }
    if not own_towers:
        tower = f"open_clip:{work.model}"
        return TwoTower(tower, tower, **options)
    kwargs = {"vocab_size": shape.vocabulary, "width": 768, "depth": 12, "heads": 12, "pooling": "last"}
    text = TowerConfig("local:text_transformer", kwargs=kwargs | {"mask_padding": False})
    return TwoTower("timm:vit_base_patch16_siglip_224", text, **options)


def flops_per_image(work: Work, shape: Shape, batches: Batches) -> float:
    """Model FLOPs of an image in a step of training, as our trainings log them; the same for open_clip's."""
    with TemporaryDirectory() as folder:
        network = _network(work, shape, Path(folder), own_towers=False)
    return step_flops(network, {"image": batches.images[0], "text": batches.texts[0]}) / len(batches.images[0])


def state(network: TwoTower) -> dict[str, torch.Tensor]:
    """Its weights under open_clip's names."""
    image, text = network.image_tower.trunk.state_dict(), network.text_tower.trunk.state_dict()
    scalars = {"logit_scale": network.log_scale[0].detach()}
    if network.bias is not None:
        scalars["logit_bias"] = network.bias[0].detach()
    return (
        {f"visual.{key}": value for key, value in image.items()}
        | {f"text.{key}": v for key, v in text.items()}
        | scalars
    )
