"""Where training waits for the device: an instrument that sees it on a CPU, and asks torch where there is CUDA."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from lightning.pytorch import Callback
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

T = torch.Tensor
# What Python asks of a tensor and cannot have before the device has come so far.
_READS = {
    T.item, T.tolist, T.cpu, T.numpy, T.__bool__, T.__float__, T.__int__, T.__index__, T.is_nonzero, torch.is_nonzero,
    torch.equal, T.equal, torch.allclose, T.allclose,
}  # fmt: skip
# Shapes that depend on numbers.
_SHAPES = {"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave"}
_LOADING = f"torch{'/'}utils{'/'}data{'/'}"  # what loads batches in this process computes on the host


class Wait(NamedTuple):
    """One wait: in which optimizer step, counted from 1, what for, and where."""

    step: int
    what: str
    where: str


class _Asked(TorchFunctionMode):
    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        from_host = function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None
        from_host |= function is T.new_tensor
        if function in _READS or from_host:
            self.note(getattr(function, "__name__", str(function)))
        words = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, str)]
        if function is T.to and "cpu" in words and not kwargs.get("non_blocking"):
            self.note("to cpu")
        return function(*args, **kwargs)


class _Computed(TorchDispatchMode):
    def __init__(self, note):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name == "_local_scalar_dense" or (
            name in _SHAPES and function is not torch.ops.aten.repeat_interleave.self_int
        ):
            self.note(name)
        elif name in ("index", "index_put", "index_put_") and _by_mask(args):
            self.note(f"{name} by a mask")
        return function(*args, **(kwargs or {}))


class HostWaits(Callback):
    """Notes every wait between the first step of a training and its end; ``HostWaits.seen`` are those of the last one.

    On a CPU it takes every tensor for one of the device, so that what reads a tensor of the host on purpose has to be
    in ``HOST``: functions by name, each with its reason. On CUDA torch itself is asked to fail instead.
    """

    seen: ClassVar[list[Wait]] = []
    HOST = frozenset(
        {
            "take_up",  # tasks/finite.py: a copy on the host, of a step that has been done
            "check_labels",  # losses/classification.py: looks at labels that are on the host, and at no others
        }
    )

    def __init__(self):
        self.step, self.stack = 0, None

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        self.step = trainer.global_step + 1
        if self.stack is None:
            type(self).seen = []
            self.stack = ExitStack()
            self.stack.enter_context(_Computed(self.note))
            self.stack.enter_context(_Asked(self.note))

    def on_train_end(self, trainer, task):
        self.close()

    def on_exception(self, trainer, task, exception):
        self.close()

    def close(self):
        if self.stack is not None:
            self.stack.close()
            self.stack = None

    def note(self, what):
        frame, where = sys._getframe(2), None
        while frame is not None:
            path, function = frame.f_code.co_filename, frame.f_code.co_name
            if _LOADING in path or function in self.HOST:
                return
            if where is None and ("siglightning/" in path or "lightning/" in path or "torch/optim" in path):
                where = f"{Path(path).name}:{function}"
            frame = frame.f_back
        self.seen.append(Wait(self.step, what, where or "elsewhere"))


class FailsOnCuda(Callback):
    """On CUDA, lets torch fail where anything waits in a step that is not logged, or in the transfer of its batch."""

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        step = trainer.global_step + 1
        is_plain = step % trainer.log_every_n_steps and step != trainer.max_steps  # the last one saves
        self.set("error" if is_plain else "default")

    def on_train_end(self, trainer, task):
        self.set("default")

    def on_exception(self, trainer, task, exception):
        self.set("default")

    def set(self, mode):
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode(mode)


def _by_mask(args):
    fills = len(args) > 2 and args[2].numel() == 1  # torch makes a masked_fill of it
    return not fills and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
