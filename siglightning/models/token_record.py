"""What a tokenizer does to captions, observed and not declared: to compare one with that of a tower's training."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from siglightning.models.feature_keys import PROBES
from siglightning.models.tokenizers import Tokenizer

_PLAIN, _UPPER, _POINTED = "a photo of two dogs", "A Photo of TWO Dogs", "a photo, of two dogs!"
_NOTHING = -1


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
        ids: identity of the ids of each of :data:`~siglightning.models.feature_keys.PROBES`, without their padding,
            joined by hyphens; equal for equal vocabularies with equal cleaning.
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
        # Filled up with no id at all: some vocabularies pad with the id that closes each text.
        whole = Tokenizer(tokenizer.source, 1024, tokenizer.canonicalize, pad_id=_NOTHING)
        plain, upper, pointed = whole([_PLAIN, _UPPER, _POINTED]).tolist()
        rows = [[token for token in row if token != _NOTHING] for row in whole(PROBES).tolist()]
        digests = (hashlib.blake2b(json.dumps(row).encode(), digest_size=4).hexdigest() for row in rows)
        return cls(
            tokenizer.source,
            tokenizer.context_length,
            tokenizer.pad_id,
            tokenizer.vocab_size,
            plain == upper,
            plain == pointed,
            "-".join(digests),
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
