"""Tables that a check holds back, against a server whose rows change between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from extractor.errors import ConfigError
from extractor.report import RunReport, TableReport

CATALOGUE = """
[services]
path = "/services"
key  = ["id"]
[services.columns]
id   = "string"
zone = "string"
seen = "timestamp"

[replicas]
path   = "/services/{service_id}/replicas"
parent = { endpoint = "services", params = { service_id = "id" } }
keep   = { service_id = "id" }
key    = ["id"]
empty_on = [404]
[replicas.columns]
id = "string"

[alerts]
path = "/alerts"
key  = ["id"]
sync = { kind = "append", cursor = "at" }
[alerts.columns]
id = "string"
at = "timestamp"
service_id = "string"
"""
SEEN = "2026-11-01T02:30:00Z"


def service(name: str, **more: object) -> dict[str, object]:
    return {"id": name, "zone": "z1", "seen": SEEN, **more}


def alert(number: int, service_id: str, at: str = SEEN) -> dict[str, object]:
    return {"id": f"a{number}", "at": at, "service_id": service_id}


@pytest.fixture
def site(nights: Any) -> Any:
    nights.catalogue = CATALOGUE
    nights.rows = {
        "/services": [service(name) for name in "abcd"],
        **{f"/services/{name}/replicas": [{"id": f"{name}-1"}] for name in "abcd"},
        "/alerts": [alert(1, "a"), alert(2, "b")],
    }
    return nights


def told(report: RunReport) -> dict[str, tuple[str, str]]:
    return {table.name: (table.status, table.reason) for table in report.tables}


def one(report: RunReport, name: str) -> TableReport:
    return next(table for table in report.tables if table.name == name)


def files(folder: Path) -> dict[str, bytes]:
    """What stands in the lake for readers."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*.parquet")
        if "_extractor" not in path.parts
    }


def test_a_table_that_fails_a_check_is_held_and_the_last_good_one_stays(site: Any) -> None:
    file = "[checks.services.max_nulls]\nzone = 0.4\n"
    first = site.run(file=file)
    before = files(site.folder / "lake")
    site.pass_night()
    site.rows["/services"] = [service("a", zone=None), service("b", zone=None), service("c")]
    site.rows["/alerts"] += [alert(3, "c")]

    second = site.run(file=file)

    assert (first.exit_code, second.exit_code) == (0, 3)
    status, reason = told(second)["services"]
    assert status == "held"
    assert reason == (
        "2 of 3 rows (66.7%) have no zone (checks.services.max_nulls.zone = 0.4); "
        "publish once with --accept services"
    )
    assert told(second)["replicas"] == ("held", f"its parent is held: {reason}")
    assert told(second)["alerts"][0] == "complete"
    after = files(site.folder / "lake")
    assert {path: after[path] for path in before} == before
    assert {path.split("/")[0] for path in after.keys() - before.keys()} == {"alerts"}
    assert sorted(row["id"] for row in site.landed("services")) == list("abcd")
    assert sorted(row["id"] for row in site.landed("replicas")) == ["a-1", "b-1", "c-1", "d-1"]


def test_accept_publishes_a_held_table_once(site: Any) -> None:
    file = "[checks.services.max_nulls]\nzone = 0\n[checks.services]\nmax_drop = 0.5\nmin_rows = 2\n"
    site.run(file=file)
    site.rows["/services"] = [service("a", zone=None)]

    held = site.run(file=file)
    accepted = site.run(file=file, accept=("services",))
    site.pass_night()
    again = site.run(file=file)

    assert one(held, "services").reason == (
        "4 rows fell to 1 (checks.max_drop = 0.5); "
        "1 of 1 rows (100.0%) have no zone (checks.services.max_nulls.zone = 0); "
        "publish once with --accept services"
    )
    assert (one(accepted, "services").status, accepted.exit_code) == ("complete", 0)
    assert [row["id"] for row in site.landed("services")] == ["a"]
    assert one(again, "services").status == "held"


def test_left_alone_only_shared_keys_and_large_tables_that_lost_all_rows_are_held(site: Any) -> None:
    site.rows["/services"] = [service(f"s{number}") for number in range(20)]
    site.run()
    site.rows["/services"] = []
    site.rows["/alerts"] += [alert(1, "other")]

    emptied = site.run()
    site.rows["/services"] = [service("s1"), service("s1", zone="z2")]
    doubled = site.run()

    assert (emptied.exit_code, doubled.exit_code) == (3, 3)
    assert one(emptied, "services").reason.startswith("20 rows fell to 0")
    assert one(doubled, "services").reason.startswith(
        "1 rows share their key ['id'] with another row (id=s1)"
    )
    assert one(emptied, "alerts").status == "complete"
    assert len(site.landed("services")) == 20


def test_a_table_that_is_not_fresh_is_held_until_it_is(site: Any) -> None:
    file = "[checks.services.max_age]\nseen = '12h'\n[checks.alerts.max_age]\nat = '36h'\n"
    first = site.run(file=file)
    site.pass_night()
    stale = site.run(file=file)
    site.rows["/services"] = [service("a", seen="2026-11-02T01:00:00Z")]
    fresh = site.run(file=file)

    assert told(first)["services"][0] == told(fresh)["services"][0] == "complete"
    assert one(stale, "services").reason == (
        "the newest seen is 2026-11-01T02:30:00Z (checks.services.max_age.seen = 12h); "
        "publish once with --accept services"
    )
    # Nothing is new among the alerts, and what stands is fresh enough.
    assert one(stale, "alerts").status == "complete"


def test_events_are_stale_when_neither_new_nor_old_ones_are_young(site: Any) -> None:
    file = "[checks.alerts.max_age]\nat = '36h'\n"
    site.run(file=file)
    site.pass_night(2)
    site.rows["/alerts"] += [alert(3, "c", "2026-11-01T09:00:00Z")]

    stale = site.run(file=file)
    site.rows["/alerts"] += [alert(4, "c", "2026-11-03T02:00:00Z")]
    fresh = site.run(file=file)

    assert one(stale, "alerts").status == "held"
    assert "2026-11-01T09:00:00Z" in one(stale, "alerts").reason
    assert one(fresh, "alerts").status == "complete"
    assert sorted(row["id"] for row in site.landed("alerts")) == ["a1", "a2", "a3", "a4"]


REFERENCES = """
[checks.alerts.references]
service_id = "services.id"
"""


def test_a_value_that_refers_to_nothing_holds_its_table_back(site: Any) -> None:
    site.run(file=REFERENCES)
    site.rows["/alerts"] += [alert(3, "x"), alert(4, "y"), alert(5, "x")]

    held = site.run(file=REFERENCES)
    site.rows["/services"] += [service("x"), service("y")]
    found = site.run(file=REFERENCES)

    assert held.exit_code == 3
    assert one(held, "alerts").reason == (
        "2 values of service_id not in services.id, such as x, y "
        "(checks.alerts.references.service_id = services.id); publish once with --accept alerts"
    )
    assert (one(held, "alerts").rows, one(held, "alerts").files) == (0, 0)
    # The services of the same run count, though they are committed together.
    assert one(found, "alerts").status == "complete"
    assert len(site.landed("alerts")) == 5


def test_what_an_event_referred_to_may_be_gone_since(site: Any) -> None:
    site.run(file=REFERENCES)
    site.rows["/services"] = [service("c")]
    site.rows["/alerts"] += [alert(3, "c")]

    assert site.run(file=REFERENCES).exit_code == 0


def test_of_a_table_that_is_held_the_state_that_stays_is_looked_up(site: Any) -> None:
    file = REFERENCES + "[checks.services.max_nulls]\nzone = 0\n"
    site.run(file=file)
    site.rows["/services"] = [service("x", zone=None)]
    site.rows["/alerts"] += [alert(3, "a")]

    report = site.run(file=file)

    assert {name: status for name, (status, _) in told(report).items()} == {
        "services": "held",
        "replicas": "held",
        "alerts": "complete",
    }


def test_a_table_that_is_held_for_its_references_takes_those_with_it_that_refer_to_it(site: Any) -> None:
    file = """
    [checks.services.references]
    zone = "alerts.service_id"
    [checks.alerts.references]
    id = "services.id"
    """
    site.rows["/services"] = [service("a1", zone="a1")]
    site.rows["/alerts"] = [alert(1, "a1")]
    assert site.run(file=file).exit_code == 0
    site.rows["/services"] = [service("a1", zone="a1"), service("a2", zone="nowhere")]
    site.rows["/alerts"] += [alert(2, "a1")]

    report = site.run(file=file)

    # The service is held for its zone, and so the alert of its name has nothing to stand on.
    assert {name: status for name, (status, _) in told(report).items()} == {
        "services": "held",
        "replicas": "held",
        "alerts": "held",
    }
    assert len(site.landed("alerts")) == 1


def test_a_table_that_was_never_read_has_nothing_to_refer_to(site: Any) -> None:
    report = site.run(file=REFERENCES, run__include=("alerts",))

    assert one(report, "alerts").reason == (
        "nothing stands of table services to look service_id up in "
        "(checks.alerts.references.service_id = services.id); publish once with --accept alerts"
    )


def test_accept_publishes_rows_that_refer_to_nothing(site: Any) -> None:
    site.rows["/alerts"] = [alert(1, "nowhere")]

    assert site.run(file=REFERENCES, accept=("alerts",)).exit_code == 0
    assert len(site.landed("alerts")) == 1


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (
            "[checks.servics]\nmax_drop = 0.5\n",
            "checks: 'servics' is the name of no endpoint; did you mean services?",
        ),
        (
            "[checks.alerts.references]\nservice_id = 'service.id'\n",
            "checks.alerts.references.service_id: no table service; did you mean services?",
        ),
        (
            "[checks.alerts.references]\nservice_id = 'services.idd'\n",
            "checks.alerts.references.service_id: table services has no column idd; did you mean id?",
        ),
        (
            "[checks.services.max_nulls]\nzones = 0.5\n",
            "checks.services.max_nulls.zones: table services has no column zones; did you mean zone?",
        ),
        (
            "[checks.services.max_age]\nzone = '1d'\n",
            (
                "checks.services.max_age.zone: the column is string, and no time; "
                'give it a type in the catalogue: [services.columns] zone = "timestamp"'
            ),
        ),
    ],
)
def test_a_check_that_cannot_be_is_one_line_and_nothing_is_asked_or_written(
    site: Any, file: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        site.run(file=file)

    assert caught.value.message == message
    assert site.asked == []
    assert not (site.folder / "lake" / "_extractor").exists()


def test_an_unknown_table_cannot_be_accepted(site: Any) -> None:
    with pytest.raises(ConfigError, match="--accept servces: no such table; did you mean services"):
        site.run(accept=("servces",))


def test_accept_never_makes_an_incomplete_table_complete(site: Any) -> None:
    site.catalogue = CATALOGUE.replace(
        '[services]\npath = "/services"',
        '[services]\npath = "/services"\nrecords = "/items"\n'
        'paging = { kind = "offset", offset_param = "o", limit_param = "l", limit = 9, total_pointer = "/total" }',
    )
    site.rows["/services"] = {"items": [service("a")], "total": 3}

    report = site.run(accept=("services",), run__include=("services",))

    assert one(report, "services").status in ("partial", "failed")
