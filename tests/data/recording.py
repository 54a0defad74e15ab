"""Runs that write down every batch, for tests of what training sees."""

import torch
from lightning.pytorch import Trainer
from test_mid_epoch import Recorder


def record(module, folder, max_steps, resume=None, save=None, **trainer_options):
    """Train on a data module: (epoch, ids, pictures, texts) of each step, and the Trainer.

    ``resume`` is a checkpoint to go on from; ``save`` is written at the end.
    """
    model = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **trainer_options,
    )
    trainer.fit(model, module, ckpt_path=resume, weights_only=True if resume else None)
    if save is not None:
        trainer.save_checkpoint(save)
    return model.seen


def same(seen, expected):
    """Whether two recordings hold the same ids, pictures and texts, byte for byte."""
    return len(seen) == len(expected) and all(
        ids == other_ids and torch.equal(image, other_image) and torch.equal(text, other_text)
        for (_, ids, image, text), (_, other_ids, other_image, other_text) in zip(seen, expected, strict=True)
    )
