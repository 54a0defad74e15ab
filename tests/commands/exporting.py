"""A run to export, the command, and what must be the same after it."""

import json

import torch

from siglightning.cli import main
from siglightning.data import PictogramArchive
from siglightning.data.transforms import resize
from siglightning.evaluation.retrieval import recall_at_k, retrieval_ranks
from siglightning.models.export.reloaded import Outputs

CLOSE = 1e-5  # what the project promises; fp32 sums in another order differ by some 1e-7
SIGLIP = {
    "image_tower": {
        "name": "timm:vit_base_patch16_siglip_224",
        "kwargs": {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    },
    "text_tower": {
        "name": "local:text_transformer",
        "kwargs": {"width": 16, "depth": 2, "heads": 2, "pooling": "last", "mask_padding": False, "bottleneck": 8},
    },
    "image_size": 32,
    "context_length": 12,
}
BAG = {  # the quickstart's form, smaller: one block a stage, normalised over all channels at once, and a bag of words
    "image_tower": {
        "name": "timm:resnetv2_18",
        "kwargs": {
            "layers": [0, 1, 1, 1],
            "channels": [32, 64, 64, 64],
            "stem_chs": 32,
            "norm_layer": "groupnorm1",
            "act_layer": "gelu",
        },
    },
    "text_tower": {
        "name": "local:text_transformer",
        "kwargs": {"width": 16, "depth": 0, "heads": 2, "bottleneck": 8, "norm_bias": False},
    },
    "embed_dim": 16,
    "image_size": 64,
    "context_length": 12,
}
TRAINER = {"max_steps": 3, "accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 1,
           "log_every_n_steps": 1, "num_sanity_val_steps": 0, "val_check_interval": 3}  # fmt: skip


def train(folder, network, *options, class_path="TwoTower"):
    config = {
        "model": {
            "class_path": "siglightning.tasks.ContrastiveTask",
            "init_args": {"network": {"class_path": class_path, "init_args": network}},
        },
        "data": {"class_path": "PictogramDataModule", "init_args": {"global_batch_size": 16, "train_styles": ["noto"]}},
        "trainer": TRAINER,
        "test_after_fit": False,
    }
    folder.mkdir()
    (folder / "c.yaml").write_text(json.dumps(config))
    assert main(["fit", "--config", str(folder / "c.yaml"), "--run_dir", str(folder / "run"), *options]) == 0
    return folder / "run"


def run(capsys, *arguments):
    capsys.readouterr()
    code = main(["export", *map(str, arguments)])
    return code, "".join(capsys.readouterr())


def everything(folder):
    return sorted(path.name for path in folder.iterdir())


def drawings(network, count=40):
    archive = PictogramArchive.open()
    names, rows = archive.concepts["name_en"].to_pylist(), range(0, count * 50, 50)
    concepts = [archive.pictures["concept"][row].as_py() for row in rows]
    pictures = resize([archive.read_image(row) for row in rows], network.image_size)
    return pictures, [str(names[concept]) for concept in concepts]


@torch.no_grad()
def require_same(network, theirs: Outputs, pictures, captions):
    """Embeddings, logits and recall."""
    image, text = network(pictures, network.tokenizer(captions))
    logits = network.log_scale.exp() * image @ text.T + (0 if network.bias is None else network.bias)
    for ours, other in ((image, theirs.image), (text, theirs.text), (logits, theirs.logits)):
        assert (ours - other).abs().max() < CLOSE
    rows = torch.arange(len(captions))
    for ours, other in (
        (retrieval_ranks(image, text, rows, rows), retrieval_ranks(theirs.image, theirs.text, rows, rows)),
        (retrieval_ranks(text, image, rows, rows), retrieval_ranks(theirs.text, theirs.image, rows, rows)),
    ):
        assert [recall_at_k(ours, k) for k in (1, 5, 10)] == [recall_at_k(other, k) for k in (1, 5, 10)]


@torch.no_grad()
def require_same_values(network, other, pictures, captions, *, to_the_bit):
    """t', b, tokens, the preparation of pictures, embeddings, logits and recall."""
    assert torch.equal(network.log_scale, other.log_scale)
    assert torch.equal(network.bias, other.bias)
    ids, theirs = network.tokenizer(captions), other.tokenizer(captions)
    pads = (network.tokenizer.pad_id, other.tokenizer.pad_id)  # where that of ours is an ordinary token: docs/export.md
    assert torch.equal(ids.masked_fill(ids == pads[0], -1), theirs.masked_fill(theirs == pads[1], -1))
    image, text = other(pictures, theirs)
    require_same(network, Outputs(image, text, other.log_scale.exp() * image @ text.T + other.bias), pictures, captions)
    assert (network.image_tower.mean, network.image_tower.std) == (other.image_tower.mean, other.image_tower.std)
    assert (network.resizing.crop, network.resizing.interpolation) == (
        other.resizing.crop,
        other.resizing.interpolation,
    )
    if to_the_bit:
        mine, yours = network.state_dict(), other.state_dict()
        assert all(torch.equal(mine[key], yours[key]) for key in {*mine, *yours})
        assert network.resizing == other.resizing
