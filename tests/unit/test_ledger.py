from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extractor.drift import Drift
from extractor.endpoint import Endpoint
from extractor.ledger import Ledger, OpenChain, Outcome
from extractor.paging import Chain

ENDPOINT = Endpoint(name="ships", path="/v1/ships")
WHOLE = "end of chain seen: no token after page 1"
COMPLETE = Outcome(status="complete", reason="one answer is everything")


def open_chain(
    proof: str = WHOLE, *, window: str = "", undecoded: int = 0, total: int | None = None
) -> OpenChain:
    chain = Chain(
        endpoint=ENDPOINT, base_url="https://api.skysql.com", pages_max=10, proof=proof, total=total
    )
    return OpenChain(chain=chain, window=window, undecoded=undecoded)


def ledger(*chains: OpenChain, pages: int = 0, **counts: int) -> Ledger:
    return Ledger(
        table="ships",
        chains={f"chain {number}": chain for number, chain in enumerate(chains)},
        pages=pages,
        **counts,  # type: ignore[arg-type]  # counts only
    )


def judge(found: Ledger, parent: Outcome | None = None, *, had_rows: bool = False) -> tuple[str, str]:
    outcome = found.outcome(parent, had_rows=had_rows)
    return outcome.status, outcome.reason


# --- complete -----------------------------------------------------------------------------------------------


def test_a_table_whose_every_chain_saw_its_end_is_complete_with_the_proof() -> None:
    assert judge(ledger(open_chain("total matched: 7 of 7 rows"))) == (
        "complete",
        "total matched: 7 of 7 rows",
    )
    assert judge(ledger(open_chain(), open_chain("total matched: 7 rows"), open_chain()), COMPLETE) == (
        "complete",
        "3 chains: end of chain seen, total matched",
    )


@pytest.mark.parametrize("had_rows", [False, True])
def test_a_child_of_a_parent_without_rows_is_complete(had_rows: bool) -> None:
    assert judge(ledger(), COMPLETE, had_rows=had_rows) == ("complete", "its parent has no rows")


@pytest.mark.parametrize(
    "chain", [open_chain(""), open_chain(undecoded=1)], ids=["end not seen", "page not decoded"]
)
def test_a_table_with_a_chain_that_was_cut_off_is_never_complete(chain: OpenChain) -> None:
    assert not chain.is_complete
    assert judge(ledger(open_chain(), chain)) == ("partial", "1 of 2 chains were cut off")


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 1), st.booleans()), min_size=1, max_size=4),
    st.sampled_from(["complete", "partial", "failed", "denied", "held", "absent", "skipped", None]),
    st.integers(0, 1),
    st.booleans(),
)
def test_complete_means_that_nothing_at_all_is_missing(
    chains: list[tuple[bool, int, bool]], parent_status: str | None, without_value: int, had_rows: bool
) -> None:
    found = ledger(
        *(open_chain(WHOLE if is_ended else "", undecoded=undecoded) for is_ended, undecoded, _ in chains),
        parents_without_value=without_value,
    )
    for chain, (_, _, has_failed) in zip(found.chains.values(), chains, strict=True):
        if has_failed:
            found.fail(chain, "no")
    parent = Outcome(status=parent_status, reason="so") if parent_status else None  # type: ignore[arg-type]  # one of them

    status, _ = judge(found, parent, had_rows=had_rows)

    is_whole = all(is_ended and not undecoded and not failed for is_ended, undecoded, failed in chains)
    assert (status == "complete") == (is_whole and not without_value and parent_status in ("complete", None))


# --- not complete -------------------------------------------------------------------------------------------


def test_a_failed_request_makes_a_table_partial_or_where_nothing_is_whole_failed() -> None:
    partial, failed = ledger(open_chain(), open_chain("")), ledger(open_chain(""), open_chain(""))
    partial.fail(partial.chains["chain 1"], "/v1/ships: status 500")
    for chain in failed.chains.values():
        failed.fail(chain, "/v1/ships: status 500")

    assert judge(partial) == ("partial", "1 of 2 requests failed: /v1/ships: status 500")
    assert judge(failed) == ("failed", "2 of 2 requests failed: /v1/ships: status 500")


def test_a_chain_fails_once_for_its_first_reason() -> None:
    found = ledger(open_chain(""))

    found.fail(found.chains["chain 0"], "the page is no JSON")
    found.fail(found.chains["chain 0"], "status 500")

    assert (found.failure_count, found.failures) == (1, ["the page is no JSON"])
    assert found.chains["chain 0"].failure == "the page is no JSON"
    assert judge(found) == ("failed", "1 of 1 requests failed: the page is no JSON")


def test_so_many_failures_are_kept_and_all_are_counted() -> None:
    found = ledger(*(open_chain("") for _ in range(30)))

    for number, chain in enumerate(found.chains.values()):
        found.fail(chain, f"status {number}")

    assert found.failure_count == 30
    assert found.failures == [f"status {number}" for number in range(20)]


def test_a_refusal_is_denied_whatever_else_there_is() -> None:
    found = ledger(open_chain(), open_chain(""))
    found.denied = "/v1/ships: the key may not read this (403)"
    found.drift_refused = "column x"
    found.fail(found.chains["chain 1"], "403")

    assert judge(found, COMPLETE, had_rows=True) == ("denied", "/v1/ships: the key may not read this (403)")


def test_drift_that_the_policy_refuses_holds_the_table_back() -> None:
    found = ledger(open_chain())
    found.drift_refused = "a new column: x"

    assert judge(found) == ("held", "a new column: x")


@pytest.mark.parametrize(
    ("had_rows", "expected"),
    [
        (False, ("absent", "the API has no such resource (404)")),
        (True, ("failed", "the API has no such resource any more, but the lake has rows")),
    ],
)
def test_what_the_api_does_not_have_is_absent_unless_it_had_it_before(
    had_rows: bool, expected: tuple[str, str]
) -> None:
    found = ledger(open_chain(""), open_chain(""), absent=2)
    for chain in found.chains.values():
        found.fail(chain, "404")

    assert judge(found, had_rows=had_rows) == expected


def test_a_resource_that_some_requests_found_is_not_absent() -> None:
    found = ledger(open_chain(), open_chain(""), absent=1)
    found.fail(found.chains["chain 1"], "/v1/ships/7: status 404")

    assert judge(found) == ("partial", "1 of 2 requests failed: /v1/ships/7: status 404")


def test_a_chain_whose_later_page_is_not_found_is_not_absent() -> None:
    found = ledger(open_chain(""), pages=1, absent=1)
    found.fail(found.chains["chain 0"], "/v1/ships?page=2: status 404")

    assert judge(found) == ("failed", "1 of 1 requests failed: /v1/ships?page=2: status 404")


# --- parents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "own"),
    [
        ("partial", "partial"),
        ("failed", "partial"),
        ("denied", "partial"),
        ("held", "held"),
        ("absent", "partial"),
        ("skipped", "partial"),
    ],
)
def test_a_child_is_no_more_complete_than_its_parent(status: str, own: str) -> None:
    parent = Outcome(status=status, reason="so it is")  # type: ignore[arg-type]  # one of them

    assert judge(ledger(open_chain()), parent) == (own, f"its parent is {status}: so it is")


@pytest.mark.parametrize(
    ("parent", "expected"),
    [
        (None, ("failed", "it was never asked for")),
        (Outcome(status="absent", reason="404"), ("absent", "its parent is absent")),
        (Outcome(status="denied", reason="403"), ("denied", "never asked for, as its parent is denied: 403")),
        (
            Outcome(status="held", reason="drift"),
            ("held", "never asked for, as its parent is held: drift"),
        ),
        (Outcome(status="failed", reason="500"), ("failed", "never asked for, as its parent is failed: 500")),
        (
            Outcome(status="partial", reason="500"),
            ("failed", "never asked for, as its parent is partial: 500"),
        ),
    ],
)
def test_a_table_that_was_never_asked_for_says_why(parent: Outcome | None, expected: tuple[str, str]) -> None:
    assert judge(ledger(), parent) == expected


def test_a_row_of_the_parent_that_names_no_value_is_a_row_that_is_missing() -> None:
    reason = "2 rows of its parent name no value"

    assert judge(ledger(open_chain(), parents_without_value=2), COMPLETE) == ("partial", reason)
    assert judge(ledger(parents_without_value=2), COMPLETE) == ("partial", reason)


# --- windows, totals, notes ---------------------------------------------------------------------------------


def test_a_window_is_complete_when_every_chain_of_it_is() -> None:
    found = ledger(
        open_chain(window="2026-10"),
        open_chain(window="2026-10"),
        open_chain(window="2026-11"),
        open_chain("", window="2026-11"),
        open_chain(window="2026-12", undecoded=1),
    )

    assert found.complete_windows() == {"2026-10"}
    found.fail(found.chains["chain 1"], "no")
    assert found.complete_windows() == frozenset()


@pytest.mark.parametrize(
    ("totals", "total"), [((), None), ((3,), 3), ((3, 4), 7), ((3, None), None), ((0, 0), 0)]
)
def test_the_total_is_known_where_every_chain_tells_its_own(
    totals: tuple[int | None, ...], total: int | None
) -> None:
    assert ledger(*(open_chain(total=number) for number in totals)).total == total


def test_drift_is_added_up_by_column_and_notes_line_by_line() -> None:
    found = ledger()
    lost = Drift(table="t", column="a", kind="unknown", count=2)
    new = Drift(table="t", column="b", kind="column")

    found.note_drift([lost, new])
    found.note_drift([lost])
    found.note("asked twice")
    found.note("asked twice")

    assert found.drift == {("unknown", "a"): replace(lost, count=4), ("column", "b"): new}
    assert found.notes == {"asked twice": 2}


def test_the_longest_chain_is_known_in_pages() -> None:
    chains = [open_chain(), open_chain(), open_chain()]
    for pages, chain in zip((3, 12, 1), chains, strict=True):
        chain.chain.pages = pages

    assert ledger(*chains).longest_chain == 12
    assert ledger().longest_chain == 0
