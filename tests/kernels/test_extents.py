from hypothesis import given
from hypothesis import strategies as st

from packkv_kernels.paged_cache.extents import Extents


def test_a_run_longer_than_any_free_one_is_refused() -> None:
    extents = Extents(10)
    first = extents.take(4)
    middle = extents.take(3)
    assert (first, middle) == (0, 4)
    extents.give_back(0, 4)
    assert extents.take(5) is None, "7 are free, but not in one run"
    assert extents.take(4) == 0


def test_an_empty_arena_has_no_room() -> None:
    assert Extents(0).take(1) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=120))
def test_runs_never_overlap_and_the_arena_is_whole_again_in_the_end(
    steps: list[tuple[bool, int]],
) -> None:
    extents = Extents(200)
    held: list[tuple[int, int]] = []
    for take, length in steps:
        if take or not held:
            start = extents.take(length)
            if start is not None:
                held.append((start, length))
        else:
            extents.give_back(*held.pop(length % len(held)))
        cells = [cell for start, run in held for cell in range(start, start + run)]
        assert len(cells) == len(set(cells)) == extents.used
        assert all(0 <= cell < 200 for cell in cells)
    for start, length in held:
        extents.give_back(start, length)
    assert extents.take(200) == 0
