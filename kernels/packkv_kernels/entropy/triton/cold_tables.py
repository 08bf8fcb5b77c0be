"""Decode tables of cold payloads, spread on the device: their lengths are all that is sent.

A canonical code orders its codewords by length, then symbol, and a codeword of `length` bits takes
2^(8 − length) of all 256 strings of eight bits that begin with it, in that order. So where a
symbol's strings begin is how many all symbols before it take.
"""

import triton
import triton.language as tl

from packkv_kernels.entropy.places import MAX_PLACES, SYMBOLS
from packkv_kernels.entropy.tables import CLASS_ROWS, MAX_SYMBOLS, PLACE_SHIFT, ROWS, TABLE_BITS

__all__ = ["CODE_SYMBOLS", "LENGTH_WORDS", "OTHER_SYMBOLS", "spread_tables"]

# Words of the lengths of a table, 4 bits each.
LENGTH_WORDS = MAX_SYMBOLS // 8

# Symbols of a table of codes, and of any other, as powers of two.
CODE_SYMBOLS, OTHER_SYMBOLS = SYMBOLS, 64

_LENGTH_WORDS = tl.constexpr(LENGTH_WORDS)
_MAX_SYMBOLS = tl.constexpr(MAX_SYMBOLS)
_CODE_SYMBOLS = tl.constexpr(CODE_SYMBOLS)
_ENTRIES = tl.constexpr(1 << TABLE_BITS)
_ROWS = tl.constexpr(ROWS)
_CLASS_ROWS = tl.constexpr(CLASS_ROWS)
_MAX_PLACES = tl.constexpr(MAX_PLACES)
_PLACE_SHIFT = tl.constexpr(PLACE_SHIFT)


@triton.jit
def spread_tables(lengths_ptr, targets_ptr, places_ptr, tables_ptr, COUNT: tl.constexpr):
    """One table; the grid is (tables,).

    Args:
        lengths_ptr: uint32 [tables, LENGTH_WORDS], of complete codes of 1 to 8 bits; 0: no symbol.
        targets_ptr: int32 [tables], which table of `tables_ptr` each is.
        places_ptr: uint8 [2, CLASS_ROWS, 16], `NEXT_PLACE`.
        tables_ptr: uint16 [payloads, 2, ROWS, 256], written: symbol | place after it << 6 |
            length << 12.
        COUNT: symbols, CODE_SYMBOLS for tables of codes, else OTHER_SYMBOLS.
    """
    target = tl.load(targets_ptr + tl.program_id(0)).to(tl.int64)
    lengths_ptr += tl.program_id(0) * _LENGTH_WORDS
    symbol = tl.arange(0, COUNT)
    length = _length_of(lengths_ptr, symbol)
    other = tl.arange(0, COUNT)[None, :]
    other_length = _length_of(lengths_ptr, other)
    before = other_length < length[:, None]
    before |= (other_length == length[:, None]) & (other < symbol[:, None])
    start = tl.sum(tl.where(before & (other_length > 0), _ENTRIES >> other_length, 0), 1)
    value = symbol | length << 12
    if COUNT == _CODE_SYMBOLS:
        row = target // _ROWS % 2 * _CLASS_ROWS + target % _ROWS
        after = tl.load(places_ptr + row * _CODE_SYMBOLS + symbol).to(tl.int32)
        value |= after << _PLACE_SHIFT
    entry = tl.arange(0, _ENTRIES)[:, None]
    # codewords are read from their first bit on, and ordered by it
    string = _reversed(entry) - start[None, :]
    inside = (string >= 0) & (string < _ENTRIES >> length[None, :]) & (length > 0)[None, :]
    found = tl.sum(tl.where(inside, value[None, :], 0), 1)
    at = tables_ptr + target * _ENTRIES + tl.arange(0, _ENTRIES)
    tl.store(at, found.to(tl.uint16))


@triton.jit
def _length_of(lengths_ptr, symbol):
    words = tl.load(lengths_ptr + (symbol >> 3), mask=symbol < _MAX_SYMBOLS, other=0)
    return (words >> (4 * (symbol & 7)).to(tl.uint32)).to(tl.int32) & 15


@triton.jit
def _reversed(entry):
    """The eight bits of an index in the opposite order."""
    entry = (entry & 0x0F) << 4 | (entry >> 4) & 0x0F
    entry = (entry & 0x33) << 2 | (entry >> 2) & 0x33
    return (entry & 0x55) << 1 | (entry >> 1) & 0x55
