"""Export to ONNX: one graph a tower, for any number of pictures or captions, with unit embeddings as outputs.

``vision_model.onnx`` maps ``pixel_values`` to ``image_embeds``, ``text_model.onnx`` maps ``input_ids`` to
``text_embeds``; both sum up in ``logits = exp(log_scale) * image_embeds @ text_embeds.T + bias``. Beside them lie
``tokenizer.json``, which pads and truncates by itself, ``preprocessor_config.json`` and ``config.json``.
"""

import json
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from siglightning.models.export.naflex import is_naflex
from siglightning.models.export.pictures import preprocessor_config, squares
from siglightning.models.export.reloaded import Outputs, Reloaded
from siglightning.models.export.tokenizer_files import sentencepiece_model, write_tokenizer
from siglightning.models.export.unheld import UnheldError, require_whole_tower
from siglightning.models.two_tower import TwoTower

VISION, TEXT, CONFIG = "vision_model.onnx", "text_model.onnx", "config.json"
OPSET = 18  # what torch's exporter writes without converting; LayerNormalization came with 17
_SINGLE_FILE = 2**30  # bytes of weights; a protocol buffer holds 2 GiB, beyond which weights lie beside the graph
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


def check(network: TwoTower) -> None:
    """Refuse what a graph cannot hold, and tell which packages are missing.

    Raises:
        UnheldError: patch tokens left out in evaluation, adapters, NaFlex, or a SentencePiece tokenizer.
        ValueError: a package is missing.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f'ONNX needs the packages {", ".join(missing)}: pip install "siglightning[onnx]".')
    require_whole_tower(network)
    if is_naflex(network):
        raise UnheldError("its image tower (NaFlex) resizes positions picture by picture: a graph has a fixed number")
    if sentencepiece_model(network.tokenizer) is not None:
        raise UnheldError("its tokenizer is a SentencePiece model, for which there is no tokenizer.json")


def write(network: TwoTower, folder: Path) -> None:
    """Write both graphs, the tokenizer, preprocessing and t' and b.

    Raises:
        UnheldError: see :func:`check`.
    """
    check(network)
    tower, size = network.image_tower, network.image_size
    pixels = torch.zeros(2, 3, size, size)
    ids = network.tokenizer(["a picture", "another one"])
    _export(_Embedder(tower, network.image_projection), pixels, ("pixel_values", "image_embeds"), folder / VISION)
    _export(_Embedder(network.text_tower, network.text_projection), ids, ("input_ids", "text_embeds"), folder / TEXT)
    write_tokenizer(network.tokenizer, folder)
    config = {
        "log_scale": network.log_scale.item(),
        "bias": None if network.bias is None else network.bias.item(),
        "embed_dim": network.embed_dim,
        "context_length": network.context_length,
        "pad_token_id": network.tokenizer.pad_id,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    preprocessing = preprocessor_config(network)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=2) + "\n")


def reload(folder: Path) -> Reloaded:
    """Read a folder with onnxruntime, tokenizers, Pillow and NumPy."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    graphs = {
        name: onnxruntime.InferenceSession(folder / name, options, providers=["CPUExecutionProvider"])
        for name in (VISION, TEXT)
    }
    config = json.loads((folder / CONFIG).read_text())
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pixels = _pixels(json.loads((folder / "preprocessor_config.json").read_text()))

    def tokens(captions: Sequence[str]) -> Tensor:
        return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(captions))])

    def outputs(values: Tensor, ids: Tensor) -> Outputs:
        image = graphs[VISION].run(["image_embeds"], {"pixel_values": values.numpy()})[0]
        text = graphs[TEXT].run(["text_embeds"], {"input_ids": ids.numpy()})[0]
        logits = math.exp(config["log_scale"]) * image @ text.T + (config["bias"] or 0.0)
        return Outputs(*map(torch.from_numpy, (image, text, logits.astype(np.float32))))

    return Reloaded(pixels, tokens, outputs, int(config["pad_token_id"]))


class _NormsByRow(TorchFunctionMode):
    """Lets GroupNorm be computed as a LayerNorm over each group, which it is but for the factors of the channels.

    The exporter writes GroupNorm as InstanceNormalization, whose means onnxruntime takes three to four times less
    exactly than torch: on nearly white drawings it was 1.1e-5 off in the logits. Its LayerNormalization is as exact.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not functional.group_norm:
            return func(*args, **(kwargs or {}))
        return _group_norm(*args, **(kwargs or {}))


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    size = math.prod(x.shape[1:]) // num_groups
    rows = functional.layer_norm(x.reshape(x.shape[0], num_groups, size), (size,), eps=eps).reshape(x.shape)
    per_channel = (-1, *(1 for _ in x.shape[2:]))
    rows = rows if weight is None else rows * weight.view(per_channel)
    return rows if bias is None else rows + bias.view(per_channel)


class _Embedder(nn.Module):
    """Tower, projection and unit length."""

    def __init__(self, tower: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.tower, self.projection = tower, projection

    def forward(self, inputs: Tensor) -> Tensor:
        with _NormsByRow():
            return functional.normalize(self.projection(self.tower(inputs)), dim=-1)


def _export(module: nn.Module, example: Tensor, names: tuple[str, str], path: Path) -> None:
    weights = sum(value.numel() * value.element_size() for value in module.state_dict().values())
    batch = torch.export.Dim("batch", min=1)
    # With gradients on: without them a BERT sorts captions by length, which no graph can.
    with torch.enable_grad():
        torch.onnx.export(
            module.eval(),
            (example,),
            str(path),
            input_names=[names[0]],
            output_names=[names[1]],
            dynamic_shapes=({0: batch},),
            opset_version=OPSET,
            dynamo=True,
            external_data=weights > _SINGLE_FILE,
            verbose=False,
        )


def _pixels(config: dict[str, Any]) -> Callable[[Sequence[Tensor]], Tensor]:
    """Preprocessing by Pillow and NumPy."""
    mean, std = (np.array(config[name], np.float32) for name in ("image_mean", "image_std"))

    def pixels(pictures: Sequence[Tensor]) -> Tensor:
        values = (squares(pictures, config).astype(np.float32) * np.float32(config["rescale_factor"]) - mean) / std
        return torch.from_numpy(values.transpose(0, 3, 1, 2).copy())

    return pixels
