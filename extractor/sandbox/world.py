"""The organization that the sandbox serves: its time, its services, and their servers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from extractor.sandbox.chance import Chance, Scramble
from extractor.sandbox.history import PLOTS, Chapter, Story
from extractor.sandbox.options import SandboxOptions
from extractor.sandbox.rows import Ragged, Row, Rows

__all__ = ("AGE_DAYS", "ON_PREMISES_ID", "PROVIDERS", "REGIONS", "SHAPES", "Server", "World", "instant")

# Everything with a time happened in so many days before the anchor.
AGE_DAYS = 28
_AGE_SECONDS = AGE_DAYS * 86_400

PROVIDERS = ("aws", "gcp", "azure")
REGIONS = {
    "aws": (
        "us-east-1 us-east-2 us-west-2 ca-central-1 eu-central-1 eu-north-1 eu-south-1 eu-west-1 eu-west-2 "
        "eu-west-3 ap-northeast-1 ap-south-1 ap-southeast-1 ap-southeast-2"
    ).split(),
    "gcp": (
        "us-central1 us-east1 us-east4 us-east5 us-south1 us-west1 us-west2 us-west4 northamerica-northeast1 "
        "northamerica-northeast2 southamerica-east1 europe-north1 europe-west1 europe-west2 europe-west3 "
        "europe-west4 asia-south1 asia-southeast1 australia-southeast1"
    ).split(),
    "azure": "eastus eastus2 westus2 centralus northeurope westeurope uksouth southeastasia".split(),
}

# Topology, database nodes and MaxScale nodes of service i are those of i % 5.
SHAPES = (
    ("standalone", 1, 0),
    ("es-replica", 2, 1),
    ("galera", 3, 1),
    ("serverless-standalone", 1, 0),
    ("es-replica", 2, 2),
)
_WORDS = "amber birch cedar delta ember fjord grove haven inlet jolly keen lunar".split()
# Letters of a service id; their number shares no factor with ten, so that digits do not fix them.
_HEADS = tuple(a + b + c for a in "abcdefghkmn" for b in "opqrstvwxyz" for c in "abdeghklmps")
_COMMENTS = ("office", "backup host", "zażółć gęślą jaźń")
_STATUSES = ("ready",) * 12 + ("stopped", "pending_scale", "pending_modifying", "failed")
_WINDOWS = ("1st and 3rd Sat 8:00 PM UTC", "2nd and 4th Sun 2:00 AM UTC", "every Wed 11:00 PM UTC")

ON_PREMISES_ID = "onprem01"
# Monitored, but not run by the provisioning service: known to observability alone.
_ON_PREMISES = (("onprem-reporting", "dc1-db-1"), ("onprem-reporting", "dc1-db-2"))

# Names that identify a row or lead to another; a row never lacks them.
_LASTING = frozenset(
    (
        "id name key_id service_id service_name org_id invoice_id offering_id meter_id number period "
        "created_on created_at type invitees iso3166_2 iso_short country subscriber_id payment_method_id "
        "serverDataSourceId server service logType startTime config_key_id category display_string "
        "invoice_date provider region_name topology tier status backup_id key"
    ).split()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One monitored server: `kind` is "server" or "maxscale"."""

    index: int
    name: str
    kind: str
    service_id: str
    service_name: str
    topology: str | None

    @property
    def source_id(self) -> str:
        """What observability calls serverDataSourceId; it contains a slash."""
        return f"{self.service_id}/{self.name}"


class World:
    """The data of one organization, all of it decided by options and organization id.

    Rows are made when asked for; only inserted ones are kept. `version` differs when data do. With the option
    `changes` time passes: `catch_up` brings the rows to the present moment.
    """

    def __init__(self, options: SandboxOptions, org: str, anchor: datetime, now: Callable[[], float]) -> None:
        self.options = options
        self.org = org
        self.anchor = anchor
        self.now = now
        self.chance = Chance(options.seed, org)
        self.anchor_epoch = int(anchor.timestamp())
        self.birth_epoch = self.anchor_epoch - _AGE_SECONDS
        self.archive_growth = 0
        self.choices: dict[tuple[object, ...], tuple[Rows, list[int]]] = {}  # what filters chose of late
        self.scraped: set[int] = set()  # the minutes in which metrics were read, where time passes
        self._kept: dict[str, Rows] = {}
        self._stories: dict[str, Callable[[float], Chapter]] = {}
        self._present = self.anchor_epoch
        self._upgrade_deadline = instant(self.anchor_epoch - 86_400)
        self._users = tuple(self.chance.uuid("user", n) for n in range(12))
        self._configs = tuple(self.chance.uuid("config", n) for n in range(12))
        self._projects = tuple(self.chance.uuid("project", n) for n in range(3))
        self._service_numbers = Scramble(76_543_217, 10**9, self.chance.bits("service number", 0))
        self.server_shape = Ragged(*(nodes + proxies for _, nodes, proxies in SHAPES))
        self.services = self.rows(options.services, self._service, self._fresh_service)
        self._kept["services"] = self.services
        self._tell("services")
        self.catch_up()

    @property
    def version(self) -> int:
        """A number that changes whenever a row was added or time has passed."""
        if self.options.changes:
            return self._present
        return self.archive_growth + sum(len(rows.inserted) for rows in self._kept.values())

    @property
    def elapsed(self) -> int:
        """Seconds since the anchor at which the rows stand; 0 where time does not pass."""
        return self._present - self.anchor_epoch

    @property
    def minute(self) -> int:
        """The minute since the epoch at which the rows stand; 0 where time does not pass."""
        return self._present // 60 if self.options.changes else 0

    def catch_up(self) -> None:
        """Bring the rows to the present second."""
        present = max(self.anchor_epoch, int(self.now()))
        if self.options.changes and present != self._present:
            self._present = present
            for name in self._kept:
                self._tell(name)

    def kept(self, name: str, make: Callable[[], Rows]) -> Rows:
        """The collection of that name, made once, so that what is inserted stays."""
        rows = self._kept.get(name)
        if rows is None:
            rows = self._kept[name] = make()
            self._tell(name)
        return rows

    def narrate(self, name: str, story: Callable[[float], Chapter]) -> None:
        """Let the collection of that name go by a story of its own."""
        if name not in self._stories:
            self._stories[name] = story
            if name in self._kept:
                self._tell(name)

    def _tell(self, name: str) -> None:
        if not self.options.changes:
            return
        rows = self._kept[name]
        if name not in self._stories:
            plot = PLOTS.get(name)
            if plot is None or not rows.count:
                return
            self._stories[name] = Story(
                name,
                plot,
                self.chance,
                anchor=self.anchor_epoch,
                per_day=self.options.changes,
                count=rows.count,
            ).chapter
        chapter = self._stories[name](self._present)
        key = PLOTS[name].key if name in PLOTS else "id"
        rows.grow(
            chapter.added,
            lambda number, first: {**first, key: self.chance.uuid(f"added {name}", number)},
        )
        rows.absent, rows.changed = chapter.absent, chapter.changed

    def rows(self, count: int, at: Callable[[int], Row], fresh: Callable[[int], Row] | None = None) -> Rows:
        """A collection of this world, with the keys that the variants add and take away."""
        variants = self.options.variants
        if "missing-fields" in variants:
            at = _lacking(at)
        if "extra-fields" in variants:
            at = _extended(at)
        return Rows(count, at, fresh)

    def keyed(self, rows: list[Row], *keys: str, label: str) -> Rows:
        """A collection of listed rows; an inserted one is a copy of the first with its own `keys`."""

        def fresh(number: int) -> Row:
            row = dict(rows[0])
            for key in keys:
                is_uuid = key == "id"
                row[key] = self.chance.uuid(f"inserted {label}", number) if is_uuid else f"inserted-{number}"
            return row

        return self.rows(len(rows), rows.__getitem__, fresh if rows and keys else None)

    def moment(self, kind: str, index: int, *, back_days: float = AGE_DAYS) -> int:
        """An epoch second in the last `back_days` before the anchor."""
        return self.anchor_epoch - 1 - self.chance.bits(kind, index) % int(back_days * 86_400 - 1)

    def service_id(self, index: int) -> str:
        """The id of a service; an index from `options.services` on is one inserted later."""
        number = self._service_numbers.forward(index)
        return f"db{_HEADS[number % len(_HEADS)]}{number:09d}"

    def service_index(self, service_id: str) -> int | None:
        """The index of a service by its id; None where there is no such service."""
        if len(service_id) != 14 or not service_id[5:].isascii() or not service_id[5:].isdigit():
            return None
        index = self._service_numbers.back(int(service_id[5:]))
        count = self.services.count
        is_known = index < count + len(self.services.inserted)
        is_known = is_known and (index if index < count else count - index - 1) not in self.services.absent
        return index if is_known and self.service_id(index) == service_id else None

    def service_name(self, index: int) -> str:
        """The name of a service; unique in the organization."""
        return f"{self.chance.pick('service name', index, _WORDS)}-{index:05d}"

    def service_indices(self, *, of_start: bool = False) -> Iterator[int]:
        """The indices of all services, inserted ones first unless left out."""
        count = self.services.count
        for ordinal in self.services.ordinals(of_start=of_start):
            yield ordinal if ordinal >= 0 else count - ordinal - 1

    def service_row(self, index: int) -> Row:
        """The row of a service by index."""
        count = self.services.count
        return self.services.row(index if index < count else count - index - 1)

    def topology(self, index: int) -> str:
        """The topology of a service."""
        return SHAPES[index % 5][0]

    def provider(self, index: int) -> str:
        """The cloud provider of a service."""
        return PROVIDERS[index % 3]

    def region(self, index: int) -> str:
        """The region of a service."""
        return self.chance.pick("service region", index, REGIONS[PROVIDERS[index % 3]])

    @property
    def server_count(self) -> int:
        """Monitored servers, those on premises among them."""
        return self.server_shape.start(self.services.count) + len(_ON_PREMISES)

    def server(self, index: int) -> Server:
        """The server of an index below `server_count`."""
        cloud = self.server_shape.start(self.services.count)
        if index >= cloud:
            service, name = _ON_PREMISES[index - cloud]
            return Server(
                index=index,
                name=name,
                kind="server",
                service_id=ON_PREMISES_ID,
                service_name=service,
                topology=None,
            )
        parent, place = self.server_shape.locate(index)
        _, nodes, _ = SHAPES[parent % 5]
        is_database = place < nodes
        service = self.service_name(parent)
        return Server(
            index=index,
            name=f"{service}-mdb-ms-{place}" if is_database else f"{service}-mdb-mxs-{place - nodes}",
            kind="server" if is_database else "maxscale",
            service_id=self.service_id(parent),
            service_name=service,
            topology=self.topology(parent),
        )

    def _fresh_service(self, number: int) -> Row:
        return self._service(self.services.count + number)

    def _service(self, index: int) -> Row:
        bits = self.chance.bits("service", index)
        topology, nodes, proxies = SHAPES[index % 5]
        provider, region = self.provider(index), self.region(index)
        service_id, name = self.service_id(index), self.service_name(index)
        created = self.birth_epoch + bits % (_AGE_SECONDS // 2)
        updated = created + (bits >> 20) % (_AGE_SECONDS // 2)
        fqdn = f"{service_id}.sysp0000.db.skysql.example"
        is_serverless = topology == "serverless-standalone"
        return {
            "analytics": False,
            "architecture": "arm64" if bits & 64 else "amd64",
            "assigned_on": created + 5,
            "availability_zone": f"{region}-{'abc'[bits % 3]}",
            "config_id": self._configs[bits % 12] if bits & 1 else "",
            "created_by": self._users[bits % 12],
            "created_on": created,
            "custom_ssl": bool(bits & 2),
            "data_center": region,
            "domains": [f"{name}.example.com"] if bits & 12 == 4 else [],
            "endpoints": _endpoints(bits, fqdn, proxies),
            "errors": None if bits & 7 else ["volume resize postponed"],
            "fqdn": fqdn,
            "id": service_id,
            "is_active": True,
            "maintenance_window": _WINDOWS[bits % 3],
            "maxscale_nodes": proxies,
            "maxscale_size": "sky-2x4" if proxies else "",
            "name": name,
            "nodes": nodes,
            "nosql_enabled": bool(bits & 16 and proxies),
            "outbound_ips": [f"198.51.100.{bits % 250}", f"203.0.113.{bits % 199}"][: nodes - 1 or 1],
            "primary_host": f"{name}-mdb-ms-0",
            "project_id": self._projects[bits % 3],
            "provider": provider,
            "region": region,
            "replication_enabled": nodes > 1,
            "scale_options": {"max_compute": 8, "min_compute": 1, "suspend_enabled": True}
            if is_serverless
            else None,
            "service_type": "transactional",
            "size": ("sky-2x8", "sky-4x16", "sky-8x32", "sky-16x64")[bits >> 7 & 3],
            "ssl_enabled": bits & 31 != 31,
            "status": _STATUSES[bits >> 9 & 15],
            "storage_volume": _volume(bits, provider),
            "tags": _tags(bits, name),
            "tenancy": "dedicated" if bits & 128 else "shared",
            "tier": "power" if bits & 256 else "foundation",
            "topology": topology,
            "updated_by": self._users[(bits >> 8) % 12],
            "updated_on": updated,
            "upgrades": {
                "kubernetes_upgrade_deadline": self._upgrade_deadline if bits & 3 == 3 else "",
                "kubernetes_upgrade_in_progress": bits & 15 == 15,
                "kubernetes_upgrade_status": ("ok", "available", "required")[bits % 3],
            },
            "version": ("10.6.22-18-1", "10.11.13-9-1", "11.4.7-4-1", "11.8.2-1")[bits >> 13 & 3],
            "volume_modified_on": 0 if bits & 512 else updated,
        }


def instant(epoch: int) -> str:
    """An epoch second as RFC 3339 in UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=epoch)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _endpoints(bits: int, fqdn: str, proxies: int) -> list[Row]:
    ports: list[Row] = [{"name": "readwrite", "port": 3306, "purpose": "readwrite"}]
    if proxies:
        ports.append({"name": "readonly", "port": 3307, "purpose": "readonly"})
    if bits & 16 and proxies:
        ports.append({"name": "nosql", "port": 27017, "purpose": "nosql"})
    is_private = bits & 96 == 96
    accounts = [{"alias": "analytics", "id": f"{bits % 10**12:012d}"}] if is_private else None
    return [
        {
            "allow_list": _allow_list(bits),
            "allowed_accounts": [],
            "endpoint_service": f"com.example.vpce.{bits % 9973}" if is_private else "",
            "fqdn": fqdn,
            "ips": [f"192.0.2.{bits % 251}"],
            "mechanism": "privateconnect" if is_private else "nlb",
            "name": "primary",
            "ports": ports,
            "private_link": {"accounts": accounts} if accounts else None,
            "private_service_connect": None,
            "visibility": "private" if is_private else "public",
        }
    ]


def _allow_list(bits: int) -> list[Row]:
    return [{"comment": _COMMENTS[n], "ip": f"203.0.113.{(bits >> n) % 250}/32"} for n in range(bits % 4 % 3)]


def _volume(bits: int, provider: str) -> Row:
    return {
        "iops": 3000 + bits % 13 * 100,
        "size": 100 << bits % 5,
        "throughput": 125 + bits % 7 * 25,
        "volume_type": {"aws": "gp3", "gcp": "pd-ssd", "azure": "Premium_LRS"}[provider],
    }


def _tags(bits: int, name: str) -> Row:
    tags: Row = {"name": name}
    if bits & 1:
        tags["cost center"] = str(bits % 900 + 100)
    if bits & 2:
        tags[f"team/{('web', 'data', 'ops')[bits % 3]}"] = "true"
    if bits & 60 == 60:
        tags["k8s.io/app"] = ""
        tags['"quoted"'] = "łódź"
    return tags if bits & 1020 else {}


def _lacking(at: Callable[[int], Row]) -> Callable[[int], Row]:
    def lacking(index: int) -> Row:
        row = at(index)
        if index % 3 != 1:
            return row
        return {
            key: value for n, (key, value) in enumerate(row.items()) if key in _LASTING or (n + index) % 4
        }

    return lacking


def _extended(at: Callable[[int], Row]) -> Callable[[int], Row]:
    def extended(index: int) -> Row:
        row = at(index)
        if index % 3 == 0:
            return row
        return {**row, "is_default": index % 2 == 0, "cache_backend": {"kind": "gg8", "nodes": index % 7}}

    return extended
