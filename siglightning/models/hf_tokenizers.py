"""Tokenizers of transformers, read without running anything that lies beside them."""

import json
from pathlib import Path
from typing import Any

from siglightning.models.foreign import first_words, no_foreign_code

_READ_AS_WRITTEN = ("PreTrainedTokenizerFast", "SiglipTokenizer")


def open_hugging_face(name: str) -> Any:
    """The tokenizer of transformers in a folder or on the hub.

    Raises:
        ValueError: it cannot be had, is damaged, or would have to run code.
    """
    try:
        with no_foreign_code():
            return _reader_of(name).from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # the Rust library raises bare Exception, and files may hold anything
        raise ValueError(
            f"Tokenizer {name!r} could not be loaded from a folder or the Hugging Face hub "
            f"({first_words(error)}). Check the name and the connection, or give the path of a downloaded copy."
        ) from error


def _reader_of(name: str) -> Any:
    """The class of transformers that reads a tokenizer, by name or folder.

    ``AutoTokenizer`` takes whatever lies beside a ``siglip2`` for the vocabulary of Gemma, since published folders of
    that type name the wrong class. A folder that names a plain class, or SigLIP's, is read as it says.
    """
    import transformers

    file = Path(name) / "tokenizer_config.json"
    written = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class") if file.is_file() else None
    return getattr(transformers, written) if written in _READ_AS_WRITTEN else transformers.AutoTokenizer
