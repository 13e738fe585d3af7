"""The routes of the API as the sandbox knows them: path, rows, paging, filters, and what is secret.

This table is the sandbox's own: a fault in a client's catalogue cannot hide behind the same fault here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal
from urllib.parse import unquote

from extractor.sandbox import backups, billing, catalogue, copilot, logs, metrics, people
from extractor.sandbox.paging import BadQuery
from extractor.sandbox.rows import Row, Rows, Selection
from extractor.sandbox.world import World

__all__ = ("ROUTES", "Params", "Query", "Route", "Shape", "match", "selected")

Params = Mapping[str, str]
Query = Mapping[str, str]
Shape = Literal[
    "array", "object", "nullable", "envelope", "pages", "offset", "metrics", "archive", "pdf", "promql"
]
Select = Callable[[World, Params, Query], Selection | None]
Filter = Callable[[World, str], Callable[[Row], bool]]
Parents = Callable[[World, bool], Iterator[Params]]

_MOST_KEPT_FILTERS = 16
# Parameters that choose a page, not rows.
_PLACES = frozenset(("page", "page_size", "page_token", "limit", "offset"))


def _no_parent(world: World, of_start: bool) -> Iterator[Params]:
    yield {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One GET: `select` gives the rows an answer is cut from, None where there is nothing at that path.

    `parents` gives the path parameters of all rows, `truth` all rows where the two do not suffice.
    """

    path: str
    select: Select
    shape: Shape = "array"
    envelope: str = ""
    has_tokens: bool = False
    status: int = 200
    when_empty: int = 0  # the status of an answer without rows, if not `status`
    filters: Mapping[str, Filter] = field(default_factory=lambda: MappingProxyType({}))
    required: tuple[str, ...] = ()
    parents: Parents | None = _no_parent  # None: no truth
    truth: Callable[[World, bool], Iterator[Row]] | None = None
    ever: Callable[[World], Iterator[Row]] | None = None  # every row that ever stood, where rows go again
    is_event: bool = False
    is_secret: bool = False
    secret_fields: tuple[str, ...] = ()

    @property
    def is_paged(self) -> bool:
        """True where an answer may be a part of the rows."""
        return self.has_tokens or self.shape in ("pages", "offset")

    @property
    def segments(self) -> tuple[str, ...]:
        """The path between its slashes."""
        return tuple(self.path.split("/")[1:])


def match(raw_path: str) -> tuple[Route, Params] | None:
    """The route of a path as it was sent, percent-encoded, and the values of its parameters."""
    segments = tuple(unquote(part) for part in raw_path.split("/")[1:])
    fixed = _FIXED.get(segments)
    if fixed is not None:
        return fixed, {}
    for route, names in _OPEN.get(len(segments), ()):
        if all(
            name is not None or known == found for name, known, found in zip(*names, segments, strict=True)
        ):
            params = {name: found for name, found in zip(names[0], segments, strict=True) if name is not None}
            return (route, params) if all(params.values()) else None
    return None


def selected(world: World, route: Route, params: Params, query: Query) -> Selection | None:
    """The rows that answer a query, filters applied.

    Raises: BadQuery.
    """
    for name in route.required:
        if not query.get(name):
            raise BadQuery(f"{name} is required")
    selection = route.select(world, params, query)
    wanted = {name: query[name] for name in route.filters if query.get(name)}
    if selection is None or not wanted:
        return selection
    ordinals = selection.ordinals
    # A filter chooses the same ordinals until a row comes in; where the page stands does not matter.
    choice = sorted(item for item in query.items() if item[0] not in _PLACES)
    key = (route.path, *sorted(params.items()), *choice, world.version)
    kept = world.choices.get(key)
    if kept is not None and kept[0] is selection.rows:
        return Selection(selection.rows, kept[1])
    tests = [route.filters[name](world, value) for name, value in wanted.items()]
    chosen = [o for o in ordinals if all(test(selection.rows.row(o)) for test in tests)]
    if len(world.choices) >= _MOST_KEPT_FILTERS:
        world.choices.pop(next(iter(world.choices)))
    world.choices[key] = (selection.rows, chosen)
    return Selection(selection.rows, chosen)


def _all(make: Callable[[World], Rows]) -> Select:
    return lambda world, params, query: Selection.all(make(world))


def _under(make: Callable[[World, Params], Rows | None]) -> Select:
    def select(world: World, params: Params, query: Query) -> Selection | None:
        rows = make(world, params)
        return None if rows is None else Selection.all(rows)

    return select


def _one(make: Callable[[World], Rows], field_name: str) -> Select:
    """The row whose field reads as the path's last parameter."""

    def select(world: World, params: Params, query: Query) -> Selection | None:
        rows = make(world)
        found = rows.find(field_name, list(params.values())[-1])
        return None if found is None else Selection(rows, (found,))

    return select


def _of_service(make: Callable[[World, int], Rows]) -> Select:
    def select(world: World, params: Params, query: Query) -> Selection | None:
        index = world.service_index(params["service_id"])
        return None if index is None else Selection.all(make(world, index))

    return select


def _service(world: World, params: Params, query: Query) -> Selection | None:
    index = world.service_index(params["service_id"])
    if index is None:
        return None
    count = world.services.count
    return Selection(world.services, (index if index < count else count - index - 1,))


def _numbered(make: Callable[[World], Rows]) -> Select:
    """The row whose integer id the path names; ids count up from that of the first row."""

    def select(world: World, params: Params, query: Query) -> Selection | None:
        rows = make(world)
        if not params["id"].isdecimal():
            raise BadQuery("id must be an integer")
        if not rows.count:
            return None
        place = int(params["id"]) - int(str(rows.row(0)["id"]))
        found = place if 0 <= place < rows.count else rows.find_inserted("id", params["id"])
        return None if found is None or found in rows.absent else Selection(rows, (found,))

    return select


def _scoped(label: str, make: Callable[[World], Rows], *, may_need_service: bool) -> Select:
    def select(world: World, params: Params, query: Query) -> Selection | None:
        service = query.get("service_id", "")
        if service:
            if len(service) < 3:
                raise BadQuery("service_id must have 3 characters or more")
            return backups.of_service(world, label, make(world), service)
        if may_need_service and "schedules-need-service" in world.options.variants:
            raise BadQuery("service_id is required")
        return Selection.all(make(world))

    return select


def _backups_of_service(world: World, params: Params, query: Query) -> Selection | None:
    if world.service_index(params["service_id"]) is None:
        return None
    return backups.of_service(world, "backups", backups.backups(world), params["service_id"])


def _bill(make: Callable[[World, str], Row]) -> Select:
    def select(world: World, params: Params, query: Query) -> Selection:
        months = billing.months(world)
        year, month = query.get("year") or months[-1][:4], query.get("month") or months[-1][5:]
        if not (year.isdecimal() and month.isdecimal() and 1 <= int(month) <= 12):
            raise BadQuery("year must be YYYY and month 1 to 12")
        name = f"{int(year):04d}-{int(month):02d}"
        return Selection.of([make(world, name)] if name in months else [])

    return select


def _bills(make: Callable[[World, str], Row]) -> Callable[[World, bool], Iterator[Row]]:
    return lambda world, of_start: (make(world, month) for month in billing.months(world))


def _quota(world: World, params: Params, query: Query) -> Selection:
    start, end = _instant(query, "start"), _instant(query, "end")
    if start is not None and end is not None and end <= start:
        raise BadQuery("end must be after start")
    month = f"{start:%Y-%m}" if start is not None else billing.months(world)[-1]
    return Selection.of(copilot.quota(world, month))


def _quotas(world: World, of_start: bool) -> Iterator[Row]:
    for month in billing.months(world):
        yield from copilot.quota(world, month)


def _configs(world: World, params: Params, query: Query) -> Selection:
    return Selection.all(catalogue.configs(world, with_default=query.get("include_default") == "true"))


def _config(world: World, params: Params, query: Query) -> Selection | None:
    found = _one(catalogue.configs, "id")(world, params, query)
    if found is not None:
        return found
    return _one(lambda w: catalogue.configs(w, with_default=True), "id")(world, params, query)


def _invoices(world: World, params: Params, query: Query) -> Selection:
    rows = billing.invoices(world)
    since = query.get("start_date", "")[:10]
    return Selection(rows, [o for o in rows.ordinals() if str(rows.row(o)["invoice_date"]) >= since])


def _pdf(world: World, params: Params, query: Query) -> Selection | None:
    content = billing.invoice_pdf(world, params["invoice_id"])
    if content is None:
        return None
    return Selection.of([{"content": content, "media_type": "application/pdf", "size_bytes": len(content)}])


def _actions(world: World, params: Params, query: Query) -> Selection:
    index = world.service_index(query["service_id"])
    return Selection.of([]) if index is None else Selection.all(backups.actions(world, index))


def _all_actions(world: World, of_start: bool) -> Iterator[Row]:
    for index in world.service_indices(of_start=True):
        yield from Selection.all(backups.actions(world, index))


def _retention(world: World, params: Params, query: Query) -> Selection | None:
    wanted = (query["bucket_name"], query["provider"])
    rows = [row for row in logs.buckets(world) if (row["bucket_name"], row["provider"]) == wanted]
    return Selection.of(rows) if rows else None


def _bucket_secret(world: World, params: Params, query: Query) -> Selection | None:
    for n, row in enumerate(logs.buckets(world)):
        if (row["provider"], row["region"]) == (query["provider"], query["region"]):
            secret = f"{world.chance.bits('bucket', n):016x}"
            return Selection.of(
                [{"bucket": row["bucket_name"], "provider": row["provider"], "secret": secret}]
            )
    return None


def _log_servers(world: World, params: Params, query: Query) -> Selection | None:
    wanted = query.get("logType")
    rows = list(logs.servers(world))
    if wanted:
        suffix = wanted == "maxscale-log"
        rows = [row for row in rows if ("-mdb-mxs-" in str(row["server"])) == suffix]
    return Selection.of(rows)


def _nothing(world: World, params: Params, query: Query) -> Selection:
    return Selection.of([])


def _parents(make: Callable[[World], Rows], **names: str) -> Parents:
    """Path parameters by the field of the parent's row that gives each."""

    def parents(world: World, of_start: bool) -> Iterator[Params]:
        rows = make(world)
        for row in map(rows.row, rows.ordinals(of_start=of_start)):
            yield {param: str(row[source]) for param, source in names.items()}

    return parents


def _services(world: World, of_start: bool) -> Iterator[Params]:
    for index in world.service_indices(of_start=of_start):
        yield {"service_id": world.service_id(index)}


def _user_keys(world: World, of_start: bool) -> Iterator[Params]:
    for user in _parents(people.users, user_id="id")(world, of_start):
        keys = people.api_keys(world, user)
        for row in Selection.all(keys) if keys is not None else ():
            yield {**user, "key_id": str(row["key_id"])}


def _user_key(world: World, params: Params, query: Query) -> Selection | None:
    keys = people.api_keys(world, params)
    return None if keys is None else _one(lambda w: keys, "key_id")(world, params, query)


def _invitees(world: World, of_start: bool) -> Iterator[Params]:
    for row in Selection.all(people.invites(world)):
        invitees = row["invitees"]
        assert isinstance(invitees, list)
        yield from ({"invitee_id": invitee["id"]} for invitee in invitees)


def _org(world: World, of_start: bool) -> Iterator[Params]:
    yield {"org_id": world.org}


def _key_version(world: World, of_start: bool) -> Iterator[Params]:
    yield {"key_version": "1"}


def _equal(field_name: str) -> Filter:
    return lambda world, value: lambda row: str(row.get(field_name)) == value


def _switch(field_name: str) -> Filter:
    return lambda world, value: lambda row: bool(row.get(field_name)) == (value.lower() == "true")


def _dimension(name: str) -> Filter:
    """Rows whose `dimensions` name another value are left out; those without the dimension stay."""

    def test(world: World, value: str) -> Callable[[Row], bool]:
        def is_kept(row: Row) -> bool:
            dimensions = row.get("dimensions")
            return not isinstance(dimensions, dict) or dimensions.get(name, value) == value

        return is_kept

    return test


def _legacy(world: World, value: str) -> Callable[[Row], bool]:
    return lambda row: value.lower() != "true" or row.get("name") == "xpand"


def _completed(world: World, value: str) -> Callable[[Row], bool]:
    return lambda row: value.lower() != "false" or row.get("state") != "completed"


def _architecture_of(world: World, value: str) -> Callable[[Row], bool]:
    return lambda row: value != "azure" or row["name"] == "amd64"


def _category(world: World, value: str) -> Callable[[Row], bool]:
    wanted = set(value.split(","))
    return lambda row: row["category"] in wanted


def _named_service(world: World, value: str) -> Callable[[Row], bool]:
    return lambda row: str(row["display_string"]).startswith(f"{value}:")


def _bound(query: Query, name: str) -> int | None:
    value = query.get(name)
    if not value:
        return None
    if not value.lstrip("-").isdecimal():
        raise BadQuery(f"{name} must be epoch seconds")
    return int(value)


def _notifications(world: World, params: Params, query: Query) -> Selection:
    after, before = _bound(query, "created_after"), _bound(query, "created_before")
    return Selection(people.notifications(world), people.notification_ordinals(world, after, before))


def _instant(query: Query, name: str) -> datetime | None:
    value = query.get(name)
    if not value:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise BadQuery(f"{name} must be an ISO 8601 date-time") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _log_list(world: World, params: Params, query: Query) -> Selection:
    contexts = query.get("serverContext")
    services = list(dict.fromkeys(c.partition("/")[0] for c in contexts.split(","))) if contexts else None
    since, until = _instant(query, "fromDate"), _instant(query, "toDate")
    return Selection(logs.archive_list(world), logs.archive_ordinals(world, since, until, services))


def _any_of(field_name: str, *, is_prefix: bool = False) -> Filter:
    """One value or several with commas; a prefix ends at a slash."""

    def test(world: World, value: str) -> Callable[[Row], bool]:
        wanted = set(value.split(","))

        def is_kept(row: Row) -> bool:
            text = str(row.get(field_name))
            return text in wanted or (is_prefix and text.partition("/")[0] in wanted)

        return is_kept

    return test


_PRICING = {name: _dimension(name) for name in ("provider", "product", "topology", "tier")}
_PROVIDER_NAMES = _parents(catalogue.providers, provider_name="name")
_TOPOLOGY_NAMES = _parents(catalogue.topologies, topology_name="name")
_CONFIG_IDS = _parents(catalogue.configs, config_id="id")
_OFFERING_IDS = _parents(billing.offerings, id="offering_id")
_INVOICE_IDS = _parents(billing.invoices, invoice_id="invoice_id")
_SERVICE_PATH = "/provisioning/v1/services/{service_id}"
_TOPOLOGY_PATH = "/provisioning/v1/topologies/{topology_name}"
_PROVIDER_PATH = "/provisioning/v1/providers/{provider_name}"

_PROVISIONING = (
    Route(
        path="/provisioning/v1/architectures",
        select=_all(catalogue.architectures),
        filters={"provider": _architecture_of},
    ),
    Route(
        path="/provisioning/v1/cpu-architectures",
        select=_all(catalogue.architectures),
        filters={"provider": _architecture_of},
    ),
    Route(path="/provisioning/v1/entitlements", select=_all(catalogue.entitlements)),
    Route(path="/provisioning/v1/maintenance-windows", select=_all(catalogue.maintenance_windows)),
    Route(
        path="/provisioning/v1/providers", select=_all(catalogue.providers), filters={"name": _equal("name")}
    ),
    Route(
        path=f"{_PROVIDER_PATH}/iops", select=_under(catalogue.iops), has_tokens=True, parents=_PROVIDER_NAMES
    ),
    Route(
        path=f"{_PROVIDER_PATH}/volume-types",
        select=_under(catalogue.volume_types),
        has_tokens=True,
        parents=_PROVIDER_NAMES,
    ),
    Route(
        path=f"{_PROVIDER_PATH}/zones",
        select=_under(catalogue.zones_of_provider),
        has_tokens=True,
        filters={"region": _equal("region_name"), "provider": _equal("provider")},
        parents=_PROVIDER_NAMES,
    ),
    Route(
        path="/provisioning/v1/regions",
        select=_all(catalogue.regions),
        has_tokens=True,
        filters={"provider": _equal("provider")},
    ),
    Route(
        path="/provisioning/v1/regions/{region_name}/zones",
        select=_under(catalogue.zones_of_region),
        has_tokens=True,
        filters={"provider": _equal("provider")},
        parents=_parents(catalogue.regions, region_name="name"),
    ),
    Route(path="/provisioning/v1/service-types", select=_all(catalogue.service_types), has_tokens=True),
    Route(
        path="/provisioning/v1/sizes",
        select=_all(catalogue.sizes),
        has_tokens=True,
        filters={
            name: _equal(name) for name in ("architecture", "service_type", "provider", "topology", "type")
        },
    ),
    Route(path="/provisioning/v1/tiers", select=_all(catalogue.tiers), has_tokens=True),
    Route(
        path="/provisioning/v1/topologies",
        select=_all(catalogue.topologies),
        has_tokens=True,
        filters={"service_type": _equal("service_type"), "only_legacy": _legacy},
    ),
    Route(
        path=f"{_TOPOLOGY_PATH}/nodes",
        select=_under(catalogue.node_options),
        has_tokens=True,
        parents=_TOPOLOGY_NAMES,
    ),
    Route(
        path=f"{_TOPOLOGY_PATH}/options",
        select=_under(catalogue.topology_options),
        shape="object",
        parents=_TOPOLOGY_NAMES,
    ),
    Route(
        path=f"{_TOPOLOGY_PATH}/storage-sizes",
        select=_under(catalogue.storage_sizes),
        has_tokens=True,
        parents=_TOPOLOGY_NAMES,
    ),
    Route(
        path=f"{_TOPOLOGY_PATH}/configs",
        select=_under(catalogue.config_keys),
        has_tokens=True,
        parents=_TOPOLOGY_NAMES,
    ),
    Route(
        path="/provisioning/v1/versions",
        select=_all(catalogue.versions),
        has_tokens=True,
        filters={"topology": _equal("topology")},
    ),
    Route(path="/provisioning/v1/services", select=_all(lambda world: world.services), has_tokens=True),
    Route(path=_SERVICE_PATH, select=_service, shape="object", parents=_services),
    Route(
        path=f"{_SERVICE_PATH}/maintenance",
        select=_of_service(backups.maintenance),
        filters={"include_completed": _completed},
        parents=_services,
    ),
    Route(path=f"{_SERVICE_PATH}/replicas", select=_of_service(backups.replicas), parents=_services),
    Route(
        path=f"{_SERVICE_PATH}/security/allowlist", select=_of_service(backups.allow_list), parents=_services
    ),
    Route(
        path=f"{_SERVICE_PATH}/security/credentials",
        select=_of_service(backups.credentials),
        shape="object",
        parents=_services,
        is_secret=True,
    ),
    Route(path="/provisioning/v1/configs", select=_configs, has_tokens=True),
    Route(path="/provisioning/v1/configs/{config_id}", select=_config, shape="object", parents=_CONFIG_IDS),
    Route(
        path="/provisioning/v1/configs/{config_id}/values",
        select=_under(catalogue.config_values),
        status=202,
        parents=_CONFIG_IDS,
    ),
    Route(path="/als/v1/actions", select=_actions, required=("service_id",), truth=_all_actions),
)

_SKYBACKUP = (
    Route(
        path="/skybackup/v1/backups",
        select=_scoped("backups", backups.backups, may_need_service=False),
        shape="pages",
        envelope="backups",
        filters={"status": _equal("status")},
    ),
    Route(
        path="/skybackup/v1/backups/schedules",
        select=_scoped("schedules", backups.schedules, may_need_service=True),
        shape="pages",
        envelope="schedules",
        filters={"type": _equal("type")},
        truth=lambda world, of_start: _rows_of(backups.schedules(world), of_start),
    ),
    Route(
        path="/skybackup/v1/backups/schedules/{id}",
        select=_numbered(backups.schedules),
        shape="object",
        parents=_parents(backups.schedules, id="id"),
    ),
    Route(
        path="/skybackup/v1/backups/{service_id}",
        select=_backups_of_service,
        shape="pages",
        envelope="backups",
        parents=_services,
    ),
    Route(
        path="/skybackup/v1/restores",
        select=_scoped("restores", backups.restores, may_need_service=True),
        shape="pages",
        envelope="restores",
        filters={"type": _equal("type")},
        truth=lambda world, of_start: _rows_of(backups.restores(world), of_start),
    ),
    Route(
        path="/skybackup/v1/restores/pointintime/lookup",
        select=lambda world, params, query: Selection.of(list(backups.lookup(world))),
        shape="envelope",
        envelope="services",
    ),
    Route(
        path="/skybackup/v1/restores/{id}",
        select=_numbered(backups.restores),
        shape="object",
        parents=_parents(backups.restores, id="id"),
    ),
)

_ORGANIZATION = (
    Route(path="/organization/v1/users", select=_all(people.users), when_empty=204),
    Route(
        path="/organization/v1/users/{user_id}",
        select=_one(people.users, "id"),
        shape="object",
        parents=_parents(people.users, user_id="id"),
    ),
    Route(
        path="/organization/v1/users/{user_id}/api-keys",
        select=_under(people.api_keys),
        parents=_parents(people.users, user_id="id"),
        secret_fields=("api_key",),
    ),
    Route(
        path="/organization/v1/users/{user_id}/api-keys/{key_id}",
        select=_user_key,
        shape="object",
        parents=_user_keys,
        secret_fields=("api_key",),
    ),
    Route(
        path="/organization/v1/invitees/{invitee_id}",
        select=_under(people.invites_of_invitee),
        shape="object",
        parents=_invitees,
        secret_fields=("invitees.url",),
    ),
    Route(path="/organization/v1/invites", select=_all(people.invites), secret_fields=("invitees.url",)),
    Route(
        path="/organization/v1/invites/{invite_id}",
        select=_one(people.invites, "id"),
        shape="object",
        parents=_parents(people.invites, invite_id="id"),
        secret_fields=("invitees.url",),
    ),
    Route(
        path="/public/services/ous/public-key/{key_version}",
        select=_under(people.public_key),
        shape="object",
        parents=_key_version,
    ),
    Route(
        path="/organization/v1/orgs/{org_id}",
        select=_under(people.organization),
        shape="object",
        parents=_org,
    ),
    Route(path="/organization/v1/projects", select=_all(people.projects), when_empty=204),
    Route(
        path="/organization/v1/projects/{project_id}",
        select=_one(people.projects, "id"),
        shape="object",
        parents=_parents(people.projects, project_id="id"),
    ),
    Route(path="/organization/v1/roles", select=_all(people.roles), when_empty=204),
    Route(
        path="/organization/v1/roles/{role_id}",
        select=_one(people.roles, "id"),
        shape="object",
        parents=_parents(people.roles, role_id="id"),
    ),
)

_BILLING = (
    Route(path="/billing/v1/account", select=_all(billing.account), shape="object"),
    Route(path="/billing/v1/account/postpaid-commit-ledger", select=_all(billing.commit_ledger)),
    Route(path="/billing/v1/account/prepaid-credit-ledger", select=_all(billing.credit_ledger)),
    Route(path="/billing/v1/bills", select=_bill(billing.bill), shape="nullable", truth=_bills(billing.bill)),
    Route(path="/billing/v1/contacts", select=_all(billing.contacts)),
    Route(path="/billing/v1/contracts/{org_id}", select=_under(billing.contracts), parents=_org),
    Route(path="/billing/v1/invoices", select=_invoices),
    Route(
        path="/billing/v1/invoices/{invoice_id}",
        select=_under(billing.invoice_details),
        shape="object",
        parents=_INVOICE_IDS,
    ),
    Route(
        path="/billing/v1/locale/country",
        select=_all(billing.countries),
        filters={"active": _switch("active")},
    ),
    Route(
        path="/billing/v1/locale/state-province",
        select=_all(billing.states),
        filters={"active": _switch("active"), "country": _equal("country")},
    ),
    Route(
        path="/billing/v1/meters/{id}",
        select=_under(lambda world, params: billing.meters(world, params["id"])),
        filters=_PRICING,
        parents=_OFFERING_IDS,
    ),
    Route(path="/billing/v1/offerings", select=_all(billing.offerings), filters=_PRICING),
    Route(
        path="/billing/v1/offerings/{id}/meters",
        select=_under(lambda world, params: billing.meters(world, params["id"])),
        filters=_PRICING,
        parents=_OFFERING_IDS,
    ),
    Route(path="/billing/v1/payment-methods", select=_all(billing.payment_methods)),
    Route(
        path="/billing/v1/prices/{offering}",
        select=_under(lambda world, params: billing.prices(world, params["offering"])),
        filters=_PRICING,
        parents=_parents(billing.offerings, offering="offering_id"),
    ),
    Route(path="/billing/v1/tax", select=_under(lambda world, params: billing.tax(world)), shape="object"),
    Route(
        path="/billing/v2/bills",
        select=_bill(billing.bill_v2),
        shape="nullable",
        truth=_bills(billing.bill_v2),
    ),
    Route(
        path="/public/services/bcs/invoices/{invoice_id}/pdf",
        select=_pdf,
        shape="pdf",
        parents=_INVOICE_IDS,
    ),
)

_NOTIFICATIONS = (
    Route(path="/notifications/v1/channels/emails", select=_all(people.channels)),
    Route(
        path="/notifications/v1/channels/emails/{channel_id}",
        select=_one(people.channels, "id"),
        shape="object",
        parents=_parents(people.channels, channel_id="id"),
    ),
    Route(
        path="/notifications/v1/notifications",
        select=_notifications,
        ever=people.ever_notified,
        is_event=True,
        has_tokens=True,
        filters={
            "category": _category,
            "service_name": _named_service,
        },
    ),
    Route(path="/notifications/v1/preferences", select=_all(people.preferences), shape="object"),
    Route(
        path="/notifications/v1/service/progress",
        select=_all(people.progress),
        filters={"service_id": _equal("service_id")},
    ),
)

_COPILOT = (
    Route(path="/copilot/v1/agent/", select=_all(copilot.agents)),
    Route(
        path="/copilot/v1/agent/{agent_id}",
        select=_one(copilot.agents, "id"),
        shape="object",
        parents=_parents(copilot.agents, agent_id="id"),
    ),
    Route(
        path="/copilot/v1/agent/{agent_id}/export",
        select=_under(copilot.export),
        shape="object",
        parents=_parents(copilot.agents, agent_id="id"),
    ),
    Route(path="/copilot/v1/data-source/", select=_all(copilot.data_sources)),
    Route(
        path="/copilot/v1/data-source/{datasource_id}",
        select=_under(copilot.data_source),
        shape="object",
        parents=_parents(copilot.data_sources, datasource_id="id"),
    ),
    Route(path="/copilot/v1/quota/", select=_quota, filters={"event": _equal("name")}, truth=_quotas),
    Route(path="/copilot/v1/session/", select=_all(copilot.sessions), when_empty=404),
    Route(
        path="/copilot/v1/session/{session_id}",
        select=_under(copilot.session),
        shape="object",
        parents=_parents(copilot.sessions, session_id="id"),
    ),
)

_OBSERVABILITY = (
    Route(
        path="/observability/v2/logs",
        select=_log_list,
        shape="offset",
        envelope="logs",
        filters={
            "serverContext": _any_of("serverDataSourceId", is_prefix=True),
            "logType": _any_of("logType"),
        },
    ),
    Route(
        path="/observability/v2/logs/archive",
        select=_nothing,
        shape="archive",
        required=("logIds",),
        truth=lambda world, of_start: logs.log_rows(world),
        is_event=True,
    ),
    Route(
        path="/observability/v2/logs/credentials",
        select=_bucket_secret,
        shape="object",
        required=("provider", "region"),
        is_secret=True,
    ),
    Route(
        path="/observability/v2/logs/retention",
        select=_retention,
        shape="object",
        required=("bucket_name", "provider"),
        truth=lambda world, of_start: iter(logs.buckets(world)),
    ),
    Route(path="/observability/v2/logs/servers", select=_log_servers, shape="envelope", envelope="servers"),
    Route(
        path="/observability/v2/logs/types",
        select=lambda world, params, query: Selection.of(logs.log_types()),
        shape="envelope",
        envelope="logTypes",
    ),
    Route(
        path="/observability/v2/metrics",
        select=_nothing,
        shape="metrics",
        truth=lambda world, of_start: metrics.truth(world),
        ever=metrics.scraped,
        is_event=True,
    ),
    Route(path="/observability/v2/query", select=_nothing, shape="promql", required=("query",), parents=None),
    Route(
        path="/observability/v2/query_range",
        select=_nothing,
        shape="promql",
        required=("query", "start", "end", "step"),
        parents=None,
    ),
)


def _rows_of(rows: Rows, of_start: bool) -> Iterator[Row]:
    return map(rows.row, rows.ordinals(of_start=of_start))


ROUTES: Mapping[str, Route] = MappingProxyType(
    {
        route.path: route
        for route in (
            *_PROVISIONING,
            *_SKYBACKUP,
            *_ORGANIZATION,
            *_BILLING,
            *_NOTIFICATIONS,
            *_COPILOT,
            *_OBSERVABILITY,
        )
    }
)

_FIXED = {route.segments: route for route in ROUTES.values() if "{" not in route.path}
_Names = tuple[tuple[str | None, ...], tuple[str, ...]]


def _names(route: Route) -> _Names:
    parts = route.segments
    return tuple(part[1:-1] if part.startswith("{") else None for part in parts), parts


_OPEN: dict[int, list[tuple[Route, _Names]]] = {}
for _route in ROUTES.values():
    if "{" in _route.path:
        _OPEN.setdefault(len(_route.segments), []).append((_route, _names(_route)))
