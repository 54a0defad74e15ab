"""Tokens and pixels of loaded models against what each library's own tokenizer and image processor make."""

import json
import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import open_clip
import pytest
import torch
import transformers
from foreign import sentencepiece_file
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from siglightning.batch import Resizing
from siglightning.data import PictogramArchive, resize
from siglightning.models import Tokenizer, TowerConfig
from siglightning.models.hf_checkpoints import read_preparation
from siglightning.models.open_clip_towers import resizing_of

AWKWARD = [
    "", " ", "a photo of a cat.", "A PHOTO OF A CAT!!!", "  spaced\tout \n lines\r\n", "naïve café — “quotes” … it’s",
    "großes Auge, ÄÖÜ ß ẞ", "\u5927\u304d\u306a\u72ac と 큰 개", "كلب كبير \u200f كتاب", "कुत्ता", "🐕‍🦺👩🏽‍🚀🇩🇪",
    "snake_case_name under_score", "<b>&amp;amp; &lt;tag&gt;</b>", "{}[]()!@#$%^&*~`|\\/?.,;:'\"-+=",
    "\x00\x07\x1b[0m bell",
    "zero\u200bwidth\ufeffmarks \u00a0 \u2028 lines", "</s> <pad> <|endoftext|> [SEP]", "word " * 500, "x" * 3000,
    "１２３ ﬁ Å",
    "İstanbul ΑΣ", "0123456789 3.14 1e-5",
]  # fmt: skip


def hf_siglip(folder):
    sentencepiece_file(folder / "spiece.model", 60)
    tokenizer = transformers.SiglipTokenizer(str(folder / "spiece.model"))
    tokenizer.save_pretrained(folder)
    return tokenizer


def _trained(tokens, normalizer, special):
    tokenizer = FastTokenizer(models.BPE(unk_token=special[1], byte_fallback=False))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, tokens
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator([text[:200] for text in AWKWARD], trainer)
    return tokenizer


def hf_gemma(folder):
    """As SigLIP 2: lower case, spaces as underlines, an end of text and none at the beginning, padded with 0."""
    special = ["<pad>", "<unk>", "<eos>"]
    lower = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    tokenizer = _trained(pre_tokenizers.Split(" ", "merged_with_previous"), lower, special)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)
    return fast


def hf_clip(folder):
    """As CLIP: NFC, lower case, byte level, start and end, padded with the end."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    clean = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer = _trained(pre_tokenizers.ByteLevel(add_prefix_space=False), clean, special)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{special[0]} $A {special[1]}", special_tokens=[(special[0], 0), (special[1], 1)]
    )
    names = {"pad_token": special[1], "bos_token": special[0], "eos_token": special[1], "unk_token": special[1]}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.save_pretrained(folder)
    return fast


@pytest.mark.parametrize("length", [8, 64])
@pytest.mark.parametrize("make", [hf_siglip, hf_gemma, hf_clip])
def test_tokens_of_transformers(tmp_path, make, length):
    theirs, ours = make(tmp_path), Tokenizer(str(tmp_path), length)
    for text in AWKWARD:
        expected = theirs(text, padding="max_length", truncation=True, max_length=length)["input_ids"]
        assert ours([text])[0].tolist() == expected, ascii(text[:40])


@pytest.mark.parametrize("length", [8, 77])
def test_tokens_of_open_clip(length):
    theirs, ours = open_clip.get_tokenizer("ViT-B-32", context_length=length), Tokenizer("open_clip:ViT-B-32", length)
    assert torch.equal(ours(AWKWARD), theirs(AWKWARD))


def test_letters_in_two_parts_are_joined_first(tmp_path):
    """The one difference on purpose: equal texts get equal tokens, also of a library that does not compose letters."""
    theirs, ours = hf_gemma(tmp_path), Tokenizer(str(tmp_path), 16)
    parts = unicodedata.normalize("NFD", "naïve café Å")
    composed = unicodedata.normalize("NFC", parts)
    assert theirs(parts)["input_ids"] != theirs(composed)["input_ids"]
    expected = theirs(composed, padding="max_length", truncation=True, max_length=16)["input_ids"]
    assert ours([parts])[0].tolist() == expected


@pytest.fixture(scope="module")
def photographs():
    """A portrait of 512 x 600 pixels, parts of it of odd sizes, and drawings, as uint8 ``[H, W, 3]``."""
    whole = np.asarray(Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")).convert("RGB"))
    archive = PictogramArchive.open()
    drawings = [archive.read_image(row).permute(1, 2, 0).numpy() for row in (0, 1000)]
    return [whole, whole[:301, :], whole[100:333, 50:500], whole[:, :97], *drawings]


def differences(photographs, theirs, size, resizing):
    """The largest difference, in gray levels."""
    pairs = [
        (theirs(photo), resize([torch.from_numpy(photo.copy()).permute(2, 0, 1)], size, resizing)[0].float())
        for photo in photographs
    ]
    gaps = [(a - b).abs() for a, b in pairs]
    return max(gap.max().item() for gap in gaps)


def of_transformers(processor):
    processor.do_normalize = processor.do_rescale = False
    return lambda photo: processor(photo, return_tensors="pt")["pixel_values"][0].float()


PROCESSORS = {
    "siglip": lambda: transformers.SiglipImageProcessor(size={"height": 96, "width": 96}),
    "siglip, bilinear": lambda: transformers.SiglipImageProcessor(size={"height": 96, "width": 96}, resample=2),
    "clip": lambda: transformers.CLIPImageProcessor(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}),
    "256 to 224": lambda: transformers.CLIPImageProcessor(
        size={"shortest_edge": 128}, crop_size={"height": 112, "width": 112}
    ),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_of_transformers(name, tmp_path, photographs):
    """The checkpoint's own file tells how, and the result is the same to the bit."""
    PROCESSORS[name]().save_pretrained(tmp_path)
    transformers.SiglipConfig().save_pretrained(tmp_path)
    resizing = read_preparation(TowerConfig(f"hf:{tmp_path}"), "siglip")[2]
    size = 112 if name == "256 to 224" else 96
    assert differences(photographs, of_transformers(PROCESSORS[name]()), size, resizing) == 0


@pytest.mark.parametrize("mode", ["squash", "shortest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_pixels_of_open_clip(mode, interpolation, photographs):
    """By Pillow, whose bicubic differs from torchvision's by up to three gray levels at sharp edges."""
    config = {"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": interpolation, "resize_mode": mode, "size": 96}
    transform = image_transform_v2(PreprocessCfg(**config), is_train=False)
    theirs = lambda photo: transform(Image.fromarray(photo)) * 255  # noqa: E731
    assert differences(photographs, theirs, 96, resizing_of(config)) == 0


def test_the_choice_matters(photographs):
    """What the tests above would catch: squashing where the library cuts."""
    theirs = of_transformers(PROCESSORS["clip"]())
    assert differences(photographs, theirs, 96, Resizing()) > 100
    assert differences(photographs, theirs, 96, Resizing(crop=1.0)) > 1  # another pixel where half of one is left over


def test_nested_files_of_newer_processors_are_read(tmp_path):
    """transformers 5 keeps everything of a processor in one file."""
    image_processor = json.loads(PROCESSORS["clip"]().to_json_string())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": image_processor}))
    transformers.CLIPConfig().save_pretrained(tmp_path)
    assert read_preparation(TowerConfig(f"hf:{tmp_path}"), "clip")[2] == Resizing(crop=1.0, rounding="down")
