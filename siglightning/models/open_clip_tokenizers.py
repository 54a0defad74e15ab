"""The tokenizer of an open_clip model, built by open_clip from a config that a stranger may have written."""

from collections.abc import Mapping
from typing import Any

import open_clip

from siglightning.models.foreign import first_words, no_foreign_code
from siglightning.models.open_clip_towers import resolve_model_name

# Of a config's `tokenizer_kwargs`; all others open_clip hands on to transformers, `trust_remote_code` among them.
_KNOWN = ("clean", "language", "strip_sep_token")


def open_clip_tokenizer(name: str) -> Any:
    """Build the tokenizer of an open_clip model.

    Args:
        name: as behind ``open_clip:``: built-in, a JSON config, ``hf-hub:...`` or ``local-dir:...``.

    Returns:
        open_clip's ``SimpleTokenizer``, or its ``HFTokenizer`` around one of transformers.

    Raises:
        ValueError: no such model or tokenizer, none that the config names, or one that could only be had by running
            code.
    """
    resolved = resolve_model_name(name)
    try:
        _require_plain(name, _text_config(resolved), guesses="siglip" in resolved.lower() and ":" not in resolved)
        with no_foreign_code():
            return open_clip.get_tokenizer(resolved)
    except Exception as error:  # a config from elsewhere may be anything
        raise ValueError(
            f"The tokenizer of open_clip model {name!r} could not be loaded ({first_words(error)}). "
            "Check the connection, or give a local one: `tokenizer: PATH` (a SentencePiece .model or a folder)."
        ) from error


def _text_config(resolved: str) -> Mapping[str, Any]:
    """What a model's config says of its text side."""
    try:
        config: Any = open_clip.get_model_config(resolved) or {}
    except Exception:
        if not resolved.startswith("hf-hub:"):
            raise
        return {}  # open_clip then takes the repository for one of transformers, without any arguments
    return dict(config.get("text_cfg") or {})


def _require_plain(name: str, text: Mapping[str, Any], *, guesses: bool) -> None:
    """Refuse a config of which open_clip would make more than a tokenizer."""
    if guesses and text and "hf_tokenizer_name" not in text:
        # From the name of the model, and would download it.
        raise ValueError(f"the config of {name!r} names no tokenizer; give `tokenizer`, e.g. clip")
    others = sorted(set(text.get("tokenizer_kwargs") or {}) - {*_KNOWN})
    if others:
        raise ValueError(
            f"its config has the tokenizer_kwargs {', '.join(others)}; known are {', '.join(_KNOWN)}, and code from a "
            "checkpoint is never run"
        )
