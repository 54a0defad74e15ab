"""Export to transformers: a ``SiglipModel``, ``Siglip2Model`` (NaFlex) or ``CLIPModel``, which ``AutoModel`` reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from siglightning.models.export.naflex import (
    is_naflex,
    outputs_of_squares,
    patches_config,
    squares_of_patches,
    tokenizer_class,
)
from siglightning.models.export.pictures import preprocessor_config
from siglightning.models.export.reloaded import Outputs, Reloaded
from siglightning.models.export.siglip_form import Half, composed, image_half, text_half
from siglightning.models.export.tokenizer_files import for_transformers
from siglightning.models.export.unheld import UnheldError, require_whole_tower
from siglightning.models.two_tower import TwoTower


def check(network: TwoTower) -> None:
    """Refuse what ``SiglipModel``, ``Siglip2Model`` and ``CLIPModel`` cannot hold exactly.

    Raises:
        UnheldError: towers of another form, or a projection where the class has none.
    """
    require_whole_tower(network)
    for_transformers(network.tokenizer, causal=_is_clip(network))
    if _is_clip(network):
        _check_clip(network)
        return
    if not isinstance(network.image_projection, nn.Identity):
        raise UnheldError(
            "it projects pictures after pooling (`embed_dim`), which SiglipModel does not: with `embed_dim: null` the "
            "image tower's own features are the space"
        )
    image_half(network.image_tower)
    text_half(network.text_tower, network.text_projection)
    _preprocessing(network)


def write(network: TwoTower, folder: Path) -> None:
    """Write weights, configuration, tokenizer and preprocessing.

    Raises:
        UnheldError: see :func:`check`.
    """
    check(network)
    tokenizer, pad_id = for_transformers(network.tokenizer, causal=_is_clip(network))
    model = _clip(network) if _is_clip(network) else _siglip(network, pad_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _edit_json(folder / "tokenizer_config.json", _readable_by_all)
    config = _preprocessing(network)
    config["processor_class"] = config["image_processor_type"].replace("ImageProcessor", "Processor")
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=2) + "\n")


def reload(folder: Path) -> Reloaded:
    """Read a folder with transformers alone."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    patches = model.config.model_type == "siglip2"
    processor = AutoImageProcessor.from_pretrained(folder)
    tokenizer = (tokenizer_class(folder) if patches else AutoTokenizer).from_pretrained(folder)

    def pixels(pictures: Sequence[Tensor]) -> Tensor:
        images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
        if patches:
            return squares_of_patches(images, processor)
        values: Tensor = processor(images=images, return_tensors="pt")["pixel_values"]
        return values

    def tokens(captions: Sequence[str]) -> Tensor:
        # As the zero-shot pipeline calls it for SigLIP.
        ids: Tensor = tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        return ids

    def outputs(values: Tensor, ids: Tensor) -> Outputs:
        with torch.no_grad():
            if patches:
                return outputs_of_squares(model, values, ids)
            out = model(pixel_values=values, input_ids=ids)
        return Outputs(out.image_embeds, out.text_embeds, out.logits_per_image)

    return Reloaded(pixels, tokens, outputs, int(tokenizer.pad_token_id))


def _preprocessing(network: TwoTower) -> dict[str, Any]:
    return patches_config(network) if is_naflex(network) else preprocessor_config(network)


def _siglip(network: TwoTower, pad_id: int) -> Any:
    from transformers import Siglip2Config, Siglip2Model, SiglipConfig, SiglipModel

    make, settings = (Siglip2Model, Siglip2Config) if is_naflex(network) else (SiglipModel, SiglipConfig)
    image = image_half(network.image_tower)
    text = _with_padding_row(text_half(network.text_tower, network.text_projection), network.tokenizer.pad_id, pad_id)
    eos = network.tokenizer.eos_id
    text.config.update({"pad_token_id": pad_id, "bos_token_id": None, "eos_token_id": eos})
    model = make(settings(text_config=text.config, vision_config=image.config))
    weights = {f"vision_model.{name}": value for name, value in image.weights.items()}
    weights |= {f"text_model.{name}": value for name, value in text.weights.items()}
    bias = torch.zeros(1) if network.bias is None else network.bias.detach()
    model.load_state_dict(weights | {"logit_scale": network.log_scale.detach(), "logit_bias": bias})
    return model


def _with_padding_row(text: Half, ours: int, theirs: int) -> Half:
    """Give the padding token of the written tokenizer the embedding of ours, where it is a token of its own."""
    name = "embeddings.token_embedding.weight"
    table = text.weights[name]
    if theirs == ours:
        return text
    missing = max(0, theirs + 1 - len(table))
    table = torch.cat([table, table.new_zeros(missing, table.shape[1])])
    table[theirs] = table[ours]
    return Half(text.config | {"vocab_size": len(table)}, text.weights | {name: table})


def _is_clip(network: TwoTower) -> bool:
    trunk = getattr(network.image_tower, "trunk", None)
    return type(trunk).__name__ in ("CLIPVisionModel", "CLIPVisionTransformer")


def _check_clip(network: TwoTower) -> None:
    if type(getattr(network.text_tower, "trunk", None)).__name__ not in ("CLIPTextModel", "CLIPTextTransformer"):
        raise UnheldError("its image tower is CLIP's and its text tower is not, so that CLIPModel holds only one")
    if network.bias is not None and bool(network.bias.ne(0)):
        raise UnheldError(f"its towers are CLIP's, and CLIPModel has no bias (b = {network.bias.item():.4g})")


def _clip(network: TwoTower) -> Any:
    from transformers import CLIPConfig, CLIPModel

    image, text = network.image_tower, network.text_tower
    vision_config, text_config = image.trunk.config.to_diff_dict(), text.trunk.config.to_diff_dict()  # type: ignore[union-attr, operator]
    config = CLIPConfig(vision_config=vision_config, text_config=text_config, projection_dim=network.embed_dim)
    model = CLIPModel(config)
    model.vision_model.load_state_dict(image.trunk.state_dict())  # type: ignore[union-attr]
    model.text_model.load_state_dict(text.trunk.state_dict())  # type: ignore[union-attr]
    for layer, own, outer in (
        (model.visual_projection, image.projection, network.image_projection),
        (model.text_projection, text.projection, network.text_projection),
    ):
        layer.weight.data = composed(outer, own.weight)[0]  # type: ignore[union-attr, arg-type]
    model.logit_scale.data = network.log_scale.detach().reshape(())
    return model


def _edit_json(path: Path, edit: Any) -> None:
    path.write_text(json.dumps(edit(json.loads(path.read_text())), indent=2, ensure_ascii=False) + "\n")


def _readable_by_all(config: dict[str, Any]) -> dict[str, Any]:
    """Name the class as transformers 4 knows it, too; 5 reads both."""
    is_plain = config.get("tokenizer_class") == "TokenizersBackend"
    return config | ({"tokenizer_class": "PreTrainedTokenizerFast"} if is_plain else {})
