"""Image and text towers from several libraries behind one signature.

A tower maps a batch to one feature vector a row; what it wants as input and gives as output stands in its attributes.
Towers are named ``scheme:name``; each scheme lives in a module of its own and is imported when first used.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from siglightning.batch import Resizing
from siglightning.models.vit_parts import VitParts

if TYPE_CHECKING:
    from siglightning.models.saliency import SaliencyMasking

SCHEMES = ("open_clip", "hf", "timm", "package", "local")

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in [0, 1]; torchvision's and timm's constants
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF_MEAN = (0.5, 0.5, 0.5)  # SigLIP's: pixels in [-1, 1]
HALF_STD = (0.5, 0.5, 0.5)


@dataclass
class TowerConfig:
    """A tower by name.

    Args:
        name: ``open_clip:ViT-B-16-SigLIP`` (also a path to an open_clip JSON config, ``hf-hub:...`` or
            ``local-dir:...`` behind the scheme), ``hf:google/siglip-base-patch16-224`` (also a folder),
            ``timm:vit_tiny_patch16_224`` (images only), ``package:efficientnet_lite0`` and
            ``package:all-minilm-l6-v2`` (pre-trained, from a package registry), ``local:conv`` or
            ``local:text_transformer``.
        pretrained: load weights (``True``), a tag of open_clip or the path of a weights file, or start at random.
        kwargs: handed to the constructor of the tower.
    """

    name: str
    pretrained: bool | str = False
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def scheme(self) -> str:
        """What stands before the colon.

        Raises:
            ValueError: no such scheme.
        """
        scheme, colon, rest = self.name.partition(":")
        if scheme not in SCHEMES or not colon or not rest:
            raise unknown_name(
                "tower scheme", scheme, SCHEMES, "Write a tower as SCHEME:NAME, e.g. timm:vit_tiny_patch16_224."
            )
        return scheme

    @property
    def model(self) -> str:
        """What stands behind the colon."""
        return self.name.partition(":")[2]

    @classmethod
    def of(cls, tower: "TowerConfig | str") -> "TowerConfig":
        """A config from a config or a plain name."""
        return cls(tower) if isinstance(tower, str) else replace(tower, kwargs=dict(tower.kwargs))


class ImageTower(nn.Module):
    """A module from normalised pictures to features.

    Attributes:
        name: as in :class:`TowerConfig`, where it was built by name.
        config: what it was built from, where it was built by name.
        width: features a row.
        image_size: side of the square input, in pixels.
        mean: per channel, of pixels in ``[0, 1]``.
        std: per channel, of pixels in ``[0, 1]``.
        resizing: how pictures became squares when its checkpoint was evaluated.
        joint_space: names the checkpoint family whose image and text features already live in one space, or
            ``None``. Two towers of one family need no projection.
        saliency: which patch tokens are kept, see :func:`~siglightning.models.saliency.with_saliency`; ``None``: all.
    """

    name: str = ""
    config: TowerConfig | None = None
    width: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resizing: Resizing = Resizing()
    joint_space: str | None = None
    saliency: "SaliencyMasking | None" = None

    def forward(self, image: Tensor) -> Tensor:
        """Features ``[B, width]`` of normalised floating-point pictures ``[B, 3, H, W]``."""
        if self.saliency is None or not self.saliency.applies(self.training):
            return self.plain_features(image)
        return self.saliency.features(self, image)

    def plain_features(self, image: Tensor) -> Tensor:
        """The features when no token is left out."""
        raise NotImplementedError

    def vit_parts(self) -> VitParts:
        """The tower as a vision transformer taken apart.

        Raises:
            ValueError: it is none.
        """
        raise no_patch_tokens(type(self).__name__)


class TextTower(nn.Module):
    """A module from token ids to features.

    Attributes:
        config: what it was built from, where it was built by name.
        width: features a row.
        context_length: tokens a caption.
        vocab_size: ids lie in ``[0, vocab_size)``.
        pad_id: the id that fills up captions.
        default_tokenizer: source for :class:`~siglightning.models.tokenizers.Tokenizer` where the user names none.
        joint_space: see :class:`ImageTower`.
    """

    config: TowerConfig | None = None
    width: int
    context_length: int
    vocab_size: int
    pad_id: int
    default_tokenizer: str = "clip"
    joint_space: str | None = None

    def forward(self, text: Tensor) -> Tensor:
        """Features ``[B, width]`` of int64 ids ``[B, context_length]``."""
        raise NotImplementedError


def build_image_tower(config: TowerConfig, image_size: int | None = None) -> ImageTower:
    """Build an image tower by name.

    Args:
        config: which tower.
        image_size: side of the square input in pixels; ``None`` leaves the tower's own.

    Raises:
        ValueError: unknown scheme or name (with the nearest right ones), weights that cannot be had, or a size that
            the tower cannot take. Names are checked before any weight is made.
    """
    tower = _image_tower(config, image_size)
    tower.name, tower.config = config.name, config
    return tower


def _image_tower(config: TowerConfig, image_size: int | None) -> ImageTower:
    match config.scheme:
        case "open_clip":
            from siglightning.models.open_clip_towers import open_clip_image_tower

            return open_clip_image_tower(config, image_size)
        case "hf":
            from siglightning.models.hf_towers import hf_image_tower

            return hf_image_tower(config, image_size)
        case "timm":
            from siglightning.models.timm_towers import timm_image_tower

            return timm_image_tower(config, image_size)
        case "package":
            from siglightning.models.package_towers import package_image_tower

            return package_image_tower(config, image_size)
        case _:
            from siglightning.models.local_towers import local_image_tower

            return local_image_tower(config, image_size)


def build_text_tower(config: TowerConfig, context_length: int | None, vocab_size: int, pad_id: int) -> TextTower:
    """Build a text tower by name.

    Args:
        config: which tower.
        context_length: tokens a caption; ``None`` leaves the tower's own.
        vocab_size: of the tokenizer, for towers that bring no vocabulary of their own (``local:``); others ignore it.
        pad_id: of the tokenizer, likewise.

    Raises:
        ValueError: as :func:`build_image_tower`.
    """
    tower = _text_tower(config, context_length, vocab_size, pad_id)
    tower.config = config
    return tower


def _text_tower(config: TowerConfig, context_length: int | None, vocab_size: int, pad_id: int) -> TextTower:
    match config.scheme:
        case "open_clip":
            from siglightning.models.open_clip_towers import open_clip_text_tower

            return open_clip_text_tower(config, context_length)
        case "hf":
            from siglightning.models.hf_towers import hf_text_tower

            return hf_text_tower(config, context_length)
        case "package":
            from siglightning.models.package_towers import package_text_tower

            return package_text_tower(config, context_length)
        case "timm":
            raise ValueError(
                f"timm has no text towers, got {config.name!r}; use open_clip:, hf: or local:text_transformer."
            )
        case _:
            from siglightning.models.local_towers import local_text_tower

            return local_text_tower(config, context_length, vocab_size, pad_id)


def unknown_name(what: str, got: str, known: Iterable[str], remedy: str = "") -> ValueError:
    """The error for a name that is not among ``known``: what came, the nearest right names, the remedy."""
    known = list(known)
    near = get_close_matches(got, known, n=3, cutoff=0.5) or (known if len(known) <= 8 else [])
    hint = f" Nearest: {', '.join(near)}." if near else ""
    return ValueError(f"Unknown {what} {got!r}.{hint} {remedy}".rstrip())


def no_patch_tokens(what: str) -> ValueError:
    """The error for a model whose patch tokens cannot be left out."""
    return ValueError(
        f"`saliency` leaves out patch tokens of a plain vision transformer (SigLIP, CLIP or ViT of transformers, "
        f"open_clip or timm), got {what}. Choose such an image tower, or leave `saliency` out."
    )


def has_trainable_batchnorm(module: nn.Module) -> bool:
    """Whether a BatchNorm inside ``module`` would learn or update statistics of single batches.

    Such a layer couples the samples of a slice: encoding a batch in slices, or on several processes, is then another
    computation than encoding it whole. A frozen tower kept in evaluation mode is no problem.
    """
    return any(
        isinstance(layer, _BatchNorm) and (layer.training or any(p.requires_grad for p in layer.parameters()))
        for layer in module.modules()
    )


def square_side(size: int | tuple[int, ...] | list[int], name: str) -> int:
    """The side of a square picture size.

    Raises:
        ValueError: the size is not square.
    """
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"Tower {name!r} wants pictures of size {tuple(sides)}; only square pictures are supported.")
    return int(sides.pop())
