"""Our tokenizer as files that other libraries read: the same ids, padding and truncation included.

CLIP's vocabulary is code in open_clip: captions are repaired (ftfy), entities of HTML resolved, case lowered, then
come the byte pairs. Here that is written down as a ``tokenizer.json``. Of ftfy it keeps what is a replacement of single
characters (quotes, ligatures, widths, control characters); text that was decoded wrongly open_clip alone repairs.
"""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from siglightning.models.export.unheld import UnheldError
from siglightning.models.hf_tokenizers import open_hugging_face
from siglightning.models.tokenizers import Tokenizer

PAD = "<pad>"
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": " "}
_WORDS = r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CONTROL = r"[\x00-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]"


def fast_tokenizer(tokenizer: Tokenizer) -> FastTokenizer:
    """The tokenizer without its padding and truncation.

    Raises:
        UnheldError: a source that is no ``tokenizer.json`` at heart, such as a SentencePiece model.
    """
    source = tokenizer.source
    if is_clip(source):
        return clip_tokenizer(tokenizer.canonicalize)
    fast: FastTokenizer | None
    cleaning: list[normalizers.Normalizer] = []
    if source.endswith(".json") and Path(source).is_file():
        fast = FastTokenizer.from_file(source)
    else:
        inner, cleaning = _of_transformers(source)
        fast = getattr(inner, "backend_tokenizer", None)
    if fast is None:
        raise UnheldError(f"its tokenizer {source!r} is a SentencePiece model, for which there is no tokenizer.json")
    before = [] if fast.normalizer is None else [fast.normalizer]
    fast.normalizer = normalizers.Sequence([*_clean(tokenizer.canonicalize), *cleaning, *before])
    fast.no_padding()
    fast.no_truncation()
    return fast


def clip_tokenizer(canonicalize: bool) -> FastTokenizer:
    """CLIP's byte-pair vocabulary as open_clip holds it, with its cleaning."""
    from open_clip.tokenizer import SimpleTokenizer

    bpe = SimpleTokenizer()
    merges = sorted(bpe.bpe_ranks, key=bpe.bpe_ranks.__getitem__)
    fast = FastTokenizer(BPE(dict(bpe.encoder), merges, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    fast.normalizer = normalizers.Sequence([*_clean(canonicalize), *_cleaned_by_open_clip("_clean_lower")])
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()
    ends = [bpe.decoder[bpe.sot_token_id], bpe.decoder[bpe.eot_token_id]]
    fast.add_special_tokens([AddedToken(end, special=True, normalized=False) for end in ends])
    fast.post_processor = processors.TemplateProcessing(
        single=f"{ends[0]} $A {ends[1]}", special_tokens=list(zip(ends, bpe.all_special_ids, strict=True))
    )
    return fast


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` for the library ``tokenizers``; it pads and truncates by itself.

    Raises:
        UnheldError: see :func:`fast_tokenizer`.
    """
    fast = fast_tokenizer(tokenizer)
    fast.enable_truncation(tokenizer.context_length)
    pad = fast.id_to_token(tokenizer.pad_id) or PAD
    fast.enable_padding(pad_id=tokenizer.pad_id, pad_token=pad, length=tokenizer.context_length)
    fast.save(str(folder / "tokenizer.json"))


def for_transformers(tokenizer: Tokenizer, *, causal: bool = False) -> tuple[Any, int]:
    """The tokenizer as one of transformers, and the id with which it pads.

    CLIP's vocabulary is padded with id 0, an ordinary token (``!``). In transformers the padding token is never read
    from a text, so such a vocabulary gets one token more, whose embedding has to be a copy of that of our padding.

    Args:
        tokenizer: ours.
        causal: that the text tower pools the end of the text and sees nothing behind it, as CLIP's does. Padding then
            changes nothing, and texts are padded with their end, as CLIP's own tokenizer does.

    Raises:
        UnheldError: a SentencePiece model whose captions are not canonicalised, which transformers always does.
    """
    options: dict[str, Any] = {
        "model_max_length": tokenizer.context_length,
        "model_input_names": ["input_ids"],  # SigLIP reads padding: a mask would hide it
        "padding_side": "right",
    }
    if (model := sentencepiece_model(tokenizer)) is not None:
        from transformers import SiglipTokenizer

        if not tokenizer.canonicalize:
            raise UnheldError("its SentencePiece tokenizer keeps case and punctuation (`canonicalize: false`)")
        return SiglipTokenizer(str(model), **options), tokenizer.pad_id
    from transformers import PreTrainedTokenizerFast

    fast = fast_tokenizer(tokenizer)
    special = {token.content for token in fast.get_added_tokens_decoder().values() if token.special}
    eos = None if tokenizer.eos_id is None else fast.id_to_token(tokenizer.eos_id)
    pad = eos if causal and eos is not None else fast.id_to_token(tokenizer.pad_id)
    if pad not in special:
        pad = PAD
        fast.add_special_tokens([PAD])
    pad_id = fast.token_to_id(pad)
    assert pad_id is not None  # it was found there, or put there
    return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token=pad, eos_token=eos, **options), pad_id


def sentencepiece_model(tokenizer: Tokenizer) -> Path | None:
    """The file of a SentencePiece tokenizer, or ``None`` for other sources."""
    path = Path(tokenizer.source.removeprefix("sentencepiece:"))
    return path if path.suffix != ".json" and path.is_file() else None


def is_clip(source: str) -> bool:
    """Whether a tokenizer's source is CLIP's vocabulary as open_clip holds it."""
    if not source.startswith("open_clip:"):
        return source == "clip"
    from open_clip import SimpleTokenizer

    from siglightning.models.open_clip_tokenizers import open_clip_tokenizer

    return isinstance(open_clip_tokenizer(source.partition(":")[2]), SimpleTokenizer)


def _of_transformers(source: str) -> tuple[Any, list[normalizers.Normalizer]]:
    """A tokenizer of transformers, and what open_clip does to captions before it; ``None`` for a file."""
    if source.startswith("open_clip:"):
        from siglightning.models.open_clip_tokenizers import open_clip_tokenizer

        wrapper = open_clip_tokenizer(source.partition(":")[2])
        return wrapper.tokenizer, _cleaned_by_open_clip(wrapper.clean_fn.__name__)
    if Path(source).is_file():
        return None, []
    return open_hugging_face(source.removeprefix("hf:")), []


def _clean(canonicalize: bool) -> list[normalizers.Normalizer]:
    """What :class:`~siglightning.models.tokenizers.Tokenizer` does before the vocabulary is asked."""
    steps: list[normalizers.Normalizer] = [normalizers.NFC()]
    return [*steps, *_canonical()] if canonicalize else steps


def _canonical() -> list[normalizers.Normalizer]:
    punctuation = "".join(f"\\{mark}" for mark in string.punctuation)
    steps = [normalizers.Replace("_", " "), normalizers.Replace(Regex(f"[{punctuation}]"), "")]
    return [*steps, normalizers.Lowercase(), _spaces(), normalizers.Strip()]


def _cleaned_by_open_clip(name: str) -> list[normalizers.Normalizer]:
    """Repairs, then what one of open_clip's three functions does to case, punctuation and spaces."""
    if name == "_clean_canonicalize":
        return [*_repairs(), *_canonical()]
    lower = [normalizers.Lowercase()] if name == "_clean_lower" else []
    return [*_repairs(), _spaces(), normalizers.Strip(), *lower]


def _repairs() -> Sequence[normalizers.Normalizer]:
    from ftfy.chardata import LIGATURES, WIDTH_MAP

    steps = [
        normalizers.Replace(Regex("[\u02bc\u2018-\u201b]"), "'"),
        normalizers.Replace(Regex("[\u201c-\u201f]"), '"'),
    ]
    singles = {chr(code): text for code, text in (LIGATURES | WIDTH_MAP).items()}
    entities = [*_ENTITIES.items(), *_ENTITIES.items()]  # open_clip resolves them twice
    steps += [normalizers.Replace(Regex(_CONTROL), "")]
    return steps + [normalizers.Replace(old, new) for old, new in [*singles.items(), *entities]]


def _spaces() -> normalizers.Normalizer:
    return normalizers.Replace(Regex(r"\s+"), " ")
