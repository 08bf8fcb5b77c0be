import grpc

from packkv import errors
from packkv.errors import ERROR_OF_STATUS, CircuitOpen, PackKVError, StoreError


def all_below(base: type[PackKVError]) -> set[type[PackKVError]]:
    """Of this module: the demo has an error of its own."""
    children = [child for child in base.__subclasses__() if child.__module__ == errors.__name__]
    return {base}.union(*(all_below(child) for child in children))


def test_every_status_of_grpc_has_an_error() -> None:
    assert set(ERROR_OF_STATUS) == set(grpc.StatusCode)


def test_every_store_error_is_the_meaning_of_a_status() -> None:
    # an open circuit is the client's own word; it never comes from a server
    assert all_below(StoreError) - {StoreError, CircuitOpen} == set(ERROR_OF_STATUS.values())


def test_the_tree_is_drawn_with_every_class_under_its_parent() -> None:
    drawn = [line for line in (errors.__doc__ or "").splitlines() if line.startswith("    ")]
    parents: list[str] = []
    edges = set()
    for line in drawn:
        name = line.strip(" │├└─").split()[0]
        depth = line.index(name) // 4
        parents[depth - 1 :] = [name]
        edges.add((name, parents[-2] if len(parents) > 1 else ""))
    expected = {(kind.__name__, kind.__mro__[1].__name__) for kind in all_below(PackKVError)}
    assert edges == {(name, "" if name == "PackKVError" else up) for name, up in expected}
