"""Labels as zeros and ones, and the rule that nothing is reported on what was fitted."""

from collections.abc import Sequence

import torch
from torch import Tensor

from siglightning.evaluation.classification import Predictions


def require_labelled(features: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse features ``[N, d]`` whose labels int64 ``[N]`` do not belong to them.

    Raises:
        ValueError: other shapes or types, no rows, fewer than two classes, or labels outside of them.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or labels.dtype != torch.int64 or not len(labels):
        raise ValueError(
            f"Expected features [N, d] and int64 labels [N], got {list(features.shape)} and {labels.dtype} "
            f"{list(labels.shape)}. Give one label a row."
        )
    if num_classes < 2 or not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"Expected labels in 0 ... {num_classes - 1} of at least 2 classes, got {int(labels.min())} ... "
            f"{int(labels.max())}."
        )


def require_finite(features: Tensor) -> None:
    """Refuse to learn from features ``[N, d]`` of which some are NaN or infinite: one row spoils every weight.

    Raises:
        ValueError: some are.
    """
    broken = ~features.isfinite().all(1)
    if broken.any():
        raise ValueError(
            f"Expected finite features to learn from, got NaN or infinity in {int(broken.sum())} of {len(features)} "
            f"rows, first in row {int(broken.nonzero()[0])}. Check the network's weights, or its precision."
        )


def multi_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Labels as zeros and ones, one column a class.

    Args:
        labels: class indices int64 ``[N]``, one class a picture; or zeros and ones ``[N, C]`` of any type.
        num_classes: C.

    Returns:
        float64 ``[N, C]``.

    Raises:
        ValueError: another shape, an index that is no class, or a value that is neither zero nor one.
    """
    if labels.ndim == 1 and not labels.is_floating_point():
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(
                f"Expected labels in 0 ... {num_classes - 1} for {num_classes} classes, got {int(labels.min())} ... "
                f"{int(labels.max())}. Check that the class names are those of these data."
            )
        return torch.nn.functional.one_hot(labels.long(), num_classes).double()
    if labels.shape[1:] != (num_classes,):
        raise ValueError(
            f"Expected class indices [N] or zeros and ones [N, {num_classes}], got {labels.dtype} "
            f"{list(labels.shape)}. Check that the class names are those of these data."
        )
    values = labels.double()
    if not bool(((values == 0) | (values == 1)).all()):
        raise ValueError(
            f"Multi-hot labels hold zeros and ones, got values from {values.min().item():g} to "
            f"{values.max().item():g}. Give scores as logits and labels as decisions."
        )
    return values


def require_disjoint(fit_ids: Sequence[str], report_ids: Sequence[str]) -> None:
    """Refuse to fit on pictures that are reported on.

    Args:
        fit_ids: keys of the pictures that a temperature or thresholds are fitted on.
        report_ids: keys of the pictures that are reported on.

    Raises:
        ValueError: the two share a picture.
    """
    shared = sorted({str(key) for key in fit_ids} & {str(key) for key in report_ids})
    if shared:
        raise ValueError(
            f"Expected to fit on other pictures than the {len(report_ids)} that are reported on, but {len(shared)} are "
            f"in both sets ({', '.join(map(repr, shared[:3]))}{' ...' if len(shared) > 3 else ''}): the report would "
            "flatter the fit. Give the data a test set of its own, or a fixed temperature and fixed thresholds."
        )


def require_other_pictures(held_out: Predictions, found: Predictions) -> None:
    """Refuse to report on pictures that were fitted on: those with the same key and the same logits.

    Sets in folders of their own may give different pictures one key, such as ``cat/1.jpg``. The same picture has the
    same logits, but for the rounding of another batch.

    Raises:
        ValueError: see :func:`require_disjoint`.
    """
    rows = {key: row for row, key in enumerate(held_out.ids)}
    shared = [
        key
        for key, logits in zip(found.ids, found.logits, strict=True)
        if key in rows and torch.allclose(logits, held_out.logits[rows[key]], rtol=1e-3, atol=1e-3)
    ]
    require_disjoint(shared, found.ids)
