"""Functions that torch.compile leaves alone."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function out of graphs that are being compiled around it.

    A loss goes over as many tiles as the batch has; a compiler would unroll them, for minutes, and break its graph at
    every message of the ring. As a decorator ``torch.compiler.disable`` costs each process 1.5 s of imports, whether
    it ever compiles or not; here it is asked for once something is compiled.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            function_alone: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
            return function_alone(*args, **kwargs)
        return function(*args, **kwargs)

    return call
