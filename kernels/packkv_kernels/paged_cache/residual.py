"""ResidualBuffer: the exact newest tokens of one layer of a sequence, written in place."""

from typing import NamedTuple

import torch

from packkv_kernels.config import BLOCK_TOKENS

__all__ = ["ExactTokens", "ResidualBuffer"]


class ExactTokens(NamedTuple):
    """K and V as attention reads them.

    Attributes:
        keys, values: [heads, room, head_dim], contiguous; only the first `tokens` count.
        tokens: how many there are.
    """

    keys: torch.Tensor
    values: torch.Tensor
    tokens: int


class ResidualBuffer:
    """Room for whole blocks of tokens, so that a token more is written and nothing else moves.

    While a sequence decodes and its tokens are packed block by block, the buffer stays where it is.
    What is appended is copied, so no gradient flows through it.

    Attributes:
        tokens: how many are held.
    """

    def __init__(self) -> None:
        self._keys: torch.Tensor | None = None  # [heads, room, head_dim]
        self._values: torch.Tensor | None = None
        self.tokens = 0

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> ExactTokens:
        """Copies new K and V [heads, new, head_dim] behind what is held; returns the whole.

        The tensors that are returned are the buffer itself: later calls write in them.
        """
        before, new = self.tokens, keys.shape[1]
        self.tokens += new
        self._keys = _with_room(self._keys, self.tokens, keys, before)
        self._values = _with_room(self._values, self.tokens, values, before)
        self._keys.narrow(1, before, new).copy_(keys.detach())
        self._values.narrow(1, before, new).copy_(values.detach())
        return ExactTokens(self._keys, self._values, self.tokens)

    def first(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [heads, tokens, head_dim] of the oldest; at most as many as are held, not none.

        They are a part of the buffer, good until the next call that changes it.
        """
        assert self._keys is not None
        assert self._values is not None
        return self._keys[:, :tokens], self._values[:, :tokens]

    def drop_first(self, tokens: int) -> None:
        """Forgets the oldest; of a buffer with more than a block to spare the rest is given up."""
        if not tokens:
            return
        kept = slice(tokens, self.tokens)
        self.tokens -= tokens
        self._keys, self._values = _moved_up(self._keys, kept), _moved_up(self._values, kept)

    def keep_first(self, tokens: int) -> None:
        """Forgets all but the oldest; none are kept in no memory."""
        self.tokens = min(tokens, self.tokens)
        if not tokens:
            self._keys = self._values = None

    def fork(self) -> "ResidualBuffer":
        """The same tokens in a buffer of their own."""
        twin = ResidualBuffer()
        if self.tokens:
            twin.append(*self.first(self.tokens))
        return twin


def _with_room(
    held: torch.Tensor | None, tokens: int, like: torch.Tensor, before: int
) -> torch.Tensor:
    """A buffer for so many tokens that begins with the first `before` of `held`, if not `held`."""
    if held is not None and tokens <= held.shape[1]:
        return held
    grown = _new_buffer(like, tokens)
    if held is not None:
        grown[:, :before] = held[:, :before]
    return grown


def _moved_up(held: torch.Tensor | None, kept: slice) -> torch.Tensor | None:
    """A buffer that begins with the tokens `kept`: `held`, or one that is much smaller."""
    if held is None:
        return None
    tokens = kept.stop - kept.start
    # source and target may overlap
    source, target = held[:, kept].clone(), held
    if held.shape[1] - _room(tokens) > BLOCK_TOKENS:
        target = _new_buffer(held, tokens)
    target[:, :tokens] = source
    return target


def _new_buffer(like: torch.Tensor, tokens: int) -> torch.Tensor:
    """Room for so many tokens of the kind of `like` [heads, ·, head_dim]."""
    # of inference mode, it could not be written outside of it
    with torch.inference_mode(False):
        return like.new_empty(like.shape[0], _room(tokens), like.shape[2])


def _room(tokens: int) -> int:
    """Whole blocks, at least one."""
    return max(1, -(-tokens // BLOCK_TOKENS)) * BLOCK_TOKENS
