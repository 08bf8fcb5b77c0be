"""Who is asked for what."""

from packkv_store.block import TierName
from packkv_store.cluster.plan import MAX_PARTS, Part, runs_from, shares
from packkv_store.index import Location


def at(*nodes: str) -> tuple[Location, ...]:
    return tuple(Location(node, TierName.DISK) for node in nodes)


def test_a_run_goes_to_whoever_has_most_of_it() -> None:
    located = [at("a", "b"), at("b"), at("b", "c"), at("c"), at(), at("a")]
    assert runs_from(located, 0, ()) == [Part("b", 0, 3), Part("c", 3, 4)]
    assert runs_from(located, 0, {"b"}) == [Part("a", 0, 1)]
    assert runs_from(located, 4, ()) == []
    assert runs_from(located, 5, ()) == [Part("a", 5, 6)]


def test_a_scattered_run_has_a_bounded_number_of_parts() -> None:
    located = [at(str(number % 2)) for number in range(1000)]
    assert len(runs_from(located, 0, ())) == MAX_PARTS


def test_owners_share_the_work_evenly() -> None:
    located = [at("a", "b", "c")] * 90 + [at("a")] * 10 + [at()] * 5
    taken = shares(located, range(105), ())
    assert sorted(place for places in taken.values() for place in places) == list(range(100))
    assert {node: len(places) for node, places in taken.items()} == {"a": 40, "b": 30, "c": 30}
    assert set(shares(located, range(90, 105), {"a"})) == set()


def test_ram_is_preferred_to_disk() -> None:
    both = (Location("slow", TierName.DISK), Location("fast", TierName.RAM))
    assert runs_from([both], 0, ()) == [Part("fast", 0, 1)]
    assert shares([both], [0], ()) == {"fast": [0]}
