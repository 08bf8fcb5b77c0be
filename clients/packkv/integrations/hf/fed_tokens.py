"""FedTokens: the token ids that a sequence was given, read from the device when they are needed."""

from collections.abc import Iterable

import torch

from packkv_kernels.config import BLOCK_TOKENS

__all__ = ["FedTokens"]


class FedTokens:
    """The ids behind a sequence's K and V, in order.

    A forward pass adds its own where they are, so that the host waits for no step: it reads them
    when somebody asks, and at the latest after as many steps as a block has tokens.
    """

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._ids = list(ids)
        self._unread: list[torch.Tensor] = []

    def add(self, ids: torch.Tensor) -> None:
        """The ids [new] of a pass, in memory that nobody writes again."""
        self._unread.append(ids)
        if len(self._unread) == BLOCK_TOKENS:
            self.ids()

    def ids(self) -> list[int]:
        """All of them; the list is this object's own."""
        if self._unread:
            self._ids += torch.cat(self._unread).tolist()
            self._unread = []
        return self._ids

    def keep_first(self, tokens: int) -> None:
        """Forgets all but the first."""
        del self.ids()[tokens:]

    def fork(self) -> "FedTokens":
        """The same ids, which grow apart from here on."""
        return FedTokens(self.ids())
