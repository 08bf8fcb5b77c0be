"""PageTables: which tokens the sequences of a batch have, on the device that attends over them."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from numpy.typing import NDArray

from packkv_kernels.errors import InvalidInput

if TYPE_CHECKING:
    from packkv_kernels.attention.triton import BatchDecode

__all__ = ["PageTables", "send"]


def send(numbers: NDArray[np.int32], target: torch.Tensor) -> None:
    """Copies a few numbers to a tensor on any device; the host does not wait for its stream."""
    source = torch.from_numpy(np.array(numbers, np.int32))
    if target.device.type == "cuda":
        # from other memory torch waits until the copy is done
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)


class PageTables(Sequence[NDArray[np.int32]]):
    """Page slots of each sequence in order, in tensors that never move.

    What changes is copied and nothing else, so that a page more costs a few bytes, and a captured
    CUDA graph reads the tables as they are now. Also a sequence of arrays: the tables in host
    memory, row by row.

    Attributes:
        table: int32 [batch, max_pages]; what lies past a row's pages is never looked at.
        pages: int32 [batch], pages of each row.
        exact: int32 [batch], exact tokens of each row, which come after its pages.
        decodes: by window, the buffers of whoever attends with these tables, so that the steps of
            a batch take them once.
    """

    # of inference mode, tables could not be written outside of it
    @torch.inference_mode(False)
    def __init__(self, batch: int, max_pages: int, device: torch.device) -> None:
        """
        Args:
            batch: rows.
            max_pages: of a row.
            device: of the tensors.

        Raises:
            InvalidInput: no rows, or no room for a page.
        """
        if batch < 1 or max_pages < 1:
            raise InvalidInput(f"{batch} rows of {max_pages} pages: both must be 1 or more")
        self.table = torch.zeros(batch, max_pages, dtype=torch.int32, device=device)
        self.pages = torch.zeros(batch, dtype=torch.int32, device=device)
        self.exact = torch.zeros(batch, dtype=torch.int32, device=device)
        self.decodes: dict[int | None, BatchDecode] = {}
        self._rows = [np.empty(0, np.int32)] * batch
        self._exact = [0] * batch

    def update(self, rows: Sequence[NDArray[np.int32]]) -> None:
        """Makes the rows these; what is launched already still sees the old ones.

        The arrays are kept, to be compared with the next: whoever changes a row gives another.

        Raises:
            InvalidInput: another number of rows, or one with more than `max_pages` pages. Nothing
                has changed then.
        """
        batch, room = self.table.shape
        longest = max((len(row) for row in rows), default=0)
        if len(rows) != batch or longest > room:
            raise InvalidInput(
                f"{len(rows)} rows of up to {longest} pages do not fit tables of {batch} rows of "
                f"{room} pages"
            )
        before = [len(row) for row in self._rows]
        for index, row in enumerate(rows):
            old = self._rows[index]
            if old is row:
                continue
            shared = min(len(old), len(row))
            changed = np.flatnonzero(old[:shared] != row[:shared])
            first = int(changed[0]) if len(changed) else shared
            if first < len(row):
                send(row[first:], self.table[index, first : len(row)])
            self._rows[index] = row
        counts = [len(row) for row in rows]
        if counts != before:
            send(np.array(counts, np.int32), self.pages)

    def count_exact(self, tokens: Sequence[int]) -> None:
        """Makes the numbers of exact tokens these; what is launched already sees the old ones.

        Raises:
            InvalidInput: another number of rows.
        """
        counts = list(tokens)
        if len(counts) != len(self._exact):
            raise InvalidInput(f"{len(counts)} numbers for tables of {len(self._exact)} rows")
        if counts != self._exact:
            send(np.array(counts, np.int32), self.exact)
            self._exact = counts

    @overload
    def __getitem__(self, place: int) -> NDArray[np.int32]: ...

    @overload
    def __getitem__(self, place: slice) -> list[NDArray[np.int32]]: ...

    def __getitem__(self, place: int | slice) -> NDArray[np.int32] | list[NDArray[np.int32]]:
        return self._rows[place]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return iter(self._rows)
