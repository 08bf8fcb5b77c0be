"""One spelling of numba's decorator, typed, for every compiled function of the codec."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["compiled"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiles `function` on first call, without the GIL and without reassociating floats.

    The machine code is cached beside the source. The cache watches that one file: after editing a
    compiled function that other files call, delete their `__pycache__`.
    """
    dispatcher = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    # called like the function it compiles, which numba's own types cannot say
    return cast(Function, dispatcher)
