from __future__ import annotations

import pytest

from extractor.errors import LakeBusy
from extractor.lease import Leases
from extractor.stores.memory import MemoryStore
from tests.unit.lakes import Watch

METRICS = ("metrics", "default")


@pytest.mark.parametrize(
    ("is_first_brief", "is_second_brief", "is_worth_waiting"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
)
def test_what_needs_the_tables_only_for_a_moment_is_waited_for_and_waits(
    is_first_brief: bool, is_second_brief: bool, is_worth_waiting: bool
) -> None:
    store = MemoryStore()
    first = Leases(store, run_id="r1", clock=Watch(), tables=[METRICS], is_brief=is_first_brief)
    second = Leases(store, run_id="r2", clock=Watch(), tables=[METRICS], is_brief=is_second_brief)
    first.acquire()

    with pytest.raises(LakeBusy) as caught:
        second.acquire()
    assert caught.value.is_brief is is_worth_waiting

    first.release()
    second.acquire()
    assert second.are_mine()
