"""Embeddings of batches, and of whole evaluation sets, batch by batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.batch import Batch
from siglightning.evaluation import ExampleImages
from siglightning.evaluation.collected import ids_of
from siglightning.models import TwoTower


def embed_images(network: TwoTower, batch: Batch) -> Tensor:
    """Unit embeddings ``[B, d]`` of a batch's pictures, or of their stored features."""
    if "image_embed" in batch:
        return network.project_image(batch["image_embed"])
    return network.encode_image(batch["image"])


def embed_texts(network: TwoTower, batch: Batch) -> Tensor:
    """Unit embeddings ``[T, d]`` of a batch's captions, or of their stored features."""
    if "text_embed" in batch:
        return network.project_text(batch["text_embed"])
    return network.encode_text(batch["text"])


def finite_pairs(network: TwoTower, batch: Batch) -> Tensor:
    """Whether picture and caption of each training pair have finite embeddings, bool ``[B]``."""
    embeds = embed_images(network, batch), embed_texts(network, batch)
    return embeds[0].isfinite().all(1) & embeds[1].isfinite().all(1)


@dataclass
class EmbeddedSet:
    """What one pass over an evaluation set leaves behind; N pictures, M captions.

    Attributes:
        images: ``[N, d]`` unit rows, in pieces.
        texts: ``[M, d]`` unit rows, in pieces.
        tokens: int64 ``[M, L]``, in pieces.
        image_ids: int64 ``[N]``; equal ids match.
        text_ids: int64 ``[M]``.
        owners: int64 ``[M]``, row of the picture of each caption.
        first_texts: int64 ``[N]``, row of the first caption of each picture.
        labels: class indices int64 ``[N]``, where the set has them.
        examples: a few pictures to show.
        keys: of the pictures in their data set, where the data tell them.
        has_ids: whether the ids came with the batches; otherwise they number the pictures.
        shares: pictures of each process, of a set that was gathered.
        kept: rows that are left of all that was embedded; ``None`` for all.
    """

    images: list[Tensor] = field(default_factory=list)
    texts: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    image_ids: list[Tensor] = field(default_factory=list)
    text_ids: list[Tensor] = field(default_factory=list)
    owners: list[Tensor] = field(default_factory=list)
    first_texts: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    examples: ExampleImages = field(default_factory=ExampleImages)
    keys: list[str] = field(default_factory=list)
    has_ids: bool = False
    shares: list[int] = field(default_factory=list)
    kept: list[int] | None = None

    def add(self, batch: Batch, image_embeds: Tensor, text_embeds: Tensor) -> None:
        """Take a batch and its embeddings ``[B, d]``, ``[T, d]``; without ids a picture matches its own captions."""
        num_images, num_texts = sum(map(len, self.images)), sum(map(len, self.texts))
        owner = batch.get("text_owner", torch.arange(len(text_embeds), device=text_embeds.device)).cpu()
        ids = batch.get("match_id", num_images + torch.arange(len(image_embeds))).cpu()
        first = torch.full((len(image_embeds),), len(owner)).scatter_reduce(
            0, owner, torch.arange(len(owner)), reduce="amin"
        )
        self.images.append(image_embeds.float().cpu())
        self.texts.append(text_embeds.float().cpu())
        self.tokens.append(batch["text"].cpu())
        self.has_ids = "match_id" in batch
        self.image_ids.append(ids)
        self.text_ids.append(ids[owner])
        self.owners.append(num_images + owner)
        self.first_texts.append(num_texts + first)
        if "id" in batch:
            self.keys += ids_of(batch, num_images, len(image_embeds))
        if "label" in batch and batch["label"].ndim == 1:
            self.labels.append(batch["label"].cpu())
        if "image" in batch:
            self.examples.offer(num_images, batch["image"])

    def gathered(self, group: dist.ProcessGroup | None) -> "EmbeddedSet | None":
        """The whole set, of which each process has embedded one stretch.

        Every process sends its stretch to the first one, once. What comes twice counts once: pictures that stand in
        for unreadable ones, or with which a sampler evens out shares.

        Args:
            group: the processes, in the order of their stretches; ``None`` for a single one.

        Returns:
            The stretches in a row on the group's first process, ``None`` on the others. Examples are those of the
            first stretch.
        """
        if group is None:
            return self.without_repeats()
        stretches: list[EmbeddedSet] | None = [self] * group.size() if group.rank() == 0 else None
        dist.gather_object(self, stretches, group=group, group_dst=0)
        return None if stretches is None else _joined(stretches).without_repeats()

    def without_repeats(self) -> "EmbeddedSet":
        """The set without pictures whose key and captions have both come before, and without their captions."""
        num_images = sum(map(len, self.images))
        if not self.keys or len(self.keys) != num_images:  # some have none
            return self
        owners, tokens = torch.cat(self.owners), torch.cat(self.tokens)
        order = owners.argsort(stable=True)
        said = torch.split(tokens[order], owners.bincount(minlength=num_images).tolist())
        first: dict[tuple[str, bytes], int] = {}
        rows = [
            row
            for row, (key, words) in enumerate(zip(self.keys, said, strict=True))
            if first.setdefault((key, words.numpy().tobytes()), row) == row
        ]
        return self if len(rows) == num_images else self._taken(torch.tensor(rows), owners)

    def _taken(self, rows: Tensor, owners: Tensor) -> "EmbeddedSet":
        """Some pictures, in their order, with their captions."""
        number = torch.full((sum(map(len, self.images)),), -1)
        number[rows] = torch.arange(len(rows))
        texts = (number[owners] >= 0).nonzero().flatten()
        place = torch.full((len(owners),), -1)
        place[texts] = torch.arange(len(texts))
        taken = {name: [torch.cat(getattr(self, name))[rows]] for name in ("images", "image_ids")}
        taken |= {name: [torch.cat(getattr(self, name))[texts]] for name in ("texts", "tokens", "text_ids")}
        return EmbeddedSet(
            **taken,
            owners=[number[owners[texts]]],
            first_texts=[place[torch.cat(self.first_texts)[rows]]],
            labels=[torch.cat(self.labels)[rows]] if self.labels else [],
            examples=self.examples.taken(rows.tolist()),
            keys=[self.keys[row] for row in rows.tolist()],
            has_ids=self.has_ids,
            shares=self.shares,
            kept=rows.tolist(),
        )

    def embedded_rows(self, rows: Sequence[int]) -> list[int]:
        """Where rows of the set were among all that were embedded, as the data module counts them."""
        return list(rows) if self.kept is None else [self.kept[row] for row in rows]

    def loss_groups(self, group_size: int) -> Sequence[tuple[Tensor, Tensor, Tensor]]:
        """Fixed groups of ``group_size`` pairs: (image embeddings, first captions' embeddings, match ids).

        The set is shuffled once, always alike, so that a group is not one class or one style. What does not fill a
        group is left out, since the loss depends on the group's size; a set smaller than a group is one group.
        """
        images, ids = torch.cat(self.images), torch.cat(self.image_ids)
        texts = torch.cat(self.texts)[torch.cat(self.first_texts)]
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        size = min(group_size, len(images))
        chunks = torch.split(order[: len(order) // size * size], size)
        return [(images[rows], texts[rows], ids[rows]) for rows in chunks]


def _joined(stretches: Sequence[EmbeddedSet]) -> EmbeddedSet:
    """One set after the other; what numbers rows of a stretch then numbers rows of the whole."""
    whole = EmbeddedSet(examples=stretches[0].examples, has_ids=any(stretch.has_ids for stretch in stretches))
    whole.shares = [sum(map(len, stretch.images)) for stretch in stretches]
    num_images = num_texts = 0
    for stretch in stretches:
        shifts = {"first_texts": num_texts, "owners": num_images}
        whole.keys += stretch.keys
        if not stretch.has_ids:
            shifts |= {"image_ids": num_images, "text_ids": num_images}
        for name in _PIECES:
            getattr(whole, name).extend(piece + shifts.get(name, 0) for piece in getattr(stretch, name))
        num_images, num_texts = sum(map(len, whole.images)), sum(map(len, whole.texts))
    return whole


_WHOLE = ("examples", "keys", "has_ids", "shares", "kept")
_PIECES = [part.name for part in fields(EmbeddedSet) if part.name not in _WHOLE]
