"""Crossmodal-3600 as its archives unpack, against a reader of a few lines: 36 languages, in every script."""

import json
import unicodedata
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from test_table_text import byte_vocabulary

from siglightning.batch import InputSpec
from siglightning.data import BadSampleError, Crossmodal3600DataModule, Crossmodal3600Source, SampleKey
from siglightning.data.images import decode
from siglightning.data.pictograms import PictogramArchive
from siglightning.models import Tokenizer

LANGUAGES = [
    *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu", "id", "it"),
    *("ja", "ko", "mi", "nl", "no", "pl", "pt", "quz", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh"),
]
WORDS = {
    "ar": "قطّة صغيرة آمنة", "fa": "گربه‌ای آنجا", "he": "חָתוּל קטן", "ja": "ガラスの上の小さな猫", "ko": "작은 고양이",
    "zh": "一只小猫", "th": "แมวตัวเล็ก", "te": "చిన్న పిల్లి", "hi": "छोटी बिल्ली", "vi": "một con mèo nhỏ",
    "el": "μικρή γάτα", "ru": "чёрный ёжик",
}  # fmt: skip
KEYS = [f"{number * 7919:016x}" for number in range(1, 9)]
WITHOUT = (KEYS[2], "quz")  # nobody described this picture in this language


def said_of(key, language):
    number = KEYS.index(key)
    if (key, language) == WITHOUT:
        return []
    return [f"{WORDS.get(language, f'a cat in {language}')} {number} {time}" for time in range(2 + (language == "en"))]


def write_xm3600(root):
    """Eight real pictures, and a line for each with all its captions, tokenised as well."""
    (root / "images").mkdir()
    lines = []
    for number, key in enumerate(KEYS):
        pixels = PictogramArchive.open().read_image(number * 90).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(root / "images" / f"{key}.jpg", quality=95)
        record = {"image/key": key, "image/locale": LANGUAGES[number]}
        for language in LANGUAGES:
            captions = said_of(key, language)
            if captions:
                tokens = [" ".join(caption) for caption in captions]
                record[language] = {"caption": captions, "caption/tokenized": tokens,
                                    "caption/tokenized/lowercase": [text.lower() for text in tokens]}  # fmt: skip
        lines.append(json.dumps(record, ensure_ascii=False))
    (root / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def xm3600(tmp_path_factory):
    return write_xm3600(tmp_path_factory.mktemp("xm3600"))


def by_hand(root, language):
    """Key, picture and captions in one language."""
    for line in (root / "captions.jsonl").read_text().splitlines():
        record = json.loads(line)
        if language in record:
            name = f"{record['image/key']}.jpg"
            yield record["image/key"], root / "images" / name, record[language]["caption"]


def test_every_language_is_a_test_set(xm3600):
    module = Crossmodal3600DataModule(str(xm3600))
    tests = module.open_parts().tests
    assert list(tests) == LANGUAGES
    for language, source in tests.items():
        expected = list(by_hand(xm3600, language))
        assert [source.key(row) for row in range(len(source))] == [key for key, _, _ in expected]
        assert dict(source.languages) == {language: sum(len(captions) for _, _, captions in expected)}
        for row, (_, path, captions) in enumerate(expected):
            raw = source.read(row)
            assert raw.captions == captions
            assert raw.languages == [language] * len(captions)
            difference = decode(raw.image).permute(1, 2, 0).numpy() - np.asarray(Image.open(path)).astype(int)
            assert np.abs(difference).max() <= 4  # two decoders of JPEG
    assert (len(tests["quz"]), len(tests["en"])) == (7, 8)


def test_training_captions_carry_their_languages(xm3600):
    source = Crossmodal3600Source(xm3600)
    assert dict(source.languages) == {name: 24 if name == "en" else 14 if name == "quz" else 16 for name in LANGUAGES}
    raw = source.read(3)
    expected = [(name, text) for name in LANGUAGES for text in said_of(KEYS[3], name)]
    assert list(zip(raw.languages, raw.captions, strict=True)) == expected


def built(root, tokenizer, **options):
    module = Crossmodal3600DataModule(str(root), global_batch_size=4, **options)
    module.input_spec = InputSpec(32, tokenizer)
    module.setup()
    return module


@pytest.mark.parametrize(("temperature", "english"), [(1.0, 24 / 56), (float("inf"), 1 / 3)])
def test_languages_are_drawn_by_temperature(xm3600, temperature, english):
    """24 captions in English and 16 in each of two others: by themselves, or all alike."""
    module = built(xm3600, None, languages=["en", "ar", "ja"], language_temperature=temperature)
    assert module.test_set_names == ["en", "ar", "ja"]
    keys = [[SampleKey(n, epoch) for n in range(len(module.train_set))] for epoch in range(200)]
    captions = [sample["captions"][0] for batch in keys for sample in module.train_set.__getitems__(batch)]
    counts = Counter(caption.rpartition(" ")[0].rpartition(" ")[0] for caption in captions)
    assert counts["a cat in en"] / len(captions) == pytest.approx(english, abs=0.04)
    for name in ("ar", "ja"):
        assert counts[WORDS[name]] / len(captions) == pytest.approx((1 - english) / 2, abs=0.04)


@pytest.mark.parametrize("language", ["ar", "fa", "he", "ja", "ko", "zh", "th", "te", "vi"])
def test_composed_and_decomposed_captions_give_equal_tokens(xm3600, tmp_path, language):
    tokenizer = Tokenizer(byte_vocabulary(tmp_path), 77)
    (tmp_path / "images").symlink_to(xm3600 / "images")
    batches = []
    for form in ("NFC", "NFD"):
        content = unicodedata.normalize(form, (xm3600 / "captions.jsonl").read_text())
        (tmp_path / "captions.jsonl").write_text(content)
        (batch,) = built(tmp_path, tokenizer, languages=[language]).test_dataloader()[0]
        batches.append(batch)
    assert batches[0]["text"].tolist() == batches[1]["text"].tolist()
    assert batches[0]["text_owner"].tolist() == [row for row in range(8) for _ in range(2)]
    expected = unicodedata.normalize("NFC", said_of(KEYS[5], language)[1])
    assert tokenizer.decode(batches[0]["text"][11]) == expected


def test_pictures_may_lie_beside_the_file_and_be_missing(xm3600, tmp_path):
    for file in [xm3600 / "captions.jsonl", *(xm3600 / "images").iterdir()]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / f"{KEYS[1]}.jpg").unlink()
    (tmp_path / "0000.jpg").write_bytes(b"nobody described it")
    source = Crossmodal3600Source(tmp_path, ["ko"])
    assert [source.key(row) for row in range(len(source))] == KEYS
    assert source.read(0) == Crossmodal3600Source(xm3600, ["ko"]).read(0)
    with pytest.raises(BadSampleError, match=f"unreadable: No such file or directory: .*{KEYS[1]}.jpg"):
        source.read(1)


@pytest.mark.parametrize(
    ("languages", "content", "message"),
    [
        (None, None, r"captions.jsonl, which does not exist. It comes in captions.zip"),
        (["en", "xx"], "{}", r"Expected `languages` among the 36 of .* \(ar, bn, .*, zh\), got xx\."),
        ([], "{}", r"got none\."),
        (None, "[1]", r"Line 9 of .*captions.jsonl is not a picture with its captions: AttributeError"),
        (
            None,
            '{"en": {"caption": ["a"]}}',
            r"Line 9 of .* is not a picture with its captions: KeyError\('image/key'\)",
        ),
        (None, '{"image/key": "1', "Line 9 of .* is not a picture with its captions: JSONDecodeError"),
    ],
)
def test_mistakes_are_told(xm3600, tmp_path, languages, content, message):
    (tmp_path / "images").symlink_to(xm3600 / "images")
    if content is not None:
        extra = "" if content == "{}" else content + "\n"
        (tmp_path / "captions.jsonl").write_text((xm3600 / "captions.jsonl").read_text() + extra)
    with pytest.raises(ValueError, match=message):
        Crossmodal3600DataModule(str(tmp_path), languages).open_parts()


def test_pictures_that_are_not_there_at_all_are_asked_for(xm3600, tmp_path):
    (tmp_path / "captions.jsonl").write_bytes((xm3600 / "captions.jsonl").read_bytes())
    with pytest.raises(ValueError, match=f"Expected pictures such as {KEYS[0]}.jpg in .*images or .*, found none"):
        Crossmodal3600Source(tmp_path)
