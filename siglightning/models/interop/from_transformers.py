"""SiglipModel, Siglip2Model (NaFlex) and CLIPModel of transformers, by name or folder."""

from pathlib import Path

from siglightning.models.hf_checkpoints import TWO_TOWER_TYPES, load_model, read_settings
from siglightning.models.interop.checkpoint import Checkpoint, with_scalars
from siglightning.models.towers import TowerConfig

PREFIXES = {
    "vision_model.": "image_tower.trunk.",
    "visual_projection.": "image_tower.projection.",
    "text_model.": "text_tower.trunk.",
    "text_projection.": "text_tower.projection.",
}


def from_transformers(name: str) -> Checkpoint:
    """Read a two-tower model of transformers.

    Args:
        name: on the hub, or a folder.

    Raises:
        ValueError: it cannot be had, is no two-tower model, or its weights are damaged or not those of its config.
    """
    settings = read_settings(TowerConfig(f"hf:{name}"))
    if settings.model_type not in TWO_TOWER_TYPES:
        raise ValueError(
            f"{name!r} is a {settings.model_type!r} of transformers; expected a model of two towers, that is one of "
            f"{', '.join(TWO_TOWER_TYPES)}. A single encoder serves as a tower: `image_tower: hf:{name}`."
        )
    weights = load_model(name, settings, "a two-tower model").state_dict()
    tower = TowerConfig(f"hf:{name}")
    # All that it was trained to read: SigLIP pools the last of these positions.
    length = int(settings.text_config.max_position_embeddings)
    arguments = {"image_tower": tower, "text_tower": tower, "context_length": length}
    path = Path(name).expanduser()
    files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
    return Checkpoint(
        name,
        "transformers",
        arguments,
        dict(with_scalars(weights, PREFIXES)),
        path if path.is_dir() else None,
        tuple(files),
    )
