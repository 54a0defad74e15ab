"""Stopped anywhere and resumed, training sees the very samples and pixels of the undisturbed run."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from siglightning.batch import InputSpec
from siglightning.data import Augmentation, BaseDataModule, CaptionChoice, PictogramArchive
from siglightning.data.pictograms.captions import Captions
from siglightning.data.pictograms.dataset import PictogramDataset, TrainingPictograms

STEPS_PER_EPOCH = 5
TOTAL_STEPS = 13  # the third epoch is cut short


class FewPictograms(BaseDataModule):
    """42 real pictures in batches of 8: five steps an epoch, two pictures left over."""

    fingerprint = "42 pictures"

    def build(self, spec):
        archive = PictogramArchive.open()
        captions = Captions(archive, CaptionChoice({"name": 1, "keyword": 1}))
        labels = torch.zeros(len(archive), dtype=torch.int64)
        rows = np.arange(0, 42 * 30, 30)
        self.train_set = TrainingPictograms(archive, rows, captions, labels, 32, Augmentation(), self.seed)
        self.val_set = PictogramDataset(archive, rows[:4], captions, labels, 32)
        self.test_sets = {}


def captions_as_numbers(captions):
    return torch.tensor([[len(caption), sum(caption.encode())] for caption in captions])


class Recorder(LightningModule):
    """A model whose training is not the point: it writes down what it was given."""

    input_spec = InputSpec(32, captions_as_numbers)

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch["id"], batch["image"].clone(), batch["text"].clone()))
        return self.weight * batch["image"].float().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def run(tmp_path, max_steps, resume=None, num_workers=0, callbacks=(), **trainer_options):
    model = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **trainer_options,
    )
    trainer.fit(
        model, FewPictograms(8, 4, num_workers, seed=3), ckpt_path=resume, weights_only=True if resume else None
    )
    return model.seen, trainer


def assert_same(seen, expected, epochs=True):
    assert len(seen) == len(expected)
    for (epoch, ids, image, text), (other_epoch, other_ids, other_image, other_text) in zip(
        seen, expected, strict=True
    ):
        assert epoch == other_epoch or not epochs
        assert ids == other_ids
        assert torch.equal(image, other_image)
        assert torch.equal(text, other_text)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("undisturbed"), TOTAL_STEPS)[0]


def test_the_undisturbed_run_changes_order_pixels_and_captions_each_epoch(undisturbed):
    epochs = [[step for step in undisturbed if step[0] == epoch] for epoch in range(3)]
    assert [len(epoch) for epoch in epochs] == [5, 5, 3]
    for earlier, later in pairwise(epochs):
        assert [ids for _, ids, _, _ in earlier] != [ids for _, ids, _, _ in later]
    first = {key: image for _, ids, images, _ in epochs[0] for key, image in zip(ids, images, strict=True)}
    second = {key: image for _, ids, images, _ in epochs[1] for key, image in zip(ids, images, strict=True)}
    assert len(first) == 40
    shared = first.keys() & second.keys()
    assert all(not torch.equal(first[key], second[key]) for key in shared)


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 10])
@pytest.mark.parametrize("moment", ["after fit", "train batch end", "with validation"])
def test_resuming_continues_with_the_next_batch(tmp_path, undisturbed, stop, moment):
    options = {"val_check_interval": 2} if moment == "with validation" else {"limit_val_batches": 0}
    callbacks = [] if moment == "after fit" else [ModelCheckpoint(tmp_path, "last", every_n_train_steps=stop)]
    before, trainer = run(tmp_path, stop, callbacks=callbacks, **options)
    if moment == "after fit":
        trainer.save_checkpoint(tmp_path / "last.ckpt")
    after, _ = run(tmp_path, TOTAL_STEPS, resume=tmp_path / "last.ckpt", **options)
    # Lightning calls an epoch finished when `fit` returns, also in its middle; its own number is then one ahead.
    assert_same(before + after, undisturbed, epochs=moment != "after fit")


@pytest.mark.parametrize("save_when", ["validation end", "train epoch end"])
def test_checkpoints_of_other_moments_resume_too(tmp_path, undisturbed, save_when):
    saver = ModelCheckpoint(
        tmp_path, "{step}", save_top_k=-1, every_n_epochs=1, save_on_train_epoch_end=save_when == "train epoch end"
    )
    options = {"val_check_interval": 3} if save_when == "validation end" else {}
    run(tmp_path, TOTAL_STEPS, callbacks=[saver], **options)
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert len(checkpoints) >= 2
    for checkpoint in checkpoints:
        done = int(checkpoint.stem.removeprefix("step="))
        after, _ = run(tmp_path, TOTAL_STEPS, resume=checkpoint, **options)
        assert_same(after, undisturbed[done:])


def test_workers_that_persist_change_nothing(tmp_path, undisturbed):
    """Workers fetch ahead as soon as the loader is made, before Lightning has put its own counters right."""
    saver = ModelCheckpoint(tmp_path, "last", every_n_train_steps=7)
    before, _ = run(tmp_path, 7, num_workers=2, callbacks=[saver], limit_val_batches=0)
    after, _ = run(tmp_path, TOTAL_STEPS, resume=tmp_path / "last.ckpt", num_workers=2, limit_val_batches=0)
    assert_same(before + after, undisturbed)


def test_a_limited_epoch_resumes_inside_its_limit(tmp_path):
    whole, _ = run(tmp_path, 9, limit_train_batches=3, limit_val_batches=0)
    before, trainer = run(tmp_path, 4, limit_train_batches=3, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    after, _ = run(tmp_path, 9, resume=tmp_path / "last.ckpt", limit_train_batches=3, limit_val_batches=0)
    assert_same(before + after, whole, epochs=False)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 4), ("global_batch_size", 10), ("steps_per_epoch", 4), ("fingerprint", "others")]
)
def test_other_data_are_refused(tmp_path, name, value):
    _, trainer = run(tmp_path, 2, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["FewPictograms"][name] = value
    torch.save(checkpoint, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=f"got others: .*{name}: {value} -> "):
        run(tmp_path, TOTAL_STEPS, resume=tmp_path / "last.ckpt", limit_val_batches=0)
