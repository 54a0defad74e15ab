"""Texts of a table on their way to tokens: what is kept, cut, drawn or refused, in the scripts of the world."""

import csv
import json
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from siglightning.batch import InputSpec
from siglightning.data import BadSampleError, Columns, SampleKey, TableDataModule, TableSource
from siglightning.data.orders import shares
from siglightning.data.pictograms import PictogramArchive
from siglightning.models import Tokenizer

CONTEXT = 96
SCRIPTS = {
    "ar": "قطّة صغيرة تلعب في الحديقة",
    "fa": "گربه‌ای کوچک روی میز",
    "he": "חָתוּל קטן על השולחן",
    "ja": "小さな猫がガラスの上で遊ぶ",
    "ko": "작은 고양이가 놀고 있다",
    "zh": "一只小猫在花园里玩",
    "vi": "một con mèo nhỏ đang chơi",
    "fr": "un café près de la forêt",
}


def byte_vocabulary(folder):
    """A tokenizer file for the 256 bytes, which changes nothing by itself: what arrives is what was cleaned before."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=257, special_tokens=["<pad>"], initial_alphabet=alphabet)
    fast.train_from_iterator([], trainer)
    fast.save(str(folder / "tokenizer.json"))
    return str(folder / "tokenizer.json")


@pytest.fixture(scope="module")
def bytes_file(tmp_path_factory):
    return byte_vocabulary(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def pictures(tmp_path):
    """Six real pictures."""
    for number in range(6):
        pixels = PictogramArchive.open().read_image(number * 100).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def write(folder, kind, rows):
    path = folder / f"table.{kind}"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def rows_of(captions):
    return [{"image": f"{number % 6}.png", "caption": caption} for number, caption in enumerate(captions)]


def module_of(path, tokenizer, **options):
    module = TableDataModule(str(path), str(path), **{"global_batch_size": 4, "eval_batch_size": 64, **options})
    module.input_spec = InputSpec(32, tokenizer)
    module.setup()
    return module


def batch_of(module):
    """The first validation batch, as a task would see it."""
    return module.on_after_batch_transfer(next(iter(module.val_dataloader())), 0)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_script_arrives_composed_and_padded(pictures, bytes_file, kind):
    """Right-to-left, CJK and accents: the tokens are the bytes of the text's composed form, whichever form was kept."""
    for form in ("NFC", "NFD"):
        captions = [unicodedata.normalize(form, text) for text in SCRIPTS.values()]
        tokenizer = Tokenizer(bytes_file, CONTEXT)
        batch = batch_of(module_of(write(pictures, kind, rows_of(captions)), tokenizer))
        assert batch["text"].shape == (len(SCRIPTS), CONTEXT)
        assert batch["text"].dtype == torch.int64
        for ids, text in zip(batch["text"], SCRIPTS.values(), strict=True):
            composed = unicodedata.normalize("NFC", text)
            length = len(composed.encode())
            assert tokenizer.decode(ids) == composed
            assert (ids[length:] == tokenizer.pad_id).all()
            assert (ids[:length] != tokenizer.pad_id).all()
    assert sum(unicodedata.normalize("NFD", text) != text for text in SCRIPTS.values()) >= 4  # so the forms differ


def test_text_is_made_canonical_where_the_checkpoint_expects_it(pictures, bytes_file):
    path = write(pictures, "csv", rows_of(["The CAT,  sat_down!", "the cat sat down", "le Chat\u00a0s'assoit"]))
    plain, canonical = (Tokenizer(bytes_file, CONTEXT, canonicalize=choice) for choice in (False, True))
    texts = [
        [tokenizer.decode(ids) for ids in batch_of(module_of(path, tokenizer, global_batch_size=3))["text"]]
        for tokenizer in (plain, canonical)
    ]
    assert texts[0] == ["The CAT,  sat_down!", "the cat sat down", "le Chat\u00a0s'assoit"]
    assert texts[1] == ["the cat sat down", "the cat sat down", "le chat sassoit"]


LONG = "word " * 20_000  # 100,000 characters


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_caption_of_100000_characters_is_kept_and_cut(pictures, bytes_file, kind):
    path = write(pictures, kind, rows_of(["short", LONG, "x" * CONTEXT, "x" * (CONTEXT + 1)]))
    tokenizer = Tokenizer(bytes_file, CONTEXT)
    module = module_of(path, tokenizer)
    assert len(module.val_set[1]["captions"][0]) == 10_000  # what the tokenizer is given
    batch = batch_of(module)
    texts = [tokenizer.decode(ids) for ids in batch["text"]]
    assert texts == ["short", LONG[:CONTEXT], "x" * CONTEXT, "x" * CONTEXT]
    assert (module.captions_truncated, module.captions_read) == (2, 4)
    assert "truncated" not in batch


class Listener(LightningModule):
    """Trains nothing; it is there to be handed batches."""

    def __init__(self, spec):
        super().__init__()
        self.input_spec, self.weight = spec, torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return self.weight * batch["text"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(module, tokenizer, folder):
    """One epoch, which ends where a task's would."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, default_root_dir=folder, **quiet)
    trainer.fit(Listener(InputSpec(32, tokenizer)), module)


def test_a_run_says_how_many_captions_lost_their_end(pictures, bytes_file, capsys):
    path = str(
        write(pictures, "csv", rows_of(["short", LONG, "fine", "x" * (CONTEXT + 1), "y" * CONTEXT, "", "z", "a"]))
    )
    module = TableDataModule(path, path, global_batch_size=4, num_workers=1, max_bad_fraction=1)
    fit(module, Tokenizer(bytes_file, CONTEXT), pictures)
    assert "2 of 8 captions were longer than the model's context and lost their end." in capsys.readouterr().out
    assert (module.captions_truncated, module.captions_read) == (0, 0)  # the next stage counts for itself


BAD = {"1.png": b"", "2.png": b" \t ", "3.png": b"caf\xe9", "4.png": b"\xff\xfe"}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_bad_captions_are_replaced_within_a_run_and_written_down(pictures, bytes_file, kind):
    lines = [(f"{n}.png".encode(), BAD.get(f"{n}.png", b"good")) for n in range(6)]
    if kind == "csv":
        content = b"image,caption\n" + b"".join(b'%b,"%b"\n' % line for line in lines)
    else:
        content = b"".join(b'{"image": "%b", "caption": "%b"}\n' % line for line in lines).replace(b"\t", b"\\t")
    path = pictures / f"bad.{kind}"
    path.write_bytes(content)
    source = TableSource(path)
    for row, (name, caption) in enumerate(lines):
        assert source.key(row) == name.decode()
        if caption == b"good":
            assert source.read(row).captions == ["good"]
        else:
            with pytest.raises(BadSampleError, match="empty caption" if not caption.strip() else "not UTF-8"):
                source.read(row)
    module = TableDataModule(str(path), str(path), global_batch_size=3, max_bad_fraction=1)
    fit(module, Tokenizer(bytes_file, CONTEXT), pictures)
    log = [json.loads(line) for line in (pictures / "bad_samples.jsonl").read_text().splitlines()]
    empty, odd = "empty caption", "not UTF-8"
    assert {line["key"]: line["reason"] for line in log} == {"1.png": empty, "2.png": empty, "3.png": odd, "4.png": odd}


def test_a_path_that_is_no_utf8_is_one_bad_sample(pictures):
    path = pictures / "table.csv"
    path.write_bytes(b"image,caption\n0.png,good\ncaf\xe9.png,x\n")
    source = TableSource(path)
    assert source.key(1) == "caf\ufffd.png"
    with pytest.raises(BadSampleError, match="not UTF-8"):
        source.read(1)


def drawn(module, epochs):
    """Captions of every training sample in some epochs."""
    keys = ([SampleKey(n, epoch) for n in range(len(module.train_set))] for epoch in epochs)
    return [sample["captions"][0] for batch in keys for sample in module.train_set.__getitems__(batch)]


def test_captions_are_drawn_by_seed_and_by_weight(pictures, bytes_file):
    row = {"short": "s", "long": ["l1", "l2"], "never": "n", "empty": ""}
    rows = [row | {"image": f"{n % 6}.png"} for n in range(300)]
    columns = Columns(captions=["short", "long", "never", "empty"], weights={"short": 3.0, "never": 0.0, "empty": 5.0})
    path = write(pictures, "parquet", rows)

    def module(**options):
        return module_of(path, Tokenizer(bytes_file, CONTEXT), **{"columns": columns, **options})

    captions = drawn(module(), range(6))
    counts = Counter(captions)
    for caption, share in (("s", 3 / 5), ("l1", 1 / 5), ("l2", 1 / 5)):
        assert counts[caption] / len(captions) == pytest.approx(share, abs=0.035)  # three standard deviations
    assert counts.keys() == {"s", "l1", "l2"}
    even = Counter(drawn(module(columns=Columns(captions=["short", "long", "never"])), range(6)))
    assert all(even[caption] / 1800 == pytest.approx(1 / 4, abs=0.031) for caption in ("s", "l1", "l2", "n"))
    assert drawn(module(), [4]) == captions[4 * 300 : 5 * 300]
    assert drawn(module(), [4]) != drawn(module(), [5])
    assert drawn(module(seed=1), [4]) != captions[4 * 300 : 5 * 300]
    assert module().val_set[0]["captions"] == ["s", "l1", "l2", "n"]  # evaluated with all


@pytest.mark.parametrize("temperature", [1.0, 3.0, float("inf")])
def test_rows_are_drawn_by_language(pictures, bytes_file, temperature):
    spoken = ["en"] * 240 + ["he"] * 45 + ["ja"] * 15
    rows = [{"image": f"{n % 6}.png", "caption": f"{name} {n}", "lang": name} for n, name in enumerate(spoken)]
    columns, path = Columns(language="lang"), write(pictures, "csv", rows)
    source = TableSource(path, columns)
    assert dict(source.languages) == {"en": 240, "he": 45, "ja": 15}
    assert [list(source.languages)[code] for code in source.row_languages] == spoken
    tokenizer = Tokenizer(bytes_file, CONTEXT)
    options = {"columns": columns, "language_temperature": temperature, "global_batch_size": 300}
    (batch,) = module_of(path, tokenizer, **options).train_dataloader()
    counts = Counter(tokenizer.decode(ids).split()[0] for ids in batch["text"])
    expected = shares(np.array([240, 45, 15]), temperature) * 300
    for name, number in zip(("en", "he", "ja"), expected, strict=True):
        assert abs(counts[name] - number) < 1


def test_captions_of_a_row_are_drawn_by_language(pictures, bytes_file):
    """Three English captions and one Hebrew one in every row: by themselves 3 : 1, with even languages 1 : 1."""
    row = {"caption": ["a cat", "one cat", "the cat", "חתול"], "lang": ["en", "en", "en", "he"]}
    path = write(pictures, "parquet", [row | {"image": f"{n % 6}.png"} for n in range(300)])
    for temperature, hebrew in ((None, 1 / 4), (1.0, 1 / 4), (2.0, 1 / (1 + 3**0.5)), (float("inf"), 1 / 2)):
        columns = Columns(language="lang")
        module = module_of(path, Tokenizer(bytes_file, CONTEXT), columns=columns, language_temperature=temperature)
        counts = Counter(drawn(module, range(4)))
        assert counts["חתול"] / 1200 == pytest.approx(hebrew, abs=0.04)
        assert all(counts[text] / 1200 == pytest.approx((1 - hebrew) / 3, abs=0.04) for text in row["caption"][:3])


def test_languages_that_do_not_fit_are_refused(pictures, bytes_file):
    path = write(pictures, "parquet", [{"image": "0.png", "caption": ["a", "b"], "lang": ["en", "de", "fr"]}])
    with pytest.raises(BadSampleError, match="languages: 3 languages for 2 captions"):
        TableSource(path, Columns(language="lang")).read(0)
    with pytest.raises(ValueError, match="needs a source that tells the language of its captions"):
        module_of(path, Tokenizer(bytes_file, CONTEXT), language_temperature=2.0, global_batch_size=1)
    rows = [{"image": "0.png", "caption": "a", "lang": "en"}, {"image": "0.png", "caption": "a", "lang": None}]
    with pytest.raises(ValueError, match=r"Expected a language in every row of .*, column 'lang'"):
        TableSource(write(pictures, "parquet", rows), Columns(language="lang"))
