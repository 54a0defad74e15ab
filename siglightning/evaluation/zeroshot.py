"""Zero-shot classification: the nearest class, each described by prompts."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from siglightning.evaluation.bootstrap import MetricValue, counts_interval, mean_with_interval
from siglightning.evaluation.classification import Predictions
from siglightning.evaluation.prompts import DEFAULT_TEMPLATES, fill_templates
from siglightning.evaluation.tiles import holds_integers

_TIE_IN_EPS = 4.0  # scores this close are ties: see `siglightning.evaluation.retrieval`


@torch.no_grad()
def class_embeddings(
    class_names: Sequence[str],
    encode_text: Callable[[list[str]], Tensor],
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    batch_size: int = 256,
    allow_repeated: bool = False,
) -> Tensor:
    """One unit vector for each class: the mean of its prompts' unit embeddings, normalised again.

    Args:
        class_names: C names.
        encode_text: n strings to embeddings ``[n, d]``, of unit length or not.
        templates: see `siglightning.evaluation.fill_templates`.
        batch_size: prompts encoded at a time.
        allow_repeated: accept a name of several classes, as ImageNet's have them (``missile`` and ``sunglasses``, twice
            each); their embeddings are equal to the bit.

    Returns:
        ``[C, d]``, fp32 (fp64 when the embeddings are).

    Raises:
        ValueError: no classes, a class named twice, or a template without ``{}``.

    Source: Radford et al. 2021, arXiv:2103.00020, section 3.1.4 (ensemble over the embedding space).
    """
    _check_names(class_names, allow_repeated)
    different = list(dict.fromkeys(class_names))
    prompts = [prompt for name in different for prompt in fill_templates(name, templates)]
    blocks = [encode_text(prompts[start : start + batch_size]) for start in range(0, len(prompts), batch_size)]
    embeds = torch.cat(blocks)
    embeds = normalize(embeds if embeds.dtype == torch.float64 else embeds.float(), dim=1)
    embeds = normalize(embeds.reshape(len(different), len(templates), -1).mean(1), dim=1)
    place = {name: row for row, name in enumerate(different)}
    return embeds[[place[name] for name in class_names]]


def zeroshot_ranks(scores: Tensor, labels: Tensor, tie: float | Tensor = 0.0, twins: Sequence[int] = ()) -> Tensor:
    """Rank of the best right class of each picture, with ties counted against it.

    The rank is 1 plus the number of wrong classes that score at least as high. With several labels a picture is right
    at 1 when its best class is any of them, the rule of ImageNet-ReaL (Beyer et al. 2020, arXiv:2006.07159, section
    3.1). NaN counts as highest on a wrong class and lowest on a right one.

    Args:
        scores: ``[N, C]``.
        labels: int64 ``[N]``, or multi-hot ``[N, C]`` of any dtype.
        tie: scores that differ by no more are equal.
        twins: for each class the first one of the same name, see :func:`first_of_name`. Equal names tie always, and
            there the earlier class is the answer, as it is elsewhere (``argmax``); by default no names are equal.

    Returns:
        int64 ``[N]``, 1 is best; C + 1 where a picture has no label.

    Raises:
        ValueError: a label without a class, or shapes that do not belong together.
    """
    is_right = _right_classes(labels, *scores.shape)
    lowest = scores.masked_fill(~is_right | scores.isnan(), -math.inf).amax(1, keepdim=True) - tie
    ahead = ((scores >= lowest) | scores.isnan()) & ~is_right
    for later, first in enumerate(twins):
        earlier = [number for number in range(first, later) if twins[number] == first]
        if earlier:
            ahead[:, later] &= ~is_right[:, earlier].any(1)
    return (1 + ahead.sum(1)).masked_fill(~is_right.any(1), scores.shape[1] + 1)


def first_of_name(class_names: Sequence[str]) -> list[int]:
    """For each class the number of the first one with its name."""
    first: dict[str, int] = {}
    return [first.setdefault(name, number) for number, name in enumerate(class_names)]


def zeroshot_metrics(
    image_embeds: Tensor,
    class_embeds: Tensor,
    labels: Tensor,
    *,
    chunk_size: int = 1024,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MetricValue]:
    """Accuracies of embeddings, with chance levels and 95 % bootstrap intervals; see :func:`metrics_of_ranks`.

    Args:
        image_embeds: ``[N, d]``, unit length; fp64 is kept, narrower types are computed in fp32.
        class_embeds: ``[C, d]``, as from `class_embeddings`.
        labels: int64 ``[N]``, in ``0 ... C - 1``, or multi-hot ``[N, C]``.
        chunk_size: images scored at a time; memory is ``chunk_size * C`` scores.
        num_resamples: see `siglightning.evaluation.bootstrap_interval`.
        seed: see `siglightning.evaluation.bootstrap_interval`.

    Raises:
        ValueError: a label without a class, or shapes that do not belong together.
    """
    _check_embeddings(image_embeds, class_embeds, labels)
    dtype = torch.float64 if torch.float64 in (image_embeds.dtype, class_embeds.dtype) else torch.float32
    classes = class_embeds.to(dtype)
    longest = classes.norm(dim=1).nan_to_num(0.0, 0.0).max()
    ranks = []
    for rows, of_rows in zip(
        torch.split(image_embeds.to(dtype), chunk_size), torch.split(labels, chunk_size), strict=True
    ):
        lengths = rows.norm(dim=1, keepdim=True).nan_to_num(0.0, 0.0)
        tie = _TIE_IN_EPS * torch.finfo(dtype).eps * longest * lengths
        ranks.append(zeroshot_ranks(rows @ classes.T, of_rows, tie))
    return metrics_of_ranks(torch.cat(ranks), labels, len(classes), num_resamples=num_resamples, seed=seed)


def metrics_of_ranks(
    ranks: Tensor, labels: Tensor, num_classes: int, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, MetricValue]:
    """Top-1 and top-5 accuracy, and the mean over classes, with chance levels and 95 % bootstrap intervals.

    Pictures without any label are left out. Chance is what random scores give: for a picture with m of C classes
    ``1 - C(C - m, k) / C(C, k)``.

    Args:
        ranks: int64 ``[N]``, of :func:`zeroshot_ranks`.
        labels: int64 ``[N]``, or multi-hot ``[N, C]``.
        num_classes: C.
        num_resamples: see `siglightning.evaluation.bootstrap_interval`.
        seed: see `siglightning.evaluation.bootstrap_interval`.

    Returns:
        ``zeroshot_acc``; with more than five classes ``zeroshot_acc@5``; with one label a picture
        ``zeroshot_class_acc``, the mean over classes of the share of each one's pictures that are right, which is how
        sets with unequal classes, such as Oxford Pets, are reported.

    Raises:
        ValueError: nothing has a label.
    """
    counts = torch.ones_like(ranks) if labels.ndim == 1 else (labels > 0).sum(1)
    known = counts > 0
    if not known.any():
        raise ValueError(f"Zero-shot accuracy needs labels, got none in {len(ranks)} pictures. Check the test set.")
    ranks, counts = ranks[known].cpu(), counts[known].cpu()
    cutoffs = {"zeroshot_acc": 1} | ({"zeroshot_acc@5": 5} if num_classes > 5 else {})
    hits = torch.stack([ranks <= k for k in cutoffs.values()], dim=1)
    chances = [_chance(counts, num_classes, k) for k in cutoffs.values()]
    values = mean_with_interval(hits, chances, num_resamples=num_resamples, seed=seed)
    found = dict(zip(cutoffs, values, strict=True))
    if labels.ndim == 1:
        found["zeroshot_class_acc"] = _class_mean(ranks <= 1, labels.cpu().long(), num_classes, num_resamples, seed)
    return found


def metrics_of_predictions(
    predictions: Predictions, scale: float, *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, MetricValue]:
    """The same from logits, of which equal class names are known; see :func:`metrics_of_ranks`.

    Args:
        predictions: with labels, one or several a picture; logits are ``scale`` times cosines.
        scale: which tells how far rounding moves a logit.
        num_resamples: see `siglightning.evaluation.bootstrap_interval`.
        seed: see `siglightning.evaluation.bootstrap_interval`.

    Raises:
        ValueError: nothing has a label.
    """
    if predictions.labels is None:
        raise ValueError(f"Zero-shot accuracy needs labels, got none for {len(predictions.ids)} pictures.")
    tie = _TIE_IN_EPS * torch.finfo(torch.float32).eps * scale
    ranks = zeroshot_ranks(predictions.logits, predictions.labels, tie, first_of_name(predictions.class_names))
    names = predictions.class_names
    return metrics_of_ranks(ranks, predictions.labels, len(names), num_resamples=num_resamples, seed=seed)


def _right_classes(labels: Tensor, count: int, classes: int) -> Tensor:
    """Boolean ``[N, C]``."""
    if labels.ndim == 2:
        if labels.shape != (count, classes):
            raise ValueError(
                f"Expected labels [{count}] or [{count}, {classes}], got {list(labels.shape)}. Give one row a picture."
            )
        return labels > 0
    if labels.shape != (count,) or not holds_integers(labels):
        raise ValueError(
            f"Expected integer labels [{count}] or multi-hot [{count}, {classes}], got {labels.dtype} "
            f"{list(labels.shape)}. Give one class index a picture."
        )
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"Expected labels in 0 ... {classes - 1} for {classes} classes, got "
            f"{int(labels.min())} ... {int(labels.max())}. Check that the class names are those of this test set."
        )
    return labels[:, None] == torch.arange(classes, device=labels.device)


def _chance(counts: Tensor, num_classes: int, k: int) -> float:
    """Mean over pictures, with so many right classes each, of the chance that one is among k at random."""
    miss = torch.ones(len(counts), dtype=torch.float64)
    for drawn in range(k):
        miss *= (num_classes - drawn - counts).clamp(min=0).double() / (num_classes - drawn)
    return (1 - miss).mean().item()


def _class_mean(is_right: Tensor, labels: Tensor, num_classes: int, num_resamples: int, seed: int) -> MetricValue:
    """Resamples are drawn as counts of (class, right or wrong), so that their number of pictures does not matter."""
    counts = torch.bincount(2 * labels + is_right, minlength=2 * num_classes)

    def of_counts(counts: Tensor) -> Tensor:
        """Mean accuracy ``[R]`` over the classes that have pictures, of counts ``[R, 2 C]``."""
        wrong, right = counts.reshape(len(counts), num_classes, 2).double().unbind(2)
        return (right / (wrong + right).clamp(min=1)).sum(1) / (wrong + right > 0).sum(1)

    low, high = counts_interval(counts, of_counts, num_resamples=num_resamples, seed=seed)
    return MetricValue(of_counts(counts[None]).item(), 1 / num_classes, low, high, len(labels))


def _check_embeddings(image_embeds: Tensor, class_embeds: Tensor, labels: Tensor) -> None:
    if image_embeds.ndim != 2 or class_embeds.ndim != 2 or image_embeds.shape[1] != class_embeds.shape[1]:
        raise ValueError(
            f"Expected images [N, d] and classes [C, d], got {list(image_embeds.shape)} and "
            f"{list(class_embeds.shape)}. Embed both with the same model."
        )
    if not len(image_embeds) or len(labels) != len(image_embeds):
        raise ValueError(
            f"Expected one label for each of at least one image, got {len(image_embeds)} images and {len(labels)} "
            "labels. Check that the test set has rows."
        )


def _check_names(class_names: Sequence[str], allow_repeated: bool) -> None:
    if len(class_names) == 0:
        raise ValueError("Zero-shot classification needs class names, got none. Give the data module class_names.")
    name, count = Counter(class_names).most_common(1)[0]
    if count > 1 and not allow_repeated:
        raise ValueError(
            f"Class names must differ, got {name!r} more than once: such classes cannot be told apart. "
            "Rename or merge them."
        )
