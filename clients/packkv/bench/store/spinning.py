"""A Python thread that never rests, as an inference worker's main thread can be."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def spinning_thread() -> Iterator[None]:
    """While this is open, another thread of this process wants the interpreter lock all the time:
    the worst that a worker can do, as its tensor operations let go of it."""
    is_over = False

    def spin() -> None:
        count = 0
        while not is_over:
            count += 1

    thread = threading.Thread(target=spin, name="spin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over = True
        thread.join()
