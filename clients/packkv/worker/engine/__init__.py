"""The engine of a worker: who is served when.

One thread owns the model. Requests wait in one queue, first come, first served. In each turn the
thread computes the prompt of at most one of them, then takes one step with all that are running, in
one pass of the model (continuous batching): everybody's next token comes at the same pace, and
nobody waits longer than one prompt for it.

A prompt is computed in one piece, not in slices between the others' steps: a slice would attend
over the packed blocks of the slices before it, and the blocks it publishes would no longer be those
of an exact prefill. Fetching a prefix happens on this thread, too: a load ends by its deadline, and
as soon as it takes longer than the prefill that it saves, so nobody waits longer for it than for
that.
"""

from packkv.worker.engine.engine import Engine
from packkv.worker.engine.generation import Generation
from packkv.worker.engine.task import Ended, Event, Failed, Piece, Task

__all__ = ["Ended", "Engine", "Event", "Failed", "Generation", "Piece", "Task"]
