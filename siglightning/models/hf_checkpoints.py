"""Configs, weights and preparation of pictures, as a name or folder of transformers has them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel
from transformers.image_processing_base import ImageProcessingMixin

from siglightning.batch import Resizing
from siglightning.models.foreign import first_words, no_foreign_code
from siglightning.models.towers import HALF_MEAN, HALF_STD, IMAGENET_MEAN, IMAGENET_STD, TowerConfig

TWO_TOWER_TYPES = ("siglip", "siglip2", "clip")  # `siglip2` is NaFlex; SigLIP 2 of a fixed size is a `siglip`
# Constants of CLIP's preprocessing, as in transformers' OPENAI_CLIP_MEAN and OPENAI_CLIP_STD.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_MAX_LISTED = 3  # weights named in a message
# What each type's own image processor does where a checkpoint brings no file of it: mean, deviation, resizing.
_PREPARATION = {
    "siglip": (HALF_MEAN, HALF_STD, Resizing()),
    "siglip2": (HALF_MEAN, HALF_STD, Resizing(interpolation="bilinear")),
    "clip": (CLIP_MEAN, CLIP_STD, Resizing(crop=1.0, rounding="down")),
}
_INTERPOLATION = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def read_settings(config: TowerConfig) -> Any:
    """The transformers config of a name or folder, with ``kwargs`` applied.

    A bare type (``hf:siglip``) is described by its ``kwargs`` alone.

    Raises:
        ValueError: no such folder, hub unreachable, or a model type whose towers cannot be told apart.
    """
    is_type = config.model in TWO_TOWER_TYPES and not Path(config.model).is_dir()
    if config.model.startswith((".", "/", "~")) and not Path(config.model).expanduser().is_dir():
        raise ValueError(f"Tower {config.name!r}: no folder {config.model!r}; give one that holds config.json.")
    try:
        with no_foreign_code():
            if is_type:
                return AutoConfig.for_model(config.model, **config.kwargs)
            settings = AutoConfig.from_pretrained(config.model, trust_remote_code=False, **config.kwargs)
    except Exception as error:  # each model type has validators and arithmetic of its own
        raise ValueError(
            f"Tower {config.name!r} could not be loaded from a folder or the Hugging Face hub ({first_words(error)}). "
            "Check the name and the connection, or give the path of a downloaded copy."
        ) from error
    if hasattr(settings, "vision_config") and settings.model_type not in TWO_TOWER_TYPES:
        raise ValueError(
            f"Tower {config.name!r} is of type {settings.model_type!r}; "
            f"of the two-tower models only {', '.join(TWO_TOWER_TYPES)} are supported."
        )
    return settings


def create_model(config: TowerConfig, settings: Any) -> Any:
    """The model of a tower, with weights where it asks for them; see :func:`load_model`."""
    if not config.pretrained:
        return random_model(config, settings)
    source = config.model if config.pretrained is True else config.pretrained
    return load_model(source, settings, f"tower {config.name!r}")


def random_model(config: TowerConfig, settings: Any) -> Any:
    """The model of a tower that its config describes, with weights at random.

    Raises:
        ValueError: it describes none that can be built.
    """
    try:
        with no_foreign_code():
            return AutoModel.from_config(settings, trust_remote_code=False)
    except Exception as error:
        raise ValueError(
            f"Tower {config.name!r} could not be built ({first_words(error)}). Check its config.json and `kwargs`."
        ) from error


def load_model(source: str, settings: Any, what: str) -> Any:
    """A model of transformers with the weights of a name or folder.

    transformers itself begins weights at random that a file does not have, and only warns. Two-tower models must have
    them all here; of single encoders a pooling layer or a classifier may be missing or left over.

    Args:
        source: name or folder.
        settings: its config.
        what: is being loaded, for messages.

    Raises:
        ValueError: there are no weights, they are damaged, need code to be read, or do not fit the config.
    """
    try:
        with no_foreign_code():
            model, found = AutoModel.from_pretrained(
                source,
                config=settings,
                dtype=torch.float32,
                trust_remote_code=False,
                weights_only=True,
                ignore_mismatched_sizes=True,  # so that they are told with their names, below
                output_loading_info=True,
            )
    except Exception as error:  # each file format has its own kinds
        raise ValueError(
            f"No weights for {what} in {source!r} ({first_words(error)}). "
            "Give a folder with weights, or `pretrained: false` to start at random."
        ) from error
    _require_all(found, settings.model_type in TWO_TOWER_TYPES, source, what)
    return model


def _require_all(found: Mapping[str, Any], is_two_tower: bool, source: str, what: str) -> None:
    wrong = [f"{n} is {list(b)} in the model and {list(a)} in the checkpoint" for n, a, b in found["mismatched_keys"]]
    if is_two_tower:
        wrong += [f"{name} is missing from the checkpoint" for name in sorted(found["missing_keys"])]
        wrong += [f"{name} is unknown to the model" for name in sorted(found["unexpected_keys"])]
    if wrong:
        more = f"; and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise ValueError(
            f"The weights for {what} in {source!r} are those of another model than its config.json says: "
            f"{'; '.join(wrong[:_MAX_LISTED])}{more}. Take both from one place."
        )


def read_preparation(config: TowerConfig, kind: str) -> tuple[tuple[float, ...], tuple[float, ...], Resizing]:
    """Mean, standard deviation and resizing from the checkpoint's own files, else those of its model type."""
    default = _PREPARATION.get(kind, (IMAGENET_MEAN, IMAGENET_STD, Resizing()))
    file = _processor_file(config)
    if not file:
        return default
    mean, std = tuple(file.get("image_mean") or default[0]), tuple(file.get("image_std") or default[1])
    return mean, std, _resizing(file, default[2])


def read_patches(config: TowerConfig, settings: Any) -> int:
    """How many patches of a picture a NaFlex checkpoint takes; where no file says so, as many as it has positions."""
    return int(_processor_file(config).get("max_num_patches") or settings.vision_config.num_patches)


def _processor_file(config: TowerConfig) -> Mapping[str, Any]:
    """Content of the image processor's file; empty where a checkpoint brings none."""
    if config.model in TWO_TOWER_TYPES:
        return {}
    try:
        file: dict[str, Any] = ImageProcessingMixin.get_image_processor_dict(config.model)[0]
    except OSError:
        return {}
    return file


def _resizing(file: Mapping[str, Any], default: Resizing) -> Resizing:
    interpolation: Any = _INTERPOLATION.get(file.get("resample", 0), default.interpolation)
    sides, cut = file.get("size"), file.get("crop_size")
    if sides is None or file.get("do_resize") is False:
        return Resizing(default.crop, interpolation, default.rounding)
    shorter = sides.get("shortest_edge") if isinstance(sides, Mapping) else sides
    if not shorter or not file.get("do_center_crop", default.crop is not None):
        return Resizing(None, interpolation)
    kept = cut.get("height", shorter) if isinstance(cut, Mapping) else cut or shorter
    return Resizing(min(1.0, kept / shorter), interpolation, "down")
