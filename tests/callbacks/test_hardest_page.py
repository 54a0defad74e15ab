"""The page of hardest negatives against a dense table of logits, on real rows."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from stability_runs import pictograms, pocket_task, trainer

from siglightning.batch import InputSpec
from siglightning.callbacks import HardestNegatives
from siglightning.callbacks.hardest import Confusion, draw_confusions
from siglightning.callbacks.lettering import one_line
from siglightning.data.sampler import EvaluationSampler

ROWS = 160


class Seen(HardestNegatives):
    """Keeps what the task hands over."""

    def on_validation_end(self, trainer, pl_module):
        self.embedded = pl_module.embedded["val"]
        super().on_validation_end(trainer, pl_module)


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hardest")
    task, data, page = pocket_task(), pictograms(eval_batch_size=40), Seen(num_pairs=6)
    logger = WandbLogger(save_dir=str(folder), offline=True, project="hardest")
    run = trainer(folder, [page], logger=logger, limit_val_batches=ROWS // 40)
    with pytest.MonkeyPatch.context() as patch:
        sent = []
        real = WandbLogger.log_image
        patch.setattr(
            WandbLogger, "log_image", lambda self, *args, **more: sent.append((args, more)) or real(self, *args, **more)
        )
        run.validate(task, data, verbose=False)
    logger.experiment.finish()
    return folder, task, data, page, sent


def test_the_pairs_sent_to_the_logger_are_the_highest_off_the_diagonal(validated):
    _, task, data, page, sent = validated
    rows = [data.val_set[index] for index in range(ROWS)]
    captions = [row["captions"][0] for row in rows]
    with torch.no_grad():
        images = task.network.eval().encode_image(torch.stack([row["image"] for row in rows]))
        texts = task.network.encode_text(task.network.tokenizer(captions))
        logits = math.exp(task.network.log_scale.item()) * images @ texts.T + task.network.bias
    ids = torch.tensor([row["match_id"] for row in rows])
    best = logits.masked_fill(ids[:, None] == ids, -torch.inf).max(1)
    order = best.values.argsort(descending=True)[:6].tolist()

    (((key, images_sent), more),) = sent
    assert key == "val/hardest_negatives"
    assert len(images_sent) == len(more["caption"]) == 6
    for row, image, caption in zip(order, images_sent, more["caption"], strict=True):
        assert np.array_equal(image, rows[row]["image"].permute(1, 2, 0).numpy())
        assert f"({Confusion(None, '', 0, '', 0).measure(best.values[row].item())})" in caption
    assert task.embedded == {}, "embeddings are given up after the callbacks"
    assert sum(map(len, page.embedded.images)) == ROWS


def test_page_and_pictures_are_where_they_should_be(validated):
    folder, *_ = validated
    page = Image.open(folder / "figures" / "hardest_negatives_val.png")
    assert page.size == (round(3 * 4.3 * 150), round((2 * 1.55 + 0.45) * 150))
    assert len(list(folder.glob("wandb/offline-run-*/files/media/images/val/hardest_negatives_*.png"))) == 6


def test_logits_in_words():
    confusion = Confusion(None, "a cat", math.log(3), "a dog", -800.0)
    assert (
        confusion.caption
        == "own: a cat (logit +1.10, p(match) 0.750); hardest other: a dog (logit -800.00, p(match) 0.000)"
    )
    assert Confusion(None, "", 0, "", 0, has_probability=False).measure(2) == "logit +2.00"


def test_a_page_without_pictures_and_with_any_script(tmp_path):
    draw_confusions([Confusion(None, "猫 " * 30, 1, "$_^{$", 2)], "none", tmp_path / "page.png")
    assert Image.open(tmp_path / "page.png").width == 1935
    assert one_line("猫 " * 30, 34).endswith(" …")
    with pytest.raises(ValueError, match="num_pairs of at least 0, got -1"):
        HardestNegatives(-1)


@pytest.mark.parametrize("limit", [5, 10_000])
def test_rows_of_several_processes_are_found_again(limit):
    """Three processes, each with its stretch, or with the first five pictures of it."""
    data = pictograms()
    data.input_spec = InputSpec(32, pocket_task().network.tokenizer)
    data.setup("validate")
    stretches = [[key.sample for key in EvaluationSampler(len(data.val_set), rank, 3)][:limit] for rank in range(3)]
    places = [place for stretch in stretches for place in stretch]
    rows = [0, 4, 6, len(places) - 1]
    found = data.evaluated_pictures("val", rows, [len(stretch) for stretch in stretches])
    for row, picture in zip(rows, found, strict=True):
        assert torch.equal(picture, data.val_set[places[row]]["image"])
