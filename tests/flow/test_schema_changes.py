"""Drift from run to run, against a server whose rows change: in words, in the history, and as the policy says."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest

from extractor.report import RunReport
from extractor.testing import canonical

CATALOGUE = """
[services]
path = "/services"
key  = ["id"]
[services.columns]
id   = "string"
size = "int64"
spec = "struct<cpu: int64>"

[notes]
path = "/notes"
"""


def service(name: str, **more: object) -> dict[str, object]:
    return {"id": name, "size": 1, "spec": {"cpu": 2}, **more}


@pytest.fixture
def site(nights: Any) -> Any:
    nights.catalogue = CATALOGUE
    nights.rows = {"/services": [service("a"), service("b")], "/notes": [{"text": "x", "gone_at": None}]}
    return nights


def status(report: RunReport, name: str = "services") -> str:
    return next(table.status for table in report.tables if table.name == name)


def truth(site: Any, table: str = "services") -> list[dict[str, Any]]:
    """What landed, as the API gave it."""
    return sorted(
        canonical(site.lake.table(table).to_arrow()), key=lambda row: json.dumps(row, sort_keys=True)
    )


# --- in words -----------------------------------------------------------------------------------------------


def test_a_run_says_what_changed_since_the_last_one(site: Any) -> None:
    first = site.run()
    site.pass_night()
    site.rows["/services"] = [
        {"id": "a", "zone": "z1", "spec": {"cpu": 2, "disk": 5}},
        {"id": "b", "zone": "z2", "size": "large", "spec": {"cpu": 2}},
    ]
    second = site.run()

    assert first.drift == ()
    assert sorted(second.drift) == [
        (
            "services.size: 1 value does not fit int64, rescued; for a column of their own: "
            '[services.columns] size = "string"'
        ),
        "services.size: no row has a value any more",
        (
            "services.spec: new inside of it disk in 1 value, rescued; for a column of their own: "
            '[services.columns] spec = "struct<cpu: int64, disk: int64>"'
        ),
        "services.zone: new column (string)",
    ]
    assert truth(site) == site.rows["/services"]


def test_the_next_run_tells_what_stays_from_what_is_new(site: Any) -> None:
    site.run()
    site.rows["/services"] = [service("a", zone="z1", spec={"cpu": 2, "disk": 5})]
    site.run()
    site.rows["/services"] = [service("a", zone="z1", spec={"cpu": 2, "disk": 5}, owner="me")]

    third = site.run()

    assert sorted(third.drift) == [
        "services.owner: new column (string)",
        (
            "services.spec: new inside of it disk in 1 value, rescued, as in the last run; "
            'for a column of their own: [services.columns] spec = "struct<cpu: int64, disk: int64>"'
        ),
    ]


def test_a_key_that_is_gone_is_told_once_and_again_when_it_went_again(site: Any) -> None:
    without = [{"id": "a", "size": 1}]
    told = []
    for rows in ([service("a")], without, without, [service("a")], without):
        site.rows["/services"] = rows
        told.append(site.run().drift)

    gone = ("services.spec: no row has a value any more",)
    assert told == [(), gone, (), (), gone]


def test_the_toml_of_the_line_corrects_the_type_and_the_next_run_says_so(site: Any) -> None:
    site.run()
    site.rows["/services"] = [service("a", size="small"), service("b", size="large")]
    [line] = [line for line in site.run().drift if "does not fit" in line or "do not fit" in line]
    head, _, advice = line.partition("[services.columns] ")
    assert head.startswith("services.size: 2 values do not fit int64, rescued")
    assert tomllib.loads(advice) == {"size": "string"}

    site.catalogue = CATALOGUE.replace('size = "int64"', advice)
    corrected = site.run()
    settled = site.run()

    assert corrected.drift == (
        "services.size: type corrected from int64 to string; size__v2 has the values from now on",
    )
    assert settled.drift == ()
    assert [(row["size"], row["size__v2"]) for row in site.landed("services")] == [
        (None, "small"),
        (None, "large"),
    ]
    assert truth(site) == site.rows["/services"]


def test_a_column_that_the_catalogue_gained_is_told(site: Any) -> None:
    site.run()
    site.catalogue = CATALOGUE.replace('size = "int64"', 'size = "int64"\nzone = "string"')
    site.rows["/services"] = [service("a", zone="z1")]

    assert site.run().drift == ("services.zone: new column (string) from the catalogue",)


def test_few_new_events_do_not_say_that_a_key_is_gone(nights: Any) -> None:
    nights.catalogue = (
        '[alerts]\npath = "/alerts"\nkey = ["id"]\nsync = { kind = "append", cursor = "at" }\n'
        '[alerts.columns]\nid = "int64"\nat = "timestamp"\nby = "string"\n'
    )
    alerts = [{"id": number, "at": f"2026-11-01T00:00:{number:02}Z", "by": "me"} for number in range(59)]
    told = []
    for last, with_by in ((20, True), (39, False), (59, False), (59, False)):
        nights.rows["/alerts"] = [
            alert if number < 20 or with_by else {**alert, "by": None}
            for number, alert in enumerate(alerts[:last])
        ]
        told.append(nights.run().drift)

    # Nineteen new ones may lack it by chance, twenty hardly.
    assert told == [(), (), ("alerts.by: no row has a value any more",), ()]


def test_drift_of_many_keys_is_a_few_lines(site: Any) -> None:
    site.run()
    site.rows["/services"] = [service("a", **{f"key_{number}": number for number in range(300)})]

    drift = site.run(run__schema="rescue").drift

    assert len(drift) == 20
    assert drift[-1] == "services: and 281 more"


def test_of_a_key_with_other_counts_on_each_page_there_is_one_line(site: Any) -> None:
    site.catalogue = (
        '[parents]\npath = "/parents"\n[children]\npath = "/p/{n}"\n'
        'parent = { endpoint = "parents", params = { n = "n" } }\n[children.columns]\nn = "int64"\n'
    )
    site.rows = {"/parents": [{"n": number} for number in range(1, 9)]}
    site.rows |= {
        f"/p/{number}": [{"n": 1, "extra": number}] * number + [{"n": 0.5}] for number in range(1, 9)
    }

    report = site.run(run__schema="rescue")

    assert sorted(line.partition(";")[0] for line in report.drift) == [
        "children.extra: no column, 36 values rescued",
        "children.n: 8 values do not fit int64, rescued",
    ]


# --- the history --------------------------------------------------------------------------------------------


def test_the_lake_keeps_each_change_of_a_tables_columns(site: Any) -> None:
    runs = [site.run().run_id]
    for change in ({"zone": "z"}, {"zone": "z"}, {"zone": "z", "owner": "me", "ssl": True}):
        site.pass_night()
        site.rows["/services"] = [service("a", **change)]
        runs.append(site.run().run_id)

    history = site.lake.schema_history("services")

    assert [(version.run_id, version.at[:10], version.changes) for version in history] == [
        (runs[1], "2026-11-02", ("zone: new column (string)",)),
        (runs[3], "2026-11-04", ("owner: new column (string)", "ssl: new column (bool)")),
    ]
    assert site.lake.schema_history("notes") == []


def test_a_run_that_changed_no_column_writes_no_history(site: Any) -> None:
    site.run()
    site.rows["/services"] = [service("a", zone="z")]
    site.run()
    before = site.lake.entry().tables["services", "default"].digest

    site.run()

    assert site.lake.entry().tables["services", "default"].digest == before


# --- the policies -------------------------------------------------------------------------------------------


def test_evolve_makes_columns_and_what_had_none_before_is_null(site: Any) -> None:
    site.run()
    site.pass_night()
    site.rows["/services"] = [service("a", zone="z1"), service("b")]

    report = site.run(run__schema="evolve")

    assert report.exit_code == 0
    assert [row.get("zone") for row in site.landed("services")] == ["z1", None]
    assert truth(site) == site.rows["/services"]


def test_rescue_keeps_new_keys_as_json(site: Any) -> None:
    site.run()
    site.rows["/services"] = [service("a", zone="z1"), service("b")]

    report = site.run(run__schema="rescue")

    assert report.exit_code == 0
    assert report.drift == (
        'services.zone: no column, 1 value rescued; for a column of their own: [services.columns] zone = "string"',
    )
    assert [row["_rescued_data"] for row in site.landed("services")] == ['{"zone":"z1"}', None]
    assert truth(site) == site.rows["/services"]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([service("a", zone="z1")], "services.zone: no column, 1 value"),
        ([service("a", size="large")], "services.size: 1 value does not fit int64"),
        ([service("a", spec={"cpu": 2, "disk": 5})], "services.spec: new inside of it disk in 1 value"),
    ],
)
def test_fail_holds_the_table_back_with_exit_code_6(site: Any, rows: object, told: str) -> None:
    site.run(run__schema="fail")
    before = truth(site)
    site.rows["/services"] = rows

    report = site.run(run__schema="fail")

    assert (report.exit_code, status(report), status(report, "notes")) == (6, "held", "complete")
    assert report.drift == (f'{told}; refused, as run.schema = "fail"',)
    assert truth(site) == before


def test_what_fail_refuses_is_published_once_when_it_is_accepted(site: Any) -> None:
    site.run(run__schema="fail")
    site.rows["/services"] = [service("a", zone="z1", size="large")]

    accepted = site.run(run__schema="fail", accept=("services",))
    again = site.run(run__schema="fail")

    assert (accepted.exit_code, status(accepted)) == (0, "complete")
    assert truth(site) == site.rows["/services"]
    # The new column stays, the value that does not fit is refused again.
    assert again.exit_code == 6
    assert again.drift[0].startswith("services.size: 1 value does not fit int64; refused")


@pytest.mark.parametrize("policy", ["evolve", "rescue", "fail"])
def test_the_first_value_of_a_key_that_was_null_is_a_first_column_and_no_drift(
    site: Any, policy: str
) -> None:
    site.run(run__schema=policy)
    site.rows["/notes"] = [{"text": "x", "gone_at": "today"}]

    report = site.run(run__schema=policy)

    assert (report.exit_code, report.drift) == (0, ())
    assert [row["gone_at"] for row in site.landed("notes")] == ["today"]


def test_a_held_check_and_refused_drift_together_are_exit_code_3(site: Any) -> None:
    site.run()
    site.rows["/services"] = [service("a", zone="z1")]
    site.rows["/notes"] = [{"text": None}]

    report = site.run(run__schema="fail", file="[checks.notes.max_nulls]\ntext = 0\n")

    assert (report.exit_code, status(report), status(report, "notes")) == (3, "held", "held")


# --- what people see ----------------------------------------------------------------------------------------


def test_show_tells_what_changed_in_each_run(
    site: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from extractor.cli.app import invoke

    site.run()
    site.rows["/services"] = [service("a", zone="z1")]
    site.run()
    monkeypatch.chdir(site.folder)

    code = invoke(["show", "latest", "--lake", str(site.folder / "lake")])
    text = capsys.readouterr().out
    invoke(["show", "latest", "--json", "--lake", str(site.folder / "lake")])
    values = json.loads(capsys.readouterr().out)

    assert code == 0
    assert "\ndrift: services.zone: new column (string)\n" in text
    assert values["drift"] == ["services.zone: new column (string)"]
