"""How fast data come, and how fast a step would take them."""

import itertools
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from siglightning.batch import Batch
from siglightning.commands.doctor.case import Case, rows_of
from siglightning.commands.doctor.findings import Finding
from siglightning.data import Sample
from siglightning.models import ImageEncoder
from siglightning.tasks import ContrastiveTask, FineTuneTask
from siglightning.tasks.embeddings import embed_images, embed_texts

LOADING_S = 4.0  # seconds of loading
SMALL = 32  # samples at a time
MAX_BATCHES = 60
STEPPING_S = 3.0  # seconds of steps


def check_loader(case: Case) -> Iterator[Finding]:
    """Images per second of the loader alone, and what a forward and a backward pass take."""
    first_s, rate, loaded = measure_loader(case)
    workers = case.data.num_workers
    values: dict[str, Any] = {"images_per_s": rate, "images": loaded, "first_batch_s": first_s}
    text = f"{rate:,.0f} images/s from the loader alone ({loaded:,}, first batch after {first_s:.1f} s)"
    needed = step_rate(case)
    if needed is None:
        yield Finding("ok", text, values=values)
        return
    values["step_images_per_s"] = needed
    text += f"; forward and backward pass take {needed:,.0f} images/s on {case.device.type}"
    if rate < needed:
        remedy = f"Raise `data.num_workers` (now {workers}), store smaller pictures, or augment less."
        yield Finding("warning", f"{text}: the run waits for its data", remedy, values=values)
    elif workers == 0:
        share = needed / (rate + needed)
        yield Finding("ok", f"{text}, after another: loading is {share:.0%} of a step's time", values=values)
    else:
        yield Finding("ok", f"{text}: the data do not hold it up", values=values)


def measure_loader(case: Case) -> tuple[float, float, int]:
    """Seconds until the first samples, images per second after them, and images counted; of one process.

    The loader of the run with small batches, since a batch of 32,768 pictures would take minutes. What workers had
    ready when the clock of the rate began is not counted.
    """
    case.first  # noqa: B018  # decoded pictures that a data set keeps are not the loader's work
    ahead = case.data.num_workers * (case.loader.prefetch_factor or 0)
    start = time.monotonic()
    batches = iter(_in_small_batches(case.loader, 1 + ahead + MAX_BATCHES))
    count, seconds = len(_samples(next(batches))), time.monotonic() - start
    first_s, rate = seconds, count / seconds
    for _ in itertools.islice(batches, ahead):
        pass
    begun, counted = time.monotonic(), 0
    for batch in batches:
        counted, seconds = counted + len(_samples(batch)), time.monotonic() - begun
        if seconds > LOADING_S:
            break
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()  # else they end when somebody collects the iterator
    return (first_s, counted / seconds, counted) if counted else (first_s, rate, count)


def _in_small_batches(loader: DataLoader[Sample], most: int) -> DataLoader[Sample]:
    """The first samples of an epoch, :data:`SMALL` at a time, loaded as ``loader`` does."""
    assert loader.batch_sampler is not None  # training always has one
    keys = itertools.chain.from_iterable(loader.batch_sampler)
    batches = list(itertools.islice(iter(lambda: list(itertools.islice(keys, SMALL)), []), most))
    return DataLoader(
        loader.dataset,
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        worker_init_fn=loader.worker_init_fn,
    )


def _samples(batch: Any) -> Any:
    return next(value for name, value in batch.items() if name in ("image", "image_embed", "label", "text"))


def step_rate(case: Case) -> float | None:
    """Images per second of a forward and a backward pass on as many of the first samples as time allows.

    Gradients are thrown away and nothing is updated; the ring's and the optimizer's time is not in it. Slices are
    reckoned to cost a third more, a second forward pass: measuring one may take minutes.
    """
    task, batch = case.task, case.first.batch
    step: Callable[[Batch], Any]
    if isinstance(task, ContrastiveTask):
        network: ImageEncoder = task.network
        step = partial(_contrastive_loss, task)
    elif isinstance(task, FineTuneTask) and "label" in batch:
        network, step = task.network, partial(_classifier_loss, task)
    else:
        return None
    most = len(_samples(batch))
    micro, network.micro_batch_size = network.micro_batch_size, None
    try:
        rate = _timed(case, step, [size for size in (2, 8, 32, 128) if size <= most] or [most])
    finally:
        network.micro_batch_size = micro
    if not rate:
        raise torch.OutOfMemoryError(f"{case.device} has not the memory for a step of two samples")
    return rate if micro is None else 0.75 * rate


def _contrastive_loss(task: ContrastiveTask, part: Batch) -> Any:
    return task.loss(embed_images(task.network, part), embed_texts(task.network, part), part.get("match_id"))


def _classifier_loss(task: FineTuneTask, part: Batch) -> Any:
    return task.loss(task.classify(task.features(part)), part["label"])


def _timed(case: Case, step: Callable[[Batch], Any], sizes: list[int]) -> float:
    rate = 0.0
    for size in sizes:
        try:
            for _ in range(2):  # the first one makes what later ones find
                seconds = _seconds(case, step, size)
        except torch.OutOfMemoryError:  # of pairs at once; the run takes them in slices
            break
        finally:
            case.task.zero_grad(set_to_none=True)
        rate = max(rate, size / seconds)
        if seconds * 2 * 4 > STEPPING_S:  # the next size takes four times as long, twice
            break
    return rate


def _seconds(case: Case, step: Callable[[Batch], Any], size: int) -> float:
    """Of a forward and a backward pass on the first samples; gradients stay."""
    _synchronise(case.device)
    begun = time.monotonic()
    with case.trainer.precision_plugin.forward_context():
        loss = step(rows_of(case.first.batch, 0, size))
    loss.backward()
    _synchronise(case.device)
    return time.monotonic() - begun


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
