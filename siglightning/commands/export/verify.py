"""The same pictures and captions through our network and through another library: how far apart the numbers are."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from siglightning.data import PictogramArchive
from siglightning.data.transforms import resize
from siglightning.evaluation.retrieval import recall_at_k, retrieval_ranks
from siglightning.models import TwoTower
from siglightning.models.export import Reloaded

TOLERANCE = 1e-4  # of embeddings and logits; fp32 sums in another order differ by some 1e-6
NUM_PICTURES = 24
# What captions from the web look like, and what tokenizers stumble over.
AWKWARD = (
    "", " ", "A  Cat\n on\ta mat", "don't it's I'VE", "wow!!! really?! !", "!#%", "日本語の猫", "кошка, 고양이",
    "cafe\u0301 naïve", "🐱👩‍👩‍👧", "&amp; &lt;b&gt; &amp;amp;", "“curly” ‘quotes’", "ﬁne", "ＦＵＬＬ", "3.14 1/2 ½",
    "under_score-hyphen—dash", "word " * 100, "a" * 200, "zero\u200bwidth no\u00a0break",
    "http://x.y/z?q=1&b=2 #tag @user",
)  # fmt: skip


@dataclass(frozen=True)
class Verification:
    """Largest absolute differences between our network and what was written of it.

    Attributes:
        image: of unit embeddings of pictures.
        text: of unit embeddings of captions.
        logits: of ``exp(t') x.y + b``.
        tokens: whether all captions have the same ids, padding aside.
        awkward: odd strings with other ids.
        grey_levels: of pixels that both had to resize, on the scale of 0 to 255.
        recall: recall@1 from caption to picture among the pictures used, ours.
        their_recall: the same by the other library's embeddings.
    """

    image: float
    text: float
    logits: float
    tokens: bool
    awkward: tuple[str, ...]
    grey_levels: float
    recall: float
    their_recall: float

    @property
    def worst(self) -> float:
        """The largest of the three differences; NaN where anything is NaN."""
        values = (self.image, self.text, self.logits)
        return math.nan if any(map(math.isnan, values)) else max(values)

    @property
    def holds(self) -> bool:
        """Whether the files compute what the network computes."""
        return self.tokens and self.worst <= TOLERANCE

    def lines(self) -> list[str]:
        """What to tell the user."""
        same = "equal" if self.tokens else "DIFFERENT"
        odd = f"; {len(self.awkward)} of {len(AWKWARD)} awkward strings differ: " if self.awkward else ""
        return [
            f"largest difference of embeddings: {self.image:.2g} (pictures), {self.text:.2g} (captions); "
            f"of logits: {self.logits:.2g}",
            f"tokens of captions: {same}{odd}{', '.join(map(repr, self.awkward))[:200]}",
            f"resized pictures: at most {self.grey_levels:.2g} of 255 grey levels apart",
            f"recall@1 among {NUM_PICTURES} pictures: {self.recall:.3f} ours, {self.their_recall:.3f} theirs",
        ]


@torch.no_grad()
def verify(network: TwoTower, theirs: Reloaded) -> Verification:
    """Compare on embedded drawings, each with its name.

    Pictures reach the other library in the network's own size, so that what is compared is everything but resizing;
    resizing is compared by itself, on larger pictures.
    """
    pictures, captions = _material()
    ready = resize(pictures, network.image_size)
    ids, their_ids = network.tokenizer(captions), theirs.tokens(captions)
    image, text = network(ready, ids)
    bias = 0.0 if network.bias is None else network.bias
    logits = network.log_scale.exp() * image @ text.T + bias
    out = theirs.outputs(theirs.pixels(list(ready)), their_ids)
    rows = torch.arange(len(captions))
    return Verification(
        image=_apart(image, out.image),
        text=_apart(text, out.text),
        logits=_apart(logits, out.logits),
        tokens=same_ids(network, theirs, ids, their_ids),
        awkward=tuple(text for text in AWKWARD if not _same_text(network, theirs, text)),
        grey_levels=_grey_levels(network, theirs, pictures),
        recall=recall_at_k(retrieval_ranks(text, image, rows, rows), 1),
        their_recall=recall_at_k(retrieval_ranks(out.text, out.image, rows, rows), 1),
    )


def _material() -> tuple[list[Tensor], list[str]]:
    """Drawings, uint8 ``[3, 64, 64]``, of different concepts, and their English names."""
    archive = PictogramArchive.open()
    concepts, names = archive.pictures["concept"].to_pylist(), archive.concepts["name_en"].to_pylist()
    step = len(archive) // NUM_PICTURES
    chosen = {concepts[row]: row for row in range(0, len(archive), max(1, step // 2))}  # one picture a concept
    rows = list(chosen.values())[:NUM_PICTURES]
    return [archive.read_image(row) for row in rows], [str(names[concepts[row]]) for row in rows]


def _apart(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return math.nan
    return float((ours.double() - theirs.double()).abs().max())


def same_ids(network: TwoTower, theirs: Reloaded, ids: Tensor, their_ids: Tensor) -> bool:
    """Whether two tokenizers give captions the same ids, int64 ``[N, L]``, whatever each of them pads with."""
    if ids.shape != their_ids.shape:
        return False
    ours = ids.masked_fill(ids == network.tokenizer.pad_id, theirs.pad_id)
    return torch.equal(ours, their_ids.masked_fill(their_ids == network.tokenizer.pad_id, theirs.pad_id))


def _same_text(network: TwoTower, theirs: Reloaded, text: str) -> bool:
    return same_ids(network, theirs, network.tokenizer([text]), theirs.tokens([text]))


def _grey_levels(network: TwoTower, theirs: Reloaded, pictures: list[Tensor]) -> float:
    """Of sheets of six drawings each, 128 x 192 pixels."""
    sheets = [
        torch.cat([torch.cat(pictures[i : i + 3], dim=2), torch.cat(pictures[i + 3 : i + 6], dim=2)], dim=1)
        for i in range(0, NUM_PICTURES - 5, 6)
    ]
    ours = network.normalise(resize(sheets, network.image_size, network.resizing))
    std = torch.tensor(network.image_tower.std).view(-1, 1, 1)
    return float(((ours - theirs.pixels(sheets)) * std * 255).abs().max())
