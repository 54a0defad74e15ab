"""Zero-shot classification of evaluation sets, each by the prompts of its own classes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.batch import Batch, ClassSet
from siglightning.evaluation import (
    DEFAULT_TEMPLATES,
    MetricValue,
    Predictions,
    Templates,
    class_embeddings,
    metrics_of_predictions,
    templates_of,
)
from siglightning.evaluation.collected import CollectedSet
from siglightning.runtime.processes import notice

SetTemplates = Templates | Mapping[str, Templates]
"""Templates of all sets, or of each set by its name."""


class ZeroShot:
    """Prompts of the classes of each evaluation set, and what they say of its pictures.

    Every process encodes a share of the classes once a pass, and scores the pictures that it has embedded; the first
    process gathers the scores. Pictures count once, by their ids.

    Args:
        classes: of each loader, ``None`` where a set has none.
        encode_text: strings to embeddings ``[n, d]``.
        scale: exp(t').
        group: all processes, ``None`` for one.
    """

    def __init__(
        self,
        classes: Sequence[ClassSet | None],
        encode_text: Callable[[list[str]], Tensor],
        scale: float,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.classes, self.scale, self.group = list(classes), scale, group
        self._embeds = [None if of_set is None else _shared(of_set, encode_text, group) for of_set in classes]
        self._sets: dict[int, CollectedSet] = {}

    def add(self, batch: Batch, image_embeds: Tensor, dataloader_idx: int) -> None:
        """Score a batch with embeddings ``[B, d]``; nothing where it has no labels or the set no classes."""
        classes = self._embeds[dataloader_idx]
        if classes is None or "label" not in batch:
            return
        with torch.autocast(image_embeds.device.type, enabled=False):
            wide = image_embeds if image_embeds.dtype == torch.float64 else image_embeds.float()
            logits = self.scale * (wide @ classes.to(wide).T)
        self._sets.setdefault(dataloader_idx, CollectedSet()).add(batch, logits)

    def finish(self, names: Sequence[str]) -> dict[str, Predictions]:
        """What was predicted of whole sets, by name, on the first process; nothing on the others.

        Args:
            names: of the sets, in the order of their loaders.
        """
        found = {}
        for index, (name, classes) in enumerate(zip(names, self.classes, strict=True)):
            if classes is None:
                continue
            whole = self._sets.pop(index, CollectedSet()).gathered(self.group)
            if whole is None or not whole.labels:
                continue
            if whole.repeated:
                notice(f"{whole.repeated} pictures of {name!r} could not be read, or came twice, and do not count.")
            found[name] = whole.predictions(list(classes.names))
        return found

    def metrics(self, predictions: Predictions, num_resamples: int) -> dict[str, MetricValue]:
        """See :func:`~siglightning.evaluation.zeroshot.metrics_of_ranks`."""
        return metrics_of_predictions(predictions, self.scale, num_resamples=num_resamples)


def classes_of_sets(names: Sequence[str], data: Any, templates: SetTemplates | None) -> list[ClassSet | None]:
    """The classes of evaluation sets, with other templates where some are given.

    Args:
        names: of the sets.
        data: the data module; one that is not ours may have ``class_names`` and ``prompt_templates`` alone.
        templates: of all sets or by name; ``None`` leaves all sets their own.

    Raises:
        ValueError: templates that cannot be used.
    """
    found = [_classes_of(data, name) for name in names]
    if templates is None:
        return found
    if isinstance(templates, Mapping):
        given = {name: templates_of(of_set) for name, of_set in templates.items()}
    else:
        given = dict.fromkeys(names, templates_of(templates))
    return [
        ClassSet(classes.names, given[name]) if classes is not None and name in given else classes
        for name, classes in zip(names, found, strict=True)
    ]


def check_templates(templates: SetTemplates | None, data: Any) -> None:
    """Refuse templates that cannot be used, before anything is embedded.

    Args:
        templates: of all sets or by name.
        data: the data module, after its setup.

    Raises:
        ValueError: templates of a set that is not there, of an unknown name, or without ``{}``.
    """
    if templates is None:
        return
    if not isinstance(templates, Mapping):
        templates_of(templates)
        return
    names = list(dict.fromkeys([*getattr(data, "val_set_names", ["val"]), *getattr(data, "test_set_names", [])]))
    unknown = [name for name in templates if name not in names]
    if unknown:
        raise ValueError(
            f"Expected `model.init_args.templates` of the sets {', '.join(names)}, got those of {', '.join(unknown)}. "
            "Correct the name, or give one list for all sets."
        )
    for of_set in templates.values():
        templates_of(of_set)


def tell_repeated(sets: Mapping[str, ClassSet | None]) -> None:
    """Say once which class names stand for several classes."""
    for name, classes in sets.items():
        repeated = [word for word, count in Counter(classes.names if classes else ()).items() if count > 1]
        if repeated:
            notice(
                f"{len(repeated)} names of {name!r} stand for several classes ({', '.join(repeated[:3])}): as "
                "elsewhere, the first of them is predicted."
            )


def _classes_of(data: Any, name: str) -> ClassSet | None:
    if hasattr(data, "classes_of"):
        classes: ClassSet | None = data.classes_of(name)
        return classes
    names = getattr(data, "class_names", None)
    return ClassSet(names, getattr(data, "prompt_templates", None) or DEFAULT_TEMPLATES) if names else None


def _shared(classes: ClassSet, encode_text: Callable[[list[str]], Tensor], group: dist.ProcessGroup | None) -> Tensor:
    """Embeddings of all classes ``[C, d]``, of which each process encodes a stretch."""
    names = list(dict.fromkeys(classes.names))
    if group is None:
        own = class_embeddings(names, encode_text, classes.templates).cpu()
        parts = [own]
    else:
        bounds = [len(names) * rank // group.size() for rank in range(group.size() + 1)]
        stretch = names[bounds[group.rank()] : bounds[group.rank() + 1]]
        own = class_embeddings(stretch, encode_text, classes.templates).cpu() if stretch else torch.empty(0)
        parts = [torch.empty(0)] * group.size()
        dist.all_gather_object(parts, own, group=group)
    embeds = torch.cat([part for part in parts if len(part)])
    place = {name: row for row, name in enumerate(names)}
    return embeds[[place[name] for name in classes.names]]
