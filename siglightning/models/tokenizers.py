"""One tokenizer for every vocabulary: clean, encode, truncate with a counter, pad to a fixed length.

SigLIP reads captions padded to the full context length and pools the last position, so padding to the longest
caption of a batch instead gives embeddings that look healthy and are wrong. Here the length is a property of the
tokenizer, not of the batch.
"""

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siglightning.models.foreign import refusing
from siglightning.models.hf_tokenizers import open_hugging_face

SCHEMES = ("clip", "sentencepiece:", "hf:", "open_clip:")
# Of like words and letters, so that a vocabulary which knows none of them gives both the same ids.
_ALIKE = ("a red cat", "a big dog")
_OWN_WORDS = 64  # that a vocabulary is asked for
CACHED_CAPTIONS = 2**15  # some 10 MB a process; captions come back every epoch, and cleaning them costs 0.1 ms each
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Vocabulary:
    """A source of token ids.

    Attributes:
        encode: one text to its ids, special tokens included, neither truncated nor padded.
        decode: ids without padding to a readable text, special tokens left out.
        vocab_size: ids lie in ``[0, vocab_size)``.
        pad_id: fills up short captions.
        eos_id: the id that ends every encoded text, or ``None`` when the source ends texts with nothing.
    """

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[list[int]], str]
    vocab_size: int
    pad_id: int
    eos_id: int | None


def canonicalize(text: str) -> str:
    """Lower-case, without ASCII punctuation (an underscore becomes a space), whitespace collapsed.

    The form in which the SigLIP checkpoints saw their captions (big_vision's ``canonicalize_text``).
    """
    return " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).lower().split())


class Tokenizer:
    """Captions to int64 token ids of one fixed length.

    Pickling and copying carry the arguments only; the vocabulary is read again on first use, so workers started by
    ``spawn`` receive a few bytes.

    Args:
        source: ``clip`` (byte-pair vocabulary of CLIP, installed with open_clip: needs no network), a path to a
            SentencePiece ``.model``, a path to a ``tokenizer.json`` or to a folder saved by transformers,
            ``hf:NAME`` for a tokenizer on the Hugging Face hub, or ``open_clip:NAME`` for the tokenizer that
            belongs to an open_clip model.
        context_length: tokens a caption is padded or truncated to.
        canonicalize: apply :func:`canonicalize` first. Sources that clean text themselves still do.
        pad_id: overrides the padding id of the source. SentencePiece sources pad with their end-of-text id, as
            SigLIP does; SigLIP 2 pads with 0.

    Attributes:
        truncated: captions that this object had to cut so far (each data-loading worker counts its own).
        vocab_size: ids lie in ``[0, vocab_size)``.
        pad_id: the padding id.
        eos_id: the id that closes every caption, also a truncated one; ``None`` if the source has none.

    Raises:
        ValueError: unknown or unreachable source, or a context length that cannot hold one token.
    """

    def __init__(
        self, source: str = "clip", context_length: int = 64, canonicalize: bool = False, pad_id: int | None = None
    ) -> None:
        if context_length < 2:
            raise ValueError(
                f"context_length must be at least 2 (one token and the end of text), got {context_length}."
            )
        self.source = source
        self.context_length = context_length
        self.canonicalize = canonicalize
        self._given_pad_id = pad_id
        self.truncated = 0
        self._vocabulary: Vocabulary | None = _with_memory(open_vocabulary(source))

    @property
    def vocabulary(self) -> Vocabulary:
        """The source of ids, read from disk again after unpickling."""
        if self._vocabulary is None:
            self._vocabulary = _with_memory(open_vocabulary(self.source))
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.vocabulary.vocab_size

    @property
    def pad_id(self) -> int:
        """Id that fills up short captions."""
        return self.vocabulary.pad_id if self._given_pad_id is None else self._given_pad_id

    @property
    def eos_id(self) -> int | None:
        """Id that closes every caption, or ``None``."""
        return self.vocabulary.eos_id

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenize captions.

        Args:
            texts: ``n`` captions.

        Returns:
            int64 ``[n, context_length]``.

        Raises:
            ValueError: ``texts`` is one string instead of a sequence of strings.
        """
        if isinstance(texts, str):
            raise ValueError(f"Expected a sequence of captions, got the string {texts!r}; wrap it in a list.")
        ids = torch.full((len(texts), self.context_length), self.pad_id, dtype=torch.int64)
        for row, text in enumerate(texts):
            tokens = self._encode(text)
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        return ids

    def decode(self, ids: Tensor) -> str:
        """The text of one row of ids, int64 ``[context_length]``, without padding and special tokens.

        It is the text as the vocabulary stores it: a tokenizer that lower-cases gives lower case back.
        """
        kept = ids.tolist()
        if self.eos_id is not None and self.eos_id in kept:
            kept = kept[: kept.index(self.eos_id)]
        while kept and kept[-1] == self.pad_id:
            kept.pop()
        return self.vocabulary.decode(kept)

    def _encode(self, text: str) -> Sequence[int]:
        text = unicodedata.normalize("NFC", text)
        if self.canonicalize:
            text = canonicalize(text)
        tokens = self.vocabulary.encode(text)
        if len(tokens) <= self.context_length:
            return tokens
        self.truncated += 1
        closing = [] if self.eos_id is None else [self.eos_id]
        return [*tokens[: self.context_length - len(closing)], *closing]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_vocabulary": None}

    def __repr__(self) -> str:
        return f"Tokenizer(source={self.source!r}, context_length={self.context_length}, vocab_size={self.vocab_size})"


def open_vocabulary(source: str) -> Vocabulary:
    """Open a source of token ids by its name (see :class:`Tokenizer`).

    Raises:
        ValueError: no such source, with the nearest right name or the remedy; or one that knows no words.
    """
    with refusing(source):
        vocabulary = _open(source)
        knows_words = _knows_words(vocabulary)
    if not knows_words:
        raise ValueError(
            f"{source!r} has no tokenizer (tokenizer.json, vocab.json or a SentencePiece .model) that knows words: all "
            "captions get the same ids. Save it there with the tokenizer's save_pretrained, or give `tokenizer` (on "
            "the command line --tokenizer)."
        )
    return vocabulary


def _knows_words(vocabulary: Vocabulary) -> bool:
    """Whether captions get ids of their own: two of English, or else its own words, in whatever language those are.

    Where files are missing, transformers makes up a vocabulary of a few special tokens, which stand for no text.
    """
    if len({tuple(vocabulary.encode(caption)) for caption in _ALIKE}) > 1:
        return True
    step = -(-vocabulary.vocab_size // _OWN_WORDS) or 1
    own = {vocabulary.decode([i]) for i in range(0, vocabulary.vocab_size, step)}
    return len({tuple(vocabulary.encode(word)) for word in own}) > 1


def _open(source: str) -> Vocabulary:
    if source == "clip":
        return _clip_vocabulary()
    scheme, _, rest = source.partition(":")
    if scheme == "open_clip" and rest:
        return _open_clip_vocabulary(rest)
    if scheme == "hf" and rest:
        return _hugging_face_vocabulary(rest)
    return _vocabulary_from_path(Path(rest if scheme == "sentencepiece" else source))


def _with_memory(vocabulary: Vocabulary) -> Vocabulary:
    """The same vocabulary, which remembers the captions that it saw last."""
    return replace(vocabulary, encode=lru_cache(CACHED_CAPTIONS)(vocabulary.encode))


def _vocabulary_from_path(path: Path) -> Vocabulary:
    if path.is_dir():
        return _hugging_face_vocabulary(str(path))
    if path.is_file() and path.suffix == ".json":
        return _tokenizers_vocabulary(path)
    if path.is_file():
        return _sentencepiece_vocabulary(path)
    near = get_close_matches(str(path), SCHEMES, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"Tokenizer {str(path)!r} is neither a known source ({', '.join(SCHEMES)}) nor an existing file or folder."
        f"{hint} Give `clip`, a path to a SentencePiece .model, a tokenizer.json, a folder, or hf:NAME."
    )


def _clip_vocabulary() -> Vocabulary:
    from open_clip.tokenizer import SimpleTokenizer

    return _wrap_simple_tokenizer(SimpleTokenizer())


def _wrap_simple_tokenizer(bpe: Any) -> Vocabulary:
    start, end = bpe.sot_token_id, bpe.eot_token_id

    def decode(ids: list[int]) -> str:
        text = str(bpe.decode([i for i in ids if i not in (start, end)])).strip()
        # The vocabulary ends words and punctuation alike with a space; what stood tight is not stored.
        return re.sub(r" (-) |\s+(?=[,.;:!?'’])", r"\1", text)

    return Vocabulary(lambda text: [start, *bpe.encode(text), end], decode, bpe.vocab_size, pad_id=0, eos_id=end)


def _sentencepiece_vocabulary(path: Path) -> Vocabulary:
    from sentencepiece import SentencePieceProcessor

    try:
        pieces = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ValueError(f"Tokenizer {str(path)!r} is no readable SentencePiece model: {error}") from error
    eos = pieces.eos_id()  # -1: the model has none
    pad = eos if eos >= 0 else max(pieces.pad_id(), 0)
    closing = [eos] if eos >= 0 else []
    return Vocabulary(
        lambda text: [*pieces.encode(text), *closing],
        pieces.decode,
        pieces.vocab_size(),
        pad,
        eos_id=eos if eos >= 0 else None,
    )


def _tokenizers_vocabulary(path: Path) -> Vocabulary:
    from tokenizers import Tokenizer as FastTokenizer

    try:
        fast = FastTokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise ValueError(f"Tokenizer {str(path)!r} is no readable tokenizer file: {error}") from error
    pad = fast.padding["pad_id"] if fast.padding else _first_known(fast, ("<pad>", "[PAD]", "</s>", "<|endoftext|>"))
    fast.no_padding()
    fast.no_truncation()
    special = {i for i, token in fast.get_added_tokens_decoder().items() if token.special}
    eos = _closing_special_token(fast.encode("a").ids, special)
    size = max(fast.get_vocab_size(), *(i + 1 for i in fast.get_vocab().values()), pad + 1)
    return Vocabulary(lambda text: list(fast.encode(text).ids), fast.decode, size, pad, eos)


def _first_known(fast: Any, names: Sequence[str]) -> int:
    ids = (fast.token_to_id(name) for name in names)
    return next((i for i in ids if i is not None), 0)


def _closing_special_token(ids: Sequence[int], special: set[int]) -> int | None:
    return ids[-1] if ids and ids[-1] in special else None


def _hugging_face_vocabulary(name: str) -> Vocabulary:
    return _wrap_hugging_face(open_hugging_face(name), clean=None)


def _wrap_hugging_face(tokenizer: Any, clean: Callable[[str], str] | None) -> Vocabulary:
    def encode(text: str) -> list[int]:
        return list(tokenizer(clean(text) if clean else text, verbose=False)["input_ids"])

    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad = next(i for i in candidates if i is not None)
    eos = _closing_special_token(encode("a"), set(tokenizer.all_special_ids))

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    # Ids need not be consecutive: a damaged file may have one that no embedding table reaches.
    highest = max(tokenizer.get_vocab().values(), default=-1)
    return Vocabulary(encode, decode, max(len(tokenizer), highest + 1), pad, eos)


def _open_clip_vocabulary(name: str) -> Vocabulary:
    from open_clip.tokenizer import SimpleTokenizer

    from siglightning.models.open_clip_tokenizers import open_clip_tokenizer

    tokenizer = open_clip_tokenizer(name)
    if isinstance(tokenizer, SimpleTokenizer):
        return _wrap_simple_tokenizer(tokenizer)
    if tokenizer.tokenizer_mode or tokenizer.strip_sep_token:
        raise ValueError(
            f"open_clip model {name!r} uses a tokenizer mode that is not supported here; give `tokenizer`."
        )
    return _wrap_hugging_face(tokenizer.tokenizer, clean=tokenizer.clean_fn)
