from packkv_store.cluster.borrowed import Borrowed, BorrowedLeases


def test_leases_elsewhere_are_remembered_until_they_are_released() -> None:
    leases = BorrowedLeases(most=2)
    behind = [Borrowed("h:1", 5)]
    for lease_id in (1, 2, 3):
        leases.put(lease_id, behind)
    leases.put(0, behind)
    assert leases.behind(1) == ()
    assert leases.behind(2) == leases.pop(2) == behind
    assert leases.behind(2) == leases.pop(2) == ()
    assert leases.behind(0) == ()
