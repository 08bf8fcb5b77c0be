"""What a Huffman code is, in plain Python: the definition of right for the compiled half.

Bit strings are str of "0" and "1", first bit first.
"""

from collections.abc import Sequence
from itertools import pairwise

__all__ = ["code_lengths", "decode", "encode", "pack_bits"]


def code_lengths(counts: Sequence[int], limit: int) -> list[int]:
    """Lengths of a length-limited code of least total length, by collecting coins.

    A symbol is a coin of every denomination 2⁻¹ … 2^−limit; the cheapest set of coins worth n − 1
    has each symbol as often as its codeword has bits (Larmore and Hirschberg, 1990).
    """
    # weight, "is a package", then symbols: sorts leaves before packages, lower symbols first
    leaves = sorted((count, symbol) for symbol, count in enumerate(counts) if count)
    if len(leaves) < 2:
        return [int(count > 0) for count in counts]
    coins: list[tuple[int, int, tuple[int, ...]]] = []
    for _ in range(limit):
        pairs = list(pairwise(coins))[::2]
        packages = [(a[0] + b[0], 1, a[2] + b[2]) for a, b in pairs]
        single = [(count, 0, (symbol,)) for count, symbol in leaves]
        coins = sorted(single + packages, key=lambda coin: coin[:2])
    taken = [symbol for coin in coins[: 2 * len(leaves) - 2] for symbol in coin[2]]
    return [taken.count(symbol) for symbol in range(len(counts))]


def codewords(lengths: Sequence[int]) -> dict[int, str]:
    """Codeword by symbol: shorter ones first, equal lengths in symbol order."""
    words: dict[int, str] = {}
    code, length_before = 0, 0
    for length, symbol in sorted((length, s) for s, length in enumerate(lengths) if length):
        code <<= length - length_before
        words[symbol] = format(code, f"0{length}b")
        code, length_before = code + 1, length
    return words


def encode(symbols: Sequence[int], lengths: Sequence[int]) -> str:
    """The codewords of symbols, one after the other."""
    words = codewords(lengths)
    return "".join(words[symbol] for symbol in symbols)


def decode(bits: str, lengths: Sequence[int], count: int) -> list[int]:
    """The first `count` symbols of a bit string."""
    symbols = {word: symbol for symbol, word in codewords(lengths).items()}
    found: list[int] = []
    word, at = "", 0
    while len(found) < count:
        word, at = word + bits[at], at + 1
        if word in symbols:
            found.append(symbols[word])
            word = ""
    return found


def pack_bits(bits: str) -> list[int]:
    """A bit string as u32 words, first bit lowest; zeros fill the last word."""
    padded = bits + "0" * (-len(bits) % 32)
    return [int(padded[at : at + 32][::-1], 2) for at in range(0, len(padded), 32)]
