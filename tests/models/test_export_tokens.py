"""Tokenizers as files of other libraries: the same ids for awkward captions."""

import json

import open_clip
import pytest
import transformers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from siglightning.models import Tokenizer
from siglightning.models.export.tokenizer_files import fast_tokenizer, for_transformers

# Equal to open_clip's own code, token for token; the rest is told in docs/export.md.
AWKWARD = [
    "", " ", "A  Cat\n on\tmat", "don't it's I'VE we'll", "wow!!! really?! !", "!#%", "x! y", "日本語の猫", "кошка",
    "cafe\u0301", "🐱👩‍👩‍👧", "&amp; &lt;b&gt; &amp;amp;", "“curly” ‘quotes’", "ﬁne ﬂow", "ＦＵＬＬ width",
    "3.14 1/2 ½", "<|endoftext|>", "under_score-hyphen—dash", "a" * 200, "word " * 60, "İstanbul ẞ",
    "zero\u200b width\u00a0x", "nul\x00 bell\x07", "ǅ Ⅻ ²", "#tag @user http://x.y/z?q=1&b=2",
]  # fmt: skip


@pytest.mark.parametrize("canonicalize", [False, True])
def test_clips_vocabulary_as_a_file_gives_the_same_ids(canonicalize):
    ours = Tokenizer("clip", 32, canonicalize)
    fast, (theirs, pad) = fast_tokenizer(ours), for_transformers(ours)
    for text in AWKWARD:
        row = ours([text])[0]
        ids = fast.encode(text).ids
        assert ids[:31] == row[: len(ids)].tolist()[:31], text  # neither cut nor padded
        padded = theirs([text], padding="max_length", truncation=True)["input_ids"][0]
        assert [0 if number == pad else number for number in padded] == row.tolist(), text
    assert pad == 49408  # a token of its own: '!' is id 0, and must be read where a caption has it
    assert theirs(["!"])["input_ids"][0] == ours.vocabulary.encode("" if canonicalize else "!")


@pytest.mark.parametrize("clean", ["canonicalize", "lower", "whitespace"])
def test_a_tokenizer_that_open_clip_takes_from_transformers_gives_the_same_ids(tmp_path, clean):
    """With open_clip's own cleaning before it, as its SigLIP models have it."""
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "A", "cat", "Cat", "on", "mat", "wow", "!!!", "really", "it", "s"]
    fast = FastTokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    fast.pre_tokenizer = Whitespace()
    fast.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    given = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **given).save_pretrained(tmp_path / "words")
    text = {"context_length": 12, "hf_tokenizer_name": str(tmp_path / "words"), "tokenizer_kwargs": {"clean": clean}}
    path = tmp_path / f"awkward_{clean}.json"
    path.write_text(json.dumps({"embed_dim": 8, "vision_cfg": {}, "text_cfg": text}))
    ours = Tokenizer(f"open_clip:{path}", 12)
    theirs, (written, pad) = open_clip.get_tokenizer(path.stem), for_transformers(ours)
    assert pad == 0
    for caption in AWKWARD:
        ids = written([caption], padding="max_length", truncation=True)["input_ids"][0]
        assert ids == ours([caption])[0].tolist() == theirs([caption])[0].tolist(), caption
