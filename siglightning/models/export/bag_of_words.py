"""A bag of words as a BERT without layers, which is how open_clip can hold the mean over tokens.

Ours: ``y = W (g * z / s)`` with ``z`` the mean over tokens of word and position embeddings, less its own mean over
features, and ``s`` the root of its variance (LayerNorm behind the mean, without a bias). BERT's: the mean over tokens
of ``g * z_i / s_i``, since its LayerNorm stands before the mean and divides each token by a root of its own.

Both are then made unit vectors, so ``s``, which is positive, may be any number, as long as it is one for all tokens of
a caption. BERT's LayerNorm divides by the root of ``variance + eps``: beside an ``eps`` of 2^26 times the largest
variance of any token that root is the same for all tokens, to the last bit in fp32. With a power of four for ``eps``
the division is by a power of two, and so is the factor in the weights that undoes it: neither rounds.
"""

import math

from torch import Tensor, nn
from transformers import BertConfig

from siglightning.models.export.siglip_form import token_table
from siglightning.models.export.unheld import UnheldError
from siglightning.models.local_towers import LocalTextTransformer
from siglightning.models.tokenizers import Tokenizer

_DROWNED = 2.0**26  # fp32 keeps 24 bits: a variance so much smaller than `eps` is rounded away when it is added


def is_bag_of_words(tower: nn.Module) -> bool:
    """Whether a text tower is the mean of its embeddings and nothing else."""
    return isinstance(tower, LocalTextTransformer) and not len(tower.blocks) and tower.pooling == "mean"


def require_linear(tower: LocalTextTransformer, tokenizer: Tokenizer) -> None:
    """Refuse a bag of words that is no linear map of the mean over BERT's tokens.

    Raises:
        UnheldError: a bias behind the mean, padding that counts, or captions of which nothing is left to be averaged.
    """
    if tower.norm.bias is not None and tower.norm.bias.any():
        raise UnheldError(
            "its bag of words has a norm with a bias behind the mean over tokens, BERT's norm stands before it; train "
            "with `norm_bias: false`"
        )
    if not tower.mask_padding:
        raise UnheldError("its bag of words averages padding, too (`mask_padding: false`)")
    if tokenizer([""])[0, 0] == tokenizer.pad_id:  # ours then takes the first token, open_clip divides by zero
        raise UnheldError("its tokenizer makes nothing but padding of an empty caption, of which there is no mean")


def bert_config(tower: LocalTextTransformer) -> BertConfig:
    """The BERT that holds the tower."""
    return BertConfig(
        vocab_size=tower.vocab_size,
        pad_token_id=tower.pad_id,
        hidden_size=tower.width,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=tower.width,
        max_position_embeddings=tower.context_length,
        type_vocab_size=1,
        layer_norm_eps=_drowning_eps(tower),
    )


def bert_weights(tower: LocalTextTransformer) -> dict[str, Tensor]:
    """Weights by the names of transformers' ``BertModel`` without its pooler."""
    positions = tower.position_embedding.detach()
    scale = tower.norm.weight.detach()
    return {
        "embeddings.word_embeddings.weight": token_table(tower),
        "embeddings.position_embeddings.weight": positions,
        "embeddings.token_type_embeddings.weight": positions.new_zeros(1, tower.width),
        "embeddings.LayerNorm.weight": scale * math.sqrt(_drowning_eps(tower)),
        "embeddings.LayerNorm.bias": scale.new_zeros(tower.width),
    }


def _drowning_eps(tower: LocalTextTransformer) -> float:
    """The least power of four beside which the variance of no token counts, whichever its position."""
    words, positions = token_table(tower), tower.position_embedding.detach()
    spread = sum(table.double().std(dim=1, correction=0).max().item() for table in (words, positions))
    return 4.0 ** math.ceil(math.log(max(_DROWNED * spread**2, 1.0), 4))  # std(a + b) <= std(a) + std(b)
