"""Logits → the next token id: greedy, or by chance with temperature, nucleus and seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Below this temperature only the most likely token has a chance, and float32 has no room for more.
_GREEDY = 1e-5


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen.

    Args:
        temperature: 0 takes the most likely token; 1 the model's own distribution.
        top_p: of the most likely tokens, those that together have this probability.
        seed: equal seeds make equal choices from equal logits; None is a new one every time.
        top_logprobs: alternatives reported beside each token; None reports no log-probability.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token; with log-probabilities of the model's own distribution, if asked for."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses the tokens of one generation."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, logits: torch.Tensor) -> Choice:
        """The next token.

        Args:
            logits: float32 [vocabulary], on the CPU.

        Raises:
            ArithmeticError: the model computed something that is no number.
        """
        if bool(torch.isnan(logits).any()):
            raise ArithmeticError("the model computed NaN instead of logits")
        token_id = self._draw(logits)
        count = self._sampling.top_logprobs
        if count is None:
            return Choice(token_id)
        logprobs = torch.log_softmax(logits, 0)
        values, ids = logprobs.topk(min(count, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Choice(token_id, float(logprobs[token_id]), top)

    def _draw(self, logits: torch.Tensor) -> int:
        if self._sampling.temperature < _GREEDY:
            return int(logits.argmax())
        probabilities = torch.softmax(logits / self._sampling.temperature, 0)
        if self._sampling.top_p >= 1:
            return int(torch.multinomial(probabilities, 1, generator=self._generator))
        ordered, ids = probabilities.sort(descending=True)
        # the first token is always in: nothing comes before it
        before = ordered.cumsum(0) - ordered
        ordered[before >= max(self._sampling.top_p, 1e-9)] = 0
        return int(ids[torch.multinomial(ordered, 1, generator=self._generator)])
