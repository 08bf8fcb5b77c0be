"""What is proven of a cold payload before a device decodes it."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packkv_kernels.entropy import ColdHead
from packkv_kernels.entropy.cold_lanes import SLACK_WORDS
from packkv_kernels.entropy.cold_plan import (
    CODED,
    COPIES,
    COPY_COUNT,
    LANES_AT,
    ColdPlan,
)
from packkv_kernels.errors import PayloadError
from packkv_kernels.format import Payload, resident_sections
from packkv_kernels.format.tile import WORDS


def copies_of(plan: ColdPlan) -> np.ndarray:
    """[sections, copies, 3]: from, to and how many."""
    return plan.rows[:, COPIES:].reshape(-1, COPY_COUNT, 3)


def assert_in_bounds(plan: ColdPlan) -> None:
    """Nothing that a kernel computes from a plan leaves its words and its sections."""
    source, target, count = np.moveaxis(copies_of(plan), 2, 0)
    assert (source >= 0).all()
    assert (count >= 0).all()
    assert (source + count <= len(plan.words) - SLACK_WORDS).all()
    assert (target >= 0).all()
    assert (target + count <= plan.descriptors[:, WORDS, None]).all()
    lanes = plan.lanes.astype(np.int64)
    assert (lanes[:, 0] == 0).all()
    assert (np.diff(lanes, axis=1) >= 0).all()
    ends = plan.rows[:, LANES_AT] + (lanes[:, -1] + 31) // 32
    assert (plan.rows[:, LANES_AT] >= 0).all()
    assert (ends <= len(plan.words) - SLACK_WORDS).all()
    assert np.isin(plan.rows[:, CODED : CODED + 2], (0, 1)).all()
    assert np.isin(plan.widths, (0, 1, 2, 3, 4, 6, 8)).all()


def test_a_plan_says_where_everything_goes(resident: Payload, cold: Payload) -> None:
    head = ColdHead.of(cold)
    plan, right = head.plan(cold.data), resident_sections(resident)
    assert_in_bounds(plan)
    assert np.array_equal(plan.descriptors, right.descriptors)
    assert np.array_equal(plan.bases, right.bases)
    assert plan.resident_words == len(right.words)
    # what is copied is what the resident sections have there
    for section, copies in enumerate(copies_of(plan).tolist()):
        for source, target, count in copies:
            at = right.bases[section] + target
            assert np.array_equal(plan.words[source : source + count], right.words[at : at + count])


def test_layers_are_planned_alone_as_they_are_together(cold: Payload) -> None:
    head = ColdHead.of(cold)
    whole, heads = head.plan(cold.data), cold.header.heads
    for layer in range(cold.header.layers):
        plan, rows = head.plan(cold.data, range(layer, layer + 1)), slice(layer * heads, None)
        assert np.array_equal(plan.lanes, whole.lanes[rows][:heads])
        assert np.array_equal(plan.widths, whole.widths[rows][:heads])
        assert np.array_equal(plan.bases, whole.bases[rows][:heads] - whole.bases[rows][0])
        begins = plan.rows[:, LANES_AT], whole.rows[rows, LANES_AT][:heads]
        moved = (head.cold_sections[layer * heads, 0] - head.cold_sections[0, 0]) // 4
        assert np.array_equal(begins[0], begins[1] - moved)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_wild_sections_are_planned_in_bounds_or_refused(cold: Payload, data: st.DataObject) -> None:
    """What a plan refuses, nobody takes; what it takes, is the host's to the last proven word."""
    head, changed = ColdHead.of(cold), bytearray(cold.data)
    begin = int(cold.sections[0, 0])
    places = st.integers(begin, len(changed) - 1) | st.integers(begin, begin + 400)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(1, 255)), max_size=6)):
        changed[place] ^= value
    try:
        plan = head.plan(memoryview(changed))
    except PayloadError:
        words = np.zeros(head.payload_length // 4, np.uint32)
        with suppress(PayloadError):
            head.decode(memoryview(changed), words)
            # decoded it is: then its contents are unsound
            data_of = words.data.cast("B")
            with pytest.raises(PayloadError):
                resident_sections(Payload(head.header, data_of.toreadonly(), head.sections))
    else:
        assert_in_bounds(plan)


def test_lanes_that_no_section_has_are_refused(cold: Payload) -> None:
    head = ColdHead.of(cold)
    changed = bytearray(cold.data)
    lanes = head.plan(cold.data).lanes
    section = int(np.flatnonzero(lanes[:, -1] & 31)[0])
    end = int(head.plan(cold.data).rows[section, LANES_AT]) + int(lanes[section, -1]) // 32
    at = int(cold.sections[0, 0]) + 4 * end + 3
    changed[at] |= 0x80
    with pytest.raises(PayloadError, match="does not add up"):
        head.plan(memoryview(changed))
    head._lanes[section, 0] = 1 << 21
    with pytest.raises(PayloadError, match="does not add up"):
        head.plan(cold.data)
