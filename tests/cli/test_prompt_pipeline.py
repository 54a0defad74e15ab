"""`siglightning predict` with prompts against the zero-shot pipeline of transformers, on a model that both read."""

import functools
import json
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers
from PIL import Image

from siglightning.cli import main
from siglightning.data import PictogramArchive

ARCHIVE = functools.cache(PictogramArchive.open)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PROMPTS = ["a red apple", "Cat", "harbour, seen from above!", "playing the guitar", "two dogs", "snow", "an old clock"]
TEMPLATE = "This is a photo of {}."
SCALE, BIAS = 3.0, -2.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random SigLIP with its own tokenizer and image processor, as the hub would give them."""
    place = tmp_path_factory.mktemp("pipeline")
    names = [name for name in ARCHIVE().concepts["name_en"].to_pylist() if name]
    (place / "names.txt").write_text("\n".join(names).lower())
    sentencepiece.SentencePieceTrainer.train(
        input=str(place / "names.txt"), model_prefix=str(place / "spiece"), vocab_size=400, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    # Published checkpoints hand on no attention mask: SigLIP was trained to read its padding.
    reads = {"model_max_length": 64, "model_input_names": ["input_ids"]}
    tokenizer = transformers.SiglipTokenizer(str(place / "spiece.model"), **reads)
    torch.manual_seed(0)
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 32}
    text |= {"pad_token_id": 1, "eos_token_id": 1, "bos_token_id": None}
    config = transformers.SiglipConfig(text_config=text, vision_config=SMALL | {"image_size": 32, "patch_size": 8})
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)  # towers that tell pictures and prompts apart
        model.logit_scale.fill_(SCALE)
        model.logit_bias.fill_(BIAS)
    processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, resample=Image.Resampling.BICUBIC)
    for part in (model, tokenizer, processor):
        part.save_pretrained(place / "siglip")
    for number, side in enumerate([32, 64, (50, 37)]):
        picture = Image.fromarray(ARCHIVE().read_image(number * 700).permute(1, 2, 0).numpy())
        (place / "pictures").mkdir(exist_ok=True)
        size = side if isinstance(side, tuple) else (side, side)
        picture.resize(size).save(place / "pictures" / f"{number}.png")
    return place


def test_ranking_is_that_of_the_pipeline(folder, monkeypatch):
    monkeypatch.chdir(folder)
    flags = [f"--model.network.source={folder / 'siglip'}"]  # t' and b come with it
    flags += [f"--model.prompts={json.dumps(PROMPTS)}", f"--model.templates={json.dumps([TEMPLATE])}"]
    flags += ["--data.root=pictures", "--data.num_workers=0", "--trainer.accelerator=cpu", "--run_dir=asked"]
    flags += ["--trainer.enable_progress_bar=false", "--trainer.callbacks+=siglightning.callbacks.PredictionWriter"]
    recipe = ["--config", "recipe/satellite_prompts", "--resume=never"]
    assert main(["predict", *recipe, *flags, "--trainer.callbacks.format=jsonl"]) == 0
    rows = [json.loads(line) for line in Path("asked/predict/pictures.jsonl").read_text().splitlines()]
    pipeline = transformers.pipeline("zero-shot-image-classification", str(folder / "siglip"), device="cpu")
    for path in sorted((folder / "pictures").glob("*.png")):
        theirs = pipeline(str(path), candidate_labels=PROMPTS, hypothesis_template=TEMPLATE)
        ours = [row for row in rows if row["id"] == path.name]
        assert [row["label"] for row in ours] == [found["label"] for found in theirs], path.name
        scores = [found["score"] for found in theirs]
        assert max(scores) - min(scores) > 0.05  # the model prefers some
        # Pillow's and torchvision's bicubic resizing round some pixels to neighbouring grey levels.
        assert [row["score"] for row in ours] == pytest.approx(scores, abs=1e-4)
