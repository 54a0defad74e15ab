"""What a tokenizer does to captions, observed and not declared: to compare one with that of a tower's training."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from siglightning.models.feature_keys import PROBES
from siglightning.models.tokenizers import Tokenizer

_PLAIN, _UPPER, _POINTED = "a photo of two dogs", "A Photo of TWO Dogs", "a photo, of two dogs!"


@dataclass(frozen=True)
class TokenRecord:
    """How captions become ids.

    Attributes:
        source: of the tokenizer, as it is named in the configuration.
        context_length: ids a caption.
        pad_id: fills up short captions.
        vocab_size: ids lie in ``[0, vocab_size)``.
        lower_cases: whether case makes no difference.
        strips_punctuation: whether punctuation makes none.
        ids: identity of the ids of a few awkward captions without their padding, 16 hexadecimal digits; equal for
            equal vocabularies with equal cleaning.
    """

    source: str
    context_length: int
    pad_id: int
    vocab_size: int
    lower_cases: bool
    strips_punctuation: bool
    ids: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "TokenRecord":
        """Observe a tokenizer."""
        whole = Tokenizer(tokenizer.source, 1024, tokenizer.canonicalize, tokenizer.pad_id)
        plain, upper, pointed = whole([_PLAIN, _UPPER, _POINTED]).tolist()
        rows = [_without_padding(row, whole.pad_id) for row in whole(PROBES).tolist()]
        digest = hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()
        return cls(
            tokenizer.source,
            tokenizer.context_length,
            tokenizer.pad_id,
            tokenizer.vocab_size,
            plain == upper,
            plain == pointed,
            digest,
        )

    @classmethod
    def read(cls, values: dict[str, Any]) -> "TokenRecord | None":
        """One that was written; ``None`` for anything else."""
        try:
            return cls(**values)
        except TypeError:
            return None

    def values(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def _without_padding(row: list[int], pad_id: int) -> list[int]:
    while row and row[-1] == pad_id:
        row = row[:-1]
    return row
