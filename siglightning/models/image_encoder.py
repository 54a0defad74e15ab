"""An image tower as tasks use it: pictures of any kind to features, in slices, frozen or not."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from siglightning.models.compiled import Compile, compile_in_place, require_compiler
from siglightning.models.feature_keys import image_key
from siglightning.models.lora import Lora, add_lora
from siglightning.models.saliency import SaliencyMasking, with_saliency
from siglightning.models.slices import SliceSeeds, check_divides, encode_in_slices
from siglightning.models.towers import TowerConfig, build_image_tower, has_trainable_batchnorm


class ImageEncoder(nn.Module):
    """The image half of a two-tower model, for tasks that read no text.

    Args:
        image_tower: name or config, see :class:`~siglightning.models.towers.TowerConfig`.
        image_size: side of the square input in pixels; ``None`` leaves the tower's own.
        micro_batch_size: encode training batches in slices of so many samples under activation checkpointing.
        freeze_image: keep the tower in evaluation mode and without gradients.
        lora: adapters in the tower's blocks, which then train instead of its own weights.
        saliency: leave out the least salient patch tokens of a vision transformer.
        compile_towers: train with compiled towers (``true``), and let torch also time kernels for their matrix products
            (``max-autotune-no-cudagraphs``). See :meth:`compile_for_training`.

    Attributes:
        image_size: side of the square input, in pixels.
        resizing: how pictures become squares in evaluation.
        tokenizer: ``None``, since no text is read.

    Raises:
        ValueError: unknown names, weights that cannot be had, BatchNorm together with ``micro_batch_size``, or
            adapters in a frozen tower.
    """

    tokenizer: Any = None

    def __init__(
        self,
        image_tower: TowerConfig | str,
        image_size: int | None = None,
        micro_batch_size: int | None = None,
        freeze_image: bool = False,
        lora: Lora | None = None,
        saliency: SaliencyMasking | None = None,
        compile_towers: Compile = False,
    ) -> None:
        super().__init__()
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(
                f"micro_batch_size must be at least 1, or null for the whole batch; got {micro_batch_size}."
            )
        self.image_tower = build_image_tower(TowerConfig.of(image_tower), image_size)
        if lora is not None:
            if freeze_image:
                raise ValueError("Adapters (`lora`) are there to be trained: set `freeze_image: false`.")
            add_lora(self.image_tower, lora)
        if saliency is not None:
            self.image_tower = with_saliency(self.image_tower, saliency)
        self.image_size, self.resizing = self.image_tower.image_size, self.image_tower.resizing
        self.micro_batch_size, self.compile_towers = micro_batch_size, compile_towers
        self._frozen: list[nn.Module] = [self.image_tower] if freeze_image else []
        self._slice_seeds: SliceSeeds | None = None
        self.keep_frozen()

    @property
    def towers(self) -> list[nn.Module]:
        """The image tower, and the text tower where there is one."""
        return [self.image_tower]

    def check_compile(self, device: torch.device) -> None:
        """Refuse a machine that cannot compile what is to be compiled; see :func:`require_compiler`.

        Raises:
            ValueError: no compiler.
        """
        if self.compile_towers is not False:
            require_compiler(device)

    def compile_for_training(self) -> None:
        """Compile the towers in place as ``compile_towers`` says, when each is called first; tasks do so in `fit`.

        Checkpoints of compiled and other networks are interchangeable. Numbers agree to rounding, of which compiled
        kernels do less: they keep fp32 between operations that under bf16 autocast round one after the other. Dropout
        draws other masks, from the same seeds. Evaluation and export by themselves, and copies, are not compiled.
        """
        for tower in self.towers:
            compile_in_place(tower, self.compile_towers)

    def encode_features(self, image: Tensor) -> Tensor:
        """Features ``[B, width]`` as the tower itself pools them, in slices of ``micro_batch_size`` while training.

        Args:
            image: uint8 ``[B, 3, H, W]``, which the tower scales and normalises with its own mean and standard
                deviation, or floating point, taken as already normalised.
        """
        return self.encode_slices(self.image_features, image, self.image_tower, "image")

    def image_features(self, image: Tensor) -> Tensor:
        """Features ``[B, width]`` of the image tower, before projection; pictures as in :meth:`encode_features`."""
        return self.tower_features(self.image_tower, self.normalise(image))

    def feature_keys(self) -> dict[str, str]:
        """Identity of the features of each frozen tower, here only ``image``; towers in training have none."""
        return {"image": image_key(self.image_tower)} if self.is_frozen(self.image_tower) else {}

    def normalise(self, image: Tensor) -> Tensor:
        """Pictures as the image tower wants them: uint8 scaled to [0, 1] and standardised; others only cast."""
        dtype = next((p.dtype for p in self.image_tower.parameters() if p.is_floating_point()), torch.float32)
        if image.dtype != torch.uint8:
            return image.to(dtype)
        tower = self.image_tower
        return standardise(image, tower.mean, tower.std, torch.promote_types(dtype, torch.float32)).to(dtype)

    def num_slices(self, batch_size: int) -> int:
        """Slices that a training batch of one process is cut into.

        Raises:
            ValueError: ``micro_batch_size`` does not divide ``batch_size``.
        """
        if self.micro_batch_size is None:
            return 1
        check_divides(self.micro_batch_size, batch_size)
        return batch_size // self.micro_batch_size

    def seed_slices(self, seed: int, step: int, first_slice: int) -> None:
        """Seed dropout for the next training batch; without a call the global generators are used as they stand.

        Args:
            seed: of the run.
            step: the optimizer step.
            first_slice: number of this process's first slice within the global batch, i.e. its rank times
                :meth:`num_slices` of its batch.
        """
        self._slice_seeds = SliceSeeds(seed, step, first_slice)

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation mode; frozen towers stay in evaluation mode."""
        super().train(mode)
        self.keep_frozen()
        return self

    def check_slices(self) -> None:
        """Refuse slices where a tower trains BatchNorm.

        Raises:
            ValueError: its statistics would be those of a slice.
        """
        if self.micro_batch_size is not None and has_trainable_batchnorm(self):
            raise ValueError(
                "micro_batch_size cannot be used with a tower that trains BatchNorm: its statistics would be those of "
                "a slice, not of the batch. Choose a tower without BatchNorm, freeze it, or set micro_batch_size: null."
            )

    def encode_slices(self, encode: Callable[[Tensor], Tensor], batch: Tensor, tower: nn.Module, name: str) -> Tensor:
        """Apply ``encode`` to slices of a batch, seeded while training; a frozen tower is not run twice."""
        seeds = self._slice_seeds if self.training else None
        return encode_in_slices(encode, batch, self.micro_batch_size, seeds, name, not self.is_frozen(tower))

    def tower_features(self, tower: nn.Module, inputs: Tensor) -> Tensor:
        """A tower's features, without gradients where it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen(tower)):
            features: Tensor = tower(inputs)
        return features

    def is_frozen(self, tower: nn.Module) -> bool:
        """Whether a tower was frozen as a whole."""
        return any(tower is frozen for frozen in self._frozen)

    def keep_frozen(self) -> None:
        """Put frozen towers into evaluation mode."""
        for tower in self._frozen:
            tower.eval().requires_grad_(False)


def standardise(
    image: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
) -> Tensor:
    """uint8 pictures ``[B, 3, H, W]`` as floating point: scaled to [0, 1], less ``mean``, over ``std``, by channel."""
    centre, spread = (torch.tensor(value, dtype=dtype).view(-1, 1, 1) for value in (mean, std))
    factor, shift = (_sent(constant, image.device) for constant in (1 / (255 * spread), centre / spread))
    return image.to(dtype).mul_(factor).sub_(shift)


def _sent(constant: Tensor, device: torch.device) -> Tensor:
    """On the device; from pinned memory, since for a copy from any other the host waits."""
    return (constant.pin_memory() if device.type == "cuda" else constant).to(device, non_blocking=True)
