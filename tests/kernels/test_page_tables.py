"""Page tables and copies: what reaches a device, in place and through a small buffer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from packkv_kernels.attention import PageTables
from packkv_kernels.errors import InvalidInput
from packkv_kernels.paged_cache.copies import Copies

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(request.param)


def rows(*tables: list[int]) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
    return [np.array(table, np.int32) for table in tables]


def test_tables_follow_their_rows_in_the_same_memory(device: torch.device) -> None:
    tables = PageTables(2, 4, device)
    places = tables.table.data_ptr(), tables.pages.data_ptr()
    for given in (
        rows([5], []),
        rows([5, 6], [7, 8, 9]),
        rows([5, 6, 1], [7, 2]),
        rows([], [3, 3, 3, 3]),
    ):
        tables.update(given)
        assert tables.pages.tolist() == [len(row) for row in given]
        for index, row in enumerate(given):
            assert tables.table[index, : len(row)].tolist() == row.tolist()
            assert tables[index].tolist() == row.tolist()
    assert (tables.table.data_ptr(), tables.pages.data_ptr()) == places


def test_a_page_more_rewrites_none_before_it() -> None:
    tables = PageTables(1, 8, torch.device("cpu"))
    tables.update(rows([1, 2, 3]))
    # whoever rewrites the row makes this a 1 again
    tables.table[0, 0] = 77
    tables.update(rows([1, 2, 3, 4]))
    assert tables.table[0, :4].tolist() == [77, 2, 3, 4]


def test_numbers_of_exact_tokens_are_written_where_they_were_and_only_when_they_change() -> None:
    tables = PageTables(2, 1, torch.device("cpu"))
    place = tables.exact.data_ptr()
    tables.count_exact([3, 7])
    assert tables.exact.tolist() == [3, 7]
    tables.exact[0] = 99
    tables.count_exact((3, 7))
    assert tables.exact.tolist() == [99, 7]
    tables.count_exact([3, 8])
    assert tables.exact.tolist() == [3, 8]
    assert tables.exact.data_ptr() == place
    with pytest.raises(InvalidInput, match="3 numbers for tables of 2 rows"):
        tables.count_exact([1, 2, 3])


def test_more_pages_than_there_is_room_for_are_refused_and_change_nothing() -> None:
    tables = PageTables(2, 2, torch.device("cpu"))
    tables.update(rows([1], [2]))
    for wrong in (rows([1, 2, 3], [2]), rows([1])):
        with pytest.raises(InvalidInput, match="do not fit tables of 2 rows of 2 pages"):
            tables.update(wrong)
    assert (tables.pages.tolist(), tables.table[:, 0].tolist()) == ([1, 1], [1, 2])
    with pytest.raises(InvalidInput, match="both must be 1 or more"):
        PageTables(1, 0, torch.device("cpu"))


def test_copies_larger_than_the_buffer_arrive_whole(device: torch.device) -> None:
    copies = Copies(device, 2, staging_bytes=256)
    generator = np.random.default_rng(0)
    sources = [generator.integers(0, 1 << 32, size, np.uint32) for size in (1, 31, 33, 500, 7)]
    targets = [torch.zeros(len(source), dtype=torch.uint32, device=device) for source in sources]
    copies.owns(*targets)
    copies.follow()
    wanted = [source.copy() for source in sources]
    for source, target in zip(sources, targets, strict=True):
        copies.send(source, target)
        # who has sent may write over it
        source[:] = 0
    copies.arrives(1)
    copies.wait(1)
    for source, target in zip(wanted, targets, strict=True):
        assert np.array_equal(target.cpu().numpy(), source)


def test_scattered_rows_land_at_their_places_and_nowhere_else(device: torch.device) -> None:
    copies = Copies(device, 1, staging_bytes=64)
    target = torch.full((2, 5, 3), -1, dtype=torch.int32, device=device)
    copies.follow()
    given = np.arange(12, dtype=np.int32).reshape(2, 2, 3)
    copies.scatter(given, target, [4, 1])
    copies.wait_all()
    wanted = np.full((2, 5, 3), -1, np.int32)
    wanted[:, [4, 1]] = given
    assert np.array_equal(target.cpu().numpy(), wanted)
