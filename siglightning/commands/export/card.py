"""The model card: what was exported, what it was trained on and how, what was measured, and how to use it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from siglightning import __version__
from siglightning.models.export.naflex import is_naflex
from siglightning.models.export.tokenizer_files import sentencepiece_model
from siglightning.runtime.files import file_sha256
from siglightning.runtime.metrics_file import read_metrics

if TYPE_CHECKING:
    from siglightning.batch import Resizing
    from siglightning.commands.export.source import Source
    from siglightning.commands.export.verify import Verification
    from siglightning.models import TowerConfig
    from siglightning.models.export import Format
    from siglightning.models.interop.checkpoint import Checkpoint, Origin

_PIPELINE = "zero-shot-image-classification"
_USAGE = {
    "transformers": """import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

model, processor = AutoModel.from_pretrained("DIR").eval(), AutoProcessor.from_pretrained("DIR")
inputs = processor(text=["a cat", "a dog"], images=Image.open("picture.png").convert("RGB"),
                   padding="max_length", truncation=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits_per_image
""",
    "Siglip2Model": """import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, TOKENIZER

model, processor = AutoModel.from_pretrained("DIR").eval(), AutoImageProcessor.from_pretrained("DIR")
tokenizer = TOKENIZER.from_pretrained("DIR")
picture = RESIZED
ids = tokenizer(["a cat", "a dog"], padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
with torch.no_grad():
    logits = model(input_ids=ids, **processor(images=picture, return_tensors="pt")).logits_per_image
""",
    "open_clip": """import open_clip
import torch
from PIL import Image

model, preprocess = open_clip.create_model_from_pretrained("local-dir:DIR")
tokenizer = open_clip.get_tokenizer("local-dir:DIR")
with torch.no_grad():
    image = preprocess(Image.open("picture.png")).unsqueeze(0)
    logits, _ = model.eval().get_logits(image, tokenizer(["a cat", "a dog"]))
""",
    "safetensors": """import torch
from siglightning.models import load_two_tower

model = load_two_tower("DIR").eval()
with torch.no_grad():
    image, text = model(pictures, model.tokenizer(["a cat", "a dog"]))  # pictures: uint8 [B, 3, SIZE, SIZE]
    logits = model.log_scale.exp() * image @ text.T + (0 if model.bias is None else model.bias)
""",
    "onnx": """import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

config = json.load(open("DIR/config.json"))
vision, text = (onnxruntime.InferenceSession(f"DIR/{name}_model.onnx") for name in ("vision", "text"))
ids = [encoding.ids for encoding in Tokenizer.from_file("DIR/tokenizer.json").encode_batch(["a cat", "a dog"])]
picture = RESIZED
pixels = ((np.asarray(picture, np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None].astype(np.float32)
x, y = vision.run(None, {"pixel_values": pixels})[0], text.run(None, {"input_ids": np.array(ids)})[0]
logits = np.exp(config["log_scale"]) * x @ y.T + (config["bias"] or 0)
""",
}
_NAFLEX = """
Pictures are squashed first: of such squares the image processor takes exactly the patches that this network was used
with, and that is what `--verify` compares. Other pictures it would read in their own proportions, of which nothing was
measured. `AutoProcessor` and `AutoTokenizer` do not fit: of a `siglip2` they assume patches of 16 pixels, 64 tokens and
Gemma's vocabulary.
"""


def model_card(source: "Source", form: "Format", verification: "Verification | None", names_its_place: bool) -> str:
    """A page of Markdown with the head that hubs of models read.

    Args:
        source: what was exported.
        form: how.
        verification: what was found when it was read back, if it was.
        names_its_place: whether the folder has its own path written into it.
    """
    origin = source.checkpoint.origin
    sections = [
        _head(form),
        f"# {_title(source.checkpoint)}\n\n{_what(source)}",
        f"## Use\n\nWith `DIR` the path of this folder:\n\n```python\n{_usage(source, form)}```\n"
        + (_place() if names_its_place else "")
        + (_NAFLEX if form.name == "transformers" and is_naflex(source.network) else ""),
    ]
    if origin is not None:
        sections += [
            f"## Data\n\n{_listed(origin.config.get('data'))}",
            f"## Recipe\n\n{_recipe(origin)}",
            f"## Metrics\n\n{_metrics(origin, source.checkpoint.files[0])}",
        ]
    return "\n".join([*sections, f"## Export\n\n{_export(source, form, verification)}"])


def _title(checkpoint: "Checkpoint") -> str:
    """Name of the run, of the file or folder, or of the model; no path of the machine."""
    path = checkpoint.path if checkpoint.origin is None else checkpoint.origin.directory
    return checkpoint.source if path is None else path.resolve().name


def _head(form: "Format") -> str:
    libraries = {"onnx": "onnx", "safetensors": "siglightning"}
    facts = {"library_name": libraries.get(form.name, form.library), "pipeline_tag": _PIPELINE}
    return f"---\n{yaml.safe_dump(facts | {'tags': ['siglip', 'siglightning']}, sort_keys=False)}---\n"


def _what(source: "Source") -> str:
    network = source.network
    scale = network.log_scale.exp().item()
    bias = "none" if network.bias is None else f"{network.bias.item():.4f}"
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    rows = [
        ("image tower", _tower(source.arguments["image_tower"])),
        ("text tower", _tower(source.arguments["text_tower"])),
        ("parameters", f"{millions:.1f} million"),
        ("embedding", f"{network.embed_dim} dimensions, unit length"),
        ("pictures", f"{network.image_size} x {network.image_size}, {_resized(network.resizing)}, mean "
         f"{list(network.image_tower.mean)}, std {list(network.image_tower.std)}"),
        ("captions", f"{network.context_length} tokens, padded, of a vocabulary of {network.tokenizer.vocab_size:,}"),
        ("scale and bias", f"t = exp(t') = {scale:.4f}, b = {bias}; a pair's logit is t x.y + b"),
    ]  # fmt: skip
    lines = [f"| {name} | {value} |" for name, value in rows]
    return (
        "An image tower and a text tower with one embedding space.\n\n| | |\n| --- | --- |\n" + "\n".join(lines) + "\n"
    )


def _resized(resizing: "Resizing") -> str:
    way = "squashed" if resizing.crop is None else f"the middle cut out ({resizing.crop:.3g} of the shorter side)"
    return f"{way} ({resizing.interpolation})"


def _tower(tower: "TowerConfig") -> str:
    """Name and arguments, without folders of the machine that it was trained on."""
    scheme, colon, rest = tower.name.rpartition(":")
    short = Path(rest).name if Path(rest).is_absolute() else rest
    given = ", ".join(f"{key}: {value}" for key, value in tower.kwargs.items())
    return f"`{scheme}{colon}{short}`" + (f" ({given})" if given else "")


def _usage(source: "Source", form: "Format") -> str:
    tower, is_patches = source.network.image_tower, form.name == "transformers" and is_naflex(source.network)
    text = _USAGE["Siglip2Model" if is_patches else form.name]
    is_pieces = sentencepiece_model(source.network.tokenizer) is not None
    text = text.replace("TOKENIZER", "SiglipTokenizer" if is_pieces else "PreTrainedTokenizerFast")
    mean, std = (str([round(value, 6) for value in values]) for values in (tower.mean, tower.std))
    way, crop = tower.resizing.interpolation.upper(), tower.resizing.crop
    fit = f'ImageOps.fit(Image.open("picture.png").convert("RGB"), (SIZE, SIZE), Image.Resampling.{way}'
    squash = f'Image.open("picture.png").convert("RGB").resize((SIZE, SIZE), Image.Resampling.{way})'
    text = text.replace("RESIZED", squash if crop is None else f"{fit}, bleed={(1 - crop) / 2:.4g})")
    return text.replace("SIZE", str(tower.image_size)).replace("MEAN", mean).replace("STD", std)


def _place() -> str:
    return (
        "\nopen_clip finds towers that it has no name for by their path: `open_clip_config.json` says where this "
        "folder lies (`timm_model_name`, `hf_model_name`). Change it there when the folder is moved, or to "
        "`hf-hub:OWNER/NAME` when the tower's folder is uploaded.\n"
    )


def _listed(part: Any) -> str:
    """A class and its arguments as YAML, folders of the machine left out."""
    if not part:
        return "Unknown: the run's configuration names none.\n"
    return f"```yaml\n{yaml.safe_dump(_without_folders(part), sort_keys=False, allow_unicode=True)}```\n"


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    is_path = isinstance(value, str) and (value.startswith(("/", "~")) or ":/" in value)
    return f".../{Path(value).name}" if is_path else value


def _recipe(origin: "Origin") -> str:
    task = (origin.config.get("model") or {}).get("init_args") or {}
    names = ("loss", "negatives", "optimizer", "schedule", "scalar_lr_mult", "weight_decay_convention")
    trainer = origin.config.get("trainer") or {}
    kept = {name: task[name] for name in names if task.get(name) is not None}
    kept |= {name: trainer[name] for name in ("max_steps", "max_epochs", "precision", "gradient_clip_val", "devices")
             if trainer.get(name) is not None}  # fmt: skip
    if origin.config.get("init_from"):
        kept["init_from"] = origin.config["init_from"]
    return f"{origin.global_step:,} optimizer steps.\n\n{_listed(kept)}"


def _metrics(origin: "Origin", file: Path) -> str:
    lines = list(_validation(origin)) + list(_tests(origin, file))
    if not lines:
        return "The run measured nothing with these weights.\n"
    return "| set | metric | value | 95 % interval |\n| --- | --- | ---: | --- |\n" + "\n".join(lines) + "\n"


def _validation(origin: "Origin") -> Iterator[str]:
    """What validation logged at the checkpoint's step, which loggers count from 0."""
    for name, series in sorted(read_metrics(origin.directory / "metrics.csv").items()):
        at = series.values[series.steps == origin.global_step - 1]
        if name.startswith("val/") and len(at):
            yield f"| validation | {name.removeprefix('val/')} | {at[-1]:.4f} | |"


def _tests(origin: "Origin", file: Path) -> Iterator[str]:
    """What the test after training measured, if it was of these weights: the best of the run, else the last."""
    folder = origin.directory / "checkpoints"
    best = sorted(folder.glob("best-*.ckpt"))
    tested = best or sorted(folder.glob("step-*.ckpt"))
    if not tested or file.name != tested[-1].name:
        return
    for set_name, metrics in _json(origin.directory / "summary.json").items():
        for name, found in metrics.items():
            if isinstance(found, dict) and found.get("value") is not None:
                ends = [found.get("low"), found.get("high")]
                interval = "" if None in ends else f"{ends[0]:.4f} to {ends[1]:.4f}"
                yield f"| {set_name} | {name} | {found['value']:.4f} | {interval} |"


def _export(source: "Source", form: "Format", verification: "Verification | None") -> str:
    facts = [
        f"`siglightning export --format {form.name}`, siglightning {__version__}.",
        *_sources(source.checkpoint),
    ]
    if verification is None:
        facts.append(f"Not read back by {form.library} when it was written (`--verify` does that).")
    else:
        facts += [f"Read back by {form.library}; {line}." for line in verification.lines()]
    return "\n".join(f"- {fact}" for fact in facts) + "\n"


def _sources(checkpoint: "Checkpoint") -> Iterator[str]:
    """What is known of the weights, and no more."""
    if checkpoint.origin is None:
        name = checkpoint.source if checkpoint.path is None else checkpoint.path.name
        yield f"From `{name}`, a checkpoint of kind {checkpoint.kind}."
    for file in checkpoint.files:
        yield f"Checkpoint `{file.name}`, SHA-256 `{file_sha256(file)}`."
    if checkpoint.origin is not None:
        versions = _json(checkpoint.origin.directory / "env.json").get("versions") or {}
        trained = [f"{name} {versions[name]}" for name in ("torch", "lightning", "siglightning") if name in versions]
        if trained:
            yield f"Trained with {', '.join(trained)}."


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
