"""The shipped endpoint files, against their own rules and against the vendor's specifications."""

from __future__ import annotations

import re
import time
import tomllib
from pathlib import Path

import pytest

from extractor.catalog import Catalog, compare, load_catalog, read_specification
from extractor.endpoint import ColumnType, Endpoint, ListType, MapType, StructType, TokenPaging

ROOT = Path(__file__).parents[2]
FILES = ROOT / "config" / "endpoints"
SPECIFICATIONS = ROOT.parent / "shared" / "skysql-openapi"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_catalog()


def specification(pattern: str) -> Path:
    found = sorted(SPECIFICATIONS.glob(pattern)) if SPECIFICATIONS.is_dir() else []
    if not found:
        pytest.skip(
            f"the vendor's specifications are not beside this checkout: no {SPECIFICATIONS}/{pattern}"
        )
    return found[-1]


def member_names(type_: ColumnType | None) -> list[str]:
    match type_:
        case ListType(inner) | MapType(inner):
            return member_names(inner)
        case StructType(members):
            return [name for name, _ in members] + [
                found for _, inner in members for found in member_names(inner)
            ]
        case _:
            return []


# --- against the specifications -----------------------------------------------------------------------------


def test_every_get_of_the_newest_specification_is_read_or_left_out_for_a_reason(catalog: Catalog) -> None:
    newest = specification("mariadb-cloud-api.*.yaml")

    result = compare(catalog, read_specification(newest))

    assert result.operations == 86
    assert (result.lacking, result.retired) == ((), ())
    assert len(result.covered) + len(result.excluded) == 86
    assert [entry.path for entry in result.excluded] == ["/public/services/ous/public-key/{key_version}"]


def test_columns_and_parameters_are_those_of_the_newest_specification_but_for_known_additions(
    catalog: Catalog,
) -> None:
    newest = specification("mariadb-cloud-api.*.yaml")

    result = compare(catalog, read_specification(newest))

    assert {match.endpoint: match.columns_lacking for match in result.matches if match.columns_lacking} == {}
    assert {match.endpoint: match.columns_retyped for match in result.matches if match.columns_retyped} == {}
    assert {match.endpoint: match.notes for match in result.matches if match.notes} == {}
    assert {match.endpoint: match.columns_unknown for match in result.matches if match.columns_unknown} == {
        "topologies": ("is_default",),
        "tiers": ("topologies[].is_default",),
        "backups": ("backup_size",),
        "service_backups": ("backup_size",),
        "restores": ("key",),
        "restore_detail": ("key",),
    }
    assert {
        match.endpoint: match.parameters_unknown for match in result.matches if match.parameters_unknown
    } == {"providers": ("page_token",)}
    assert [
        (match.endpoint, name)
        for match in result.matches
        for name in match.parameters_unsent
        if name[-1] == "*"
    ] == []


def test_the_paths_of_2024_that_are_gone_are_listed(catalog: Catalog) -> None:
    retired = specification("*2024*.yaml")

    result = compare(catalog, read_specification(retired))

    assert result.operations == 45
    assert {operation.path for operation in result.lacking} == {
        "/provisioning/v1/products",
        "/billing/v1/entitlements",
        "/billing/v1/payment/profile",
        "/billing/v1/prices",
        "/billing/v1/prices/endpoint",
        "/billing/v1/prices/instance",
        "/billing/v1/prices/iops",
        "/billing/v1/prices/storage",
        "/billing/v1/prices/throughput",
        "/billing/v1/usage/preview",
        "/billing/v1/usage/service",
        "/billing/v1/usage/service/{service_id}",
    }


@pytest.mark.parametrize("pattern", ["*v0*.json", "*dps*.json", "*nos*.json", "*ous*.json"])
def test_older_specifications_can_be_compared_too(catalog: Catalog, pattern: str) -> None:
    path = specification(pattern)

    result = compare(catalog, read_specification(path))

    assert result.operations > 0
    assert len(result.covered) + len(result.excluded) + len(result.lacking) == result.operations


# --- against their own rules --------------------------------------------------------------------------------


def test_the_package_holds_the_files_of_this_checkout(catalog: Catalog) -> None:
    names = [name for path in sorted(FILES.glob("*.toml")) for name in tomllib.loads(path.read_text())]

    assert [name for name in names if name != "excluded"] == list(catalog.endpoints)


def test_the_five_resources_that_were_asked_for_are_read_by_default(catalog: Catalog) -> None:
    wanted = {
        "services": "/provisioning/v1/services",
        "topologies": "/provisioning/v1/topologies",
        "backup_schedules": "/skybackup/v1/backups/schedules",
        "databases": "/provisioning/v1/databases",
        "provisioning_users": "/provisioning/v1/users",
    }

    assert {name: catalog.endpoints[name].path for name in wanted} == wanted
    assert all(catalog.endpoints[name].enabled for name in wanted)
    # A 404 means that the API has no such resource, which is not the same as no rows.
    assert [catalog.endpoints[name].empty_on for name in ("databases", "provisioning_users")] == [(), ()]


def test_what_is_off_unless_named_says_why(catalog: Catalog) -> None:
    off = {name: endpoint.note for name, endpoint in catalog.endpoints.items() if not endpoint.enabled}

    assert all(off.values())
    assert sorted(off) == [
        "agent_detail",
        "als_alert_history",
        "als_alerts",
        "als_rule_detail",
        "als_rules",
        "architectures",
        "backup_schedule_detail",
        "config_detail",
        "email_channel_detail",
        "invite_detail",
        "invoice_pdfs",
        "log_retention",
        "metrics_query",
        "metrics_query_range",
        "payment_methods",
        "project_detail",
        "restore_detail",
        "role_detail",
        "server_set_events",
        "service_backups",
        "service_detail",
        "user_api_key_detail",
        "user_detail",
    ]


def test_what_must_not_leak_has_its_class(catalog: Catalog) -> None:
    by_class: dict[str, set[str]] = {"secret": set(), "customer_data": set(), "pii": set()}
    secret_columns = set()
    for endpoint in catalog.endpoints.values():
        if endpoint.class_:
            by_class[endpoint.class_].add(endpoint.name)
        secret_columns |= {f"{endpoint.name}: {c.path}" for c in endpoint.columns if c.class_ == "secret"}

    assert by_class == {
        "secret": {"service_credentials", "log_credentials"},
        "customer_data": {"log_lines", "sessions", "session_details"},
        "pii": {
            *("users", "user_detail", "provisioning_users", "invites", "invite_detail", "invitees"),
            *("contacts", "payment_methods", "tax", "email_channels", "email_channel_detail"),
        },
    }
    assert secret_columns == {
        "user_api_keys: api_key",
        "user_api_key_detail: api_key",
        "invites: invitees[].url",
        "invite_detail: invitees[].url",
        "invitees: invitees[].url",
    }


def test_a_value_that_is_secret_has_no_place_in_any_type(catalog: Catalog) -> None:
    found = [
        f"{endpoint.name}.{column.path}"
        for endpoint in catalog.endpoints.values()
        if endpoint.class_ != "secret"
        for column in endpoint.top_columns
        if column.class_ != "secret"
        for name in (column.path, *member_names(column.type))
        if re.fullmatch(r"api_key|password|secret|token|url", name)
    ]

    assert found == []


def test_email_addresses_and_names_of_people_are_marked(catalog: Catalog) -> None:
    unmarked = {}
    for endpoint in catalog.endpoints.values():
        marked = {column.path.rsplit(".", 1)[-1] for column in endpoint.columns if column.class_ == "pii"}
        stated = {
            name for column in endpoint.top_columns for name in (column.path, *member_names(column.type))
        }
        unmarked[endpoint.name] = (stated & {"email", "first_name", "last_name", "phone"}) - marked

    assert {name: columns for name, columns in unmarked.items() if columns} == {}


def children(catalog: Catalog) -> list[Endpoint]:
    return [endpoint for endpoint in catalog.endpoints.values() if endpoint.parent]


def test_every_parameter_in_a_path_is_kept_under_its_own_name_as_first_columns(catalog: Catalog) -> None:
    for endpoint in children(catalog):
        assert endpoint.parent is not None
        kept = dict(endpoint.keep)
        expected = {name: endpoint.parent.params[name] for name in endpoint.placeholders}

        assert {name: kept.get(name) for name in endpoint.placeholders} == expected, endpoint.name
        if endpoint.columns and kept:
            first = [column.path for column in endpoint.columns][: len(kept)]
            assert first == list(kept), endpoint.name


def test_the_key_of_a_child_holds_the_parameters_of_its_path(catalog: Catalog) -> None:
    for endpoint in children(catalog):
        if endpoint.key:
            assert set(endpoint.placeholders) <= set(endpoint.key), endpoint.name


def test_pages_by_token_are_as_large_as_the_api_allows(catalog: Catalog) -> None:
    small = [
        endpoint.name
        for endpoint in catalog.endpoints.values()
        if isinstance(endpoint.paging, TokenPaging) and dict(endpoint.params).get("page_size") != "100"
    ]

    # It has three rows and takes no page_size; a token is followed where one comes.
    assert small == ["providers"]


def test_only_answers_that_the_api_declares_as_empty_count_as_empty(catalog: Catalog) -> None:
    empty = {name: endpoint.empty_on for name, endpoint in catalog.endpoints.items() if endpoint.empty_on}

    assert empty == {
        "users": (204,),
        "projects": (204,),
        "roles": (204,),
        "sessions": (404,),
        "tax": (404,),
        "provider_iops": (404,),
        "service_replicas": (404,),
    }


def test_every_endpoint_that_is_read_by_default_has_typed_columns(catalog: Catalog) -> None:
    untyped = [
        endpoint.name for endpoint in catalog.endpoints.values() if endpoint.enabled and not endpoint.columns
    ]

    # In no specification: their columns are inferred, should they ever answer.
    assert untyped == ["databases", "provisioning_users"]


def test_tags_and_origins_are_a_small_known_set(catalog: Catalog) -> None:
    assert {tag for endpoint in catalog.endpoints.values() for tag in endpoint.tags} == {
        *("inventory", "offering", "backups", "billing", "organization", "notifications", "copilot"),
        *("observability", "metrics", "logs", "security", "autoscaling"),
    }
    assert all(endpoint.tags for endpoint in catalog.endpoints.values())
    assert {endpoint.origin for endpoint in catalog.endpoints.values()} == {
        "spec",
        "vendor code",
        "third party",
        "user",
    }


def test_one_path_only_is_left_out_and_no_endpoint_reads_it(catalog: Catalog) -> None:
    left_out = [entry.path for entry in catalog.excluded]

    assert left_out == ["/public/services/ous/public-key/{key_version}"]
    assert not any(endpoint.path in left_out for endpoint in catalog.endpoints.values())


def test_loading_the_catalogue_stays_quick() -> None:
    seconds = []
    for _ in range(5):
        started = time.process_time()
        load_catalog()
        seconds.append(time.process_time() - started)

    assert min(seconds) < 0.06
