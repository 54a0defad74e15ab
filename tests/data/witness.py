"""Runs that take down what training sees, on one process or several, and die when they are told to."""

import hashlib
import json
import os
import signal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from siglightning.batch import InputSpec
from siglightning.models.tokenizers import Tokenizer

SIZE, TOKENS = 24, 10
KEY = {"image": "a key of the tower that made the features"}


class Witness(LightningModule):
    """A model whose training is not the point: it takes down a digest of every sample that it is given."""

    def __init__(self, path):
        super().__init__()
        self.input_spec = InputSpec(SIZE, Tokenizer("clip", TOKENS), lambda: KEY)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.path = path

    def training_step(self, batch, batch_idx):
        seen = batch["image"] if "image" in batch else batch["image_embed"]
        rows = zip(batch["id"], seen, batch["text"], batch["match_id"], strict=True)
        with open(self.path, "a") as file:
            file.write(json.dumps([self.global_step, [digest(*row) for row in rows]]) + "\n")
        return self.weight * seen.float().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def predict_step(self, batch, batch_idx):
        with open(self.path, "a") as file:
            file.write(json.dumps([batch_idx, list(batch["id"])]) + "\n")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def digest(key, pixels, tokens, match_id):
    """A sample's id, and a hash over every byte of it."""
    content = pixels.contiguous().numpy().tobytes() + tokens.numpy().tobytes() + str(int(match_id)).encode()
    return f"{key} {hashlib.sha1(content).hexdigest()}"


class Die(Callback):
    """Ends the process at a step, as a machine that loses its power would."""

    def __init__(self, step):
        self.step = step

    def on_before_backward(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def train(module, folder, max_steps=0, resume=None, die_at=None, world_size=1):
    """Fit on a data module, a checkpoint every second step; ``folder`` gets records and checkpoints.

    No steps at all: predict.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    callbacks = [ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=-1)]
    trainer = Trainer(
        accelerator="cpu",
        devices=world_size,
        strategy="ddp" if world_size > 1 else "auto",
        max_steps=max_steps,
        default_root_dir=folder,
        logger=False,
        callbacks=[*callbacks, Die(die_at)] if die_at is not None else callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )
    witness = Witness(os.path.join(folder, f"seen-{rank}.jsonl"))
    if not max_steps:
        trainer.predict(witness, module, return_predictions=False)
        return
    trainer.fit(witness, module, ckpt_path=resume, weights_only=True if resume else None)


def train_on_this_rank(make, jobs):
    """Several runs, one after the other, on a process that :func:`run_ranks` started."""
    rank = dist.get_rank()
    rank_zero_only.rank = rank  # read by Lightning when it was imported, before this process knew
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, options in jobs.items():
        train(make(name), world_size=dist.get_world_size(), **options)


def seen(folder):
    """Global batches by step: the samples of all ranks in a row."""
    steps = {}
    for path in sorted(name for name in os.listdir(folder) if name.startswith("seen-")):
        with open(os.path.join(folder, path)) as file:
            for step, samples in map(json.loads, file):
                steps[step] = steps.get(step, []) + samples
    return steps
