"""The tokenizer wrapper against the libraries it wraps, and golden ids."""

import copy
import io
import pickle

import open_clip
import pytest
import sentencepiece
import torch
import transformers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, pre_tokenizers, processors, trainers

from siglightning.models import Tokenizer
from siglightning.models.tokenizers import canonicalize

# Names and keywords of Unicode CLDR (Unicode-3.0 licence), in four languages.
CAPTIONS = [
    "grinning face with big eyes", "face with tears of joy", "person in suit levitating", "Japanese “here” button",
    "mother's day", "flag: Côte d’Ivoire", "1st place medal", "couple with heart: woman, man", "woman’s sandal",
    "Christmas tree", "T-shirt", "jack-o-lantern", "Mrs. Claus", "piñata", "AB button (blood type)", "UP! button",
    "grinsendes Gesicht mit großen Augen", "Gesicht mit Freudentränen", "schwebender Mann im Anzug", "Weihnachtsbaum",
    "visage souriant avec de grands yeux", "visage avec des larmes de joie", "sapin de Noël", "médaille d’or",
    "にっこり笑う", "うれし泣き", "クリスマスツリー", "金メダル", "月の出", "赤い車", "", "  spaced   out  ",
]  # fmt: skip


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
    """A vocabulary of 160 pieces trained on the captions, with T5's layout: pad 0, end of text 1, unknown 2."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 4), model_writer=trained, vocab_size=160, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("sentencepiece") / "captions.model"
    path.write_bytes(trained.getvalue())
    return str(path)


@pytest.fixture(scope="module")
def fast_folder(tmp_path_factory):
    """A byte-pair tokenizer of transformers with start and end tokens, saved to a folder."""
    fast = FastTokenizer(models.BPE(unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    fast.train_from_iterator(CAPTIONS, trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False))
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("fast")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **names).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("context_length", [5, 16, 77])
def test_clip_equals_open_clips_tokenizer(context_length):
    expected = open_clip.SimpleTokenizer(context_length=context_length)(CAPTIONS)
    assert torch.equal(Tokenizer("clip", context_length)(CAPTIONS), expected)
    assert torch.equal(Tokenizer("open_clip:ViT-B-32", context_length)(CAPTIONS), expected)


def test_clip_golden_ids():
    """Ids of OpenAI's vocabulary: start 49406, "a" 320, "photo" 1125, "of" 539, "cat" 2368, end 49407."""
    ids = Tokenizer("clip", 9)(["a photo of a cat"])
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407, 0, 0]]


@pytest.mark.parametrize("context_length", [4, 64])
def test_sentencepiece_ends_and_pads_with_the_end_token(sentencepiece_file, context_length):
    library = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_file)
    tokenizer = Tokenizer(sentencepiece_file, context_length)
    for text, row in zip(CAPTIONS, tokenizer(CAPTIONS).tolist(), strict=True):
        pieces = library.encode(text)[: context_length - 1]
        assert row == pieces + [1] * (context_length - len(pieces))
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (library.vocab_size(), 1)
    padded_with_zero = Tokenizer(f"sentencepiece:{sentencepiece_file}", context_length, pad_id=0)([""])
    assert padded_with_zero.tolist() == [[1] + [0] * (context_length - 1)]


@pytest.mark.parametrize("context_length", [5, 24])
def test_fast_tokenizer_equals_transformers(fast_folder, context_length):
    library = transformers.AutoTokenizer.from_pretrained(fast_folder)
    options = {"padding": "max_length", "truncation": True, "max_length": context_length, "return_tensors": "pt"}
    expected = library(CAPTIONS, **options)["input_ids"]
    for source in (str(fast_folder), f"hf:{fast_folder}", str(fast_folder / "tokenizer.json")):
        tokenizer = Tokenizer(source, context_length)
        assert torch.equal(tokenizer(CAPTIONS), expected), source
        assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.eos_id) == (len(library), 0, 3)


def test_truncation_keeps_the_end_token_and_is_counted():
    tokenizer = Tokenizer("clip", 4)
    assert tokenizer(["cat", "a photo of a cat"]).tolist() == [[49406, 2368, 49407, 0], [49406, 320, 1125, 49407]]
    assert tokenizer.truncated == 1
    tokenizer(["a photo of a cat"] * 3)
    assert tokenizer.truncated == 4


def test_composed_and_decomposed_letters_get_the_same_ids(sentencepiece_file, fast_folder):
    for source in ("clip", sentencepiece_file, str(fast_folder)):
        composed, decomposed = Tokenizer(source, 12)(["pi\u00f1ata", "pin\u0303ata"])
        assert torch.equal(composed, decomposed), source


def test_canonical_form_is_that_of_open_clip(sentencepiece_file):
    from open_clip.tokenizer import canonicalize_text

    assert [canonicalize(text) for text in CAPTIONS] == [canonicalize_text(text) for text in CAPTIONS]
    assert canonicalize(" A_photo,  of\tTWO (2) Owls! ") == "a photo of two 2 owls"
    clean, raw = Tokenizer(sentencepiece_file, 24, canonicalize=True), Tokenizer(sentencepiece_file, 24)
    assert torch.equal(clean(["T-Shirt, RED!"]), raw(["tshirt red"]))


def test_copies_carry_arguments_only_and_agree(sentencepiece_file):
    for source in ("clip", sentencepiece_file):
        tokenizer = Tokenizer(source, 8, canonicalize=True, pad_id=5)
        expected, pickled = tokenizer(CAPTIONS), pickle.dumps(tokenizer)
        assert len(pickled) < 500
        for twin in (pickle.loads(pickled), copy.deepcopy(tokenizer)):
            assert torch.equal(twin(CAPTIONS), expected)
            assert twin.truncated >= tokenizer.truncated > 0


def test_wrong_sources_are_refused_in_one_line(tmp_path):
    (tmp_path / "broken.model").write_bytes(b"not a model")
    (tmp_path / "broken.json").write_text("{}")
    for source, message in [
        ("clp", r"'clp' is neither a known source .*Did you mean 'clip'\?"),
        (str(tmp_path / "missing.model"), r"nor an existing file or folder"),
        (str(tmp_path / "broken.model"), r"no readable SentencePiece model"),
        (str(tmp_path / "broken.json"), r"no readable tokenizer file"),
        ("open_clip:ViT-B-33", r"Unknown open_clip model .*Nearest: ViT-B-32"),
        (str(tmp_path), r"could not be loaded .* or give the path of a downloaded copy"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            Tokenizer(source)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["clip", "bert", "t5", "roberta", "siglip2"])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "vocab_notes.txt"])
def test_a_folder_without_a_tokenizer_gets_none_made_up(tmp_path, kind, name):
    """Of a config alone, transformers makes a vocabulary of a few special tokens, whatever the other files are."""
    (tmp_path / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    if name != "config.json":
        (tmp_path / name).write_text("{}")
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path)) < 110
    with pytest.raises(ValueError, match=r"has no tokenizer .* or give `tokenizer`"):
        Tokenizer(str(tmp_path))


def test_a_vocabulary_is_as_large_as_its_highest_id(tmp_path):
    """Else an id would lie beyond the table of embeddings, which the sizes alone do not show."""
    fast = FastTokenizer(models.WordLevel({"zwei": 0, "hunde": 999, "[UNK]": 3}, "[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.save(str(tmp_path / "sparse.json"))
    assert Tokenizer(str(tmp_path / "sparse.json")).vocab_size == 1000
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "sparse.json"), unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "folder")
    assert Tokenizer(str(tmp_path / "folder")).vocab_size == 1000


def test_unreachable_hub_says_to_give_a_path(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in ("hf:nobody/no-such-tokenizer", "open_clip:ViT-B-16-SigLIP"):
        with pytest.raises(ValueError, match=r"could not be loaded .*connection, or give"):
            Tokenizer(source)


def test_one_string_is_refused():
    with pytest.raises(ValueError, match="wrap it in a list"):
        Tokenizer("clip")("a cat")
    with pytest.raises(ValueError, match="context_length must be at least 2"):
        Tokenizer("clip", 1)


def test_decode_gives_readable_captions_back():
    """Lower case and tight punctuation are how CLIP's vocabulary stores text; padding and special tokens go."""
    captions = ["dog face, pet, dog", "Woman's boot", "left-facing fist", "koala", "naïve café 日本"]
    tokenizer = Tokenizer("clip", context_length=16)
    assert [tokenizer.decode(row) for row in tokenizer(captions)] == [caption.lower() for caption in captions]
    assert tokenizer.decode(Tokenizer("clip", context_length=4)(["one two three four"])[0]) == "one two"
