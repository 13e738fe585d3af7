"""The offering: providers, regions, zones, sizes, tiers, topologies, versions, and configurations."""

from __future__ import annotations

from collections.abc import Mapping

from extractor.sandbox.rows import Row, Rows
from extractor.sandbox.world import PROVIDERS, REGIONS, World, instant

__all__ = (
    "architectures",
    "config_keys",
    "config_values",
    "configs",
    "entitlements",
    "iops",
    "maintenance_windows",
    "node_options",
    "providers",
    "regions",
    "service_types",
    "sizes",
    "storage_sizes",
    "tiers",
    "topologies",
    "topology_options",
    "versions",
    "volume_types",
    "zones_of_provider",
    "zones_of_region",
)

_DISPLAY = {"aws": "Amazon AWS", "gcp": "Google Cloud", "azure": "Microsoft Azure"}
_AREAS = {"us": "NA", "no": "NA", "ca": "NA", "ce": "NA", "ea": "NA", "we": "NA", "eu": "EMEA", "uk": "EMEA"}
_TIERS = ("foundation", "power")
_TOPOLOGIES = (
    ("standalone", "transactional", "innodb"),
    ("es-single", "transactional", "innodb"),
    ("es-replica", "transactional", "innodb"),
    ("primary-replica", "transactional", "innodb"),
    ("galera", "transactional", "innodb"),
    ("serverless-standalone", "transactional", "innodb"),
    ("sa", "analytical", "columnstore"),
    ("csdw", "analytical", "columnstore"),
    ("columnstore-cluster", "analytical", "columnstore"),
    ("htap", "analytical", "columnstore"),
    ("xpand", "transactional", "xpand"),
    ("lakehouse", "analytical", "columnstore"),
)
_SHAPES = (
    (2, 4),
    (2, 8),
    (2, 16),
    (4, 16),
    (4, 32),
    (8, 32),
    (8, 64),
    (16, 64),
    (16, 128),
    (32, 128),
    (64, 256),
)
_RELEASES = ("10.4.34-24", "10.5.28-20", "10.6.21-17", "10.6.22-18", "10.11.13-9", "11.4.7-4", "11.8.2-1")
_VARIABLES = (
    "max_connections innodb_buffer_pool_size sql_mode wait_timeout slow_query_log long_query_time log_output "
    "character_set_server collation_server max_allowed_packet tmp_table_size join_buffer_size"
).split()


def architectures(world: World) -> Rows:
    """CPU architectures."""
    rows: list[Row] = [
        {"display_name": text, "id": world.chance.uuid("architecture", n), "name": name}
        for n, (name, text) in enumerate((("amd64", "AMD64"), ("arm64", "ARM64")))
    ]
    return world.kept("architectures", lambda: world.keyed(rows, label="architecture"))


def entitlements(world: World) -> Rows:
    """What the organization may create."""
    rows: list[Row] = [
        {"name": "transactional", "topologies": ["standalone", "es-replica", "galera"]},
        {"name": "analytical", "topologies": []},
        {"name": "serverless", "topologies": ["serverless-standalone"]},
    ]
    return world.kept("entitlements", lambda: world.keyed(rows, label="entitlement"))


def maintenance_windows(world: World) -> Rows:
    """The windows that a service may choose."""
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    rows: list[Row] = [
        {
            "display_name": f"every {day} 11:00 PM UTC",
            "id": world.chance.uuid("window", n),
            "name": f"weekly-{n}",
        }
        for n, day in enumerate(days)
    ]
    return world.kept("maintenance windows", lambda: world.keyed(rows, label="window"))


def providers(world: World) -> Rows:
    """The three clouds."""
    rows: list[Row] = [
        {
            "active": True,
            "default": name == "gcp",
            "display_name": _DISPLAY[name],
            "id": world.chance.uuid("provider", n),
            "iops_min": 100,
            "iops_per_gb": n + 1,
            "name": name,
            "volume_size_max_gb": 2000,
            "volume_size_min_gb": 8,
        }
        for n, name in enumerate(PROVIDERS)
    ]
    return world.kept("providers", lambda: world.keyed(rows, label="provider"))


def iops(world: World, params: Mapping[str, str]) -> Rows | None:
    """Ranges of I/O operations of one provider; none at all on azure."""
    name = params["provider_name"]
    if name not in PROVIDERS:
        return None
    return world.kept(f"iops {name}", lambda: world.keyed(_iops(world, name), "id", label=f"iops {name}"))


def volume_types(world: World, params: Mapping[str, str]) -> Rows | None:
    """Volume types of one provider, each with the provider's ranges nested."""
    name = params["provider_name"]
    if name not in PROVIDERS:
        return None
    types = {"aws": ("gp2", "gp3", "io1"), "gcp": ("pd-balanced", "pd-ssd"), "azure": ("Premium_LRS",)}[name]
    rows: list[Row] = [
        {
            "created_on": world.birth_epoch + n,
            "display_name": kind.upper(),
            "id": world.chance.uuid(f"volume {name}", n),
            "iops": [row for row in _iops(world, name) if row["volume_type_name"] == kind],
            "is_default": n == 0,
            "name": kind,
            "provider": name,
            "updated_on": 0 if n else world.birth_epoch + 77,
        }
        for n, kind in enumerate(types)
    ]
    return world.kept(f"volumes {name}", lambda: world.keyed(rows, "id", "name", label=f"volume {name}"))


def regions(world: World) -> Rows:
    """All 41 regions: 14 of aws, 19 of gcp, 8 of azure."""
    return world.kept("regions", lambda: world.keyed(_regions(world), "id", "name", label="region"))


def zones_of_provider(world: World, params: Mapping[str, str]) -> Rows | None:
    """The zones of all regions of one provider."""
    name = params["provider_name"]
    if name not in PROVIDERS:
        return None
    rows = [zone for region in REGIONS[name] for zone in _zones(world, name, region)]
    return world.kept(f"zones {name}", lambda: world.keyed(rows, "id", "name", label=f"zone {name}"))


def zones_of_region(world: World, params: Mapping[str, str]) -> Rows | None:
    """The zones of one region; a region inserted later has none."""
    name = params["region_name"]
    provider = next((key for key, names in REGIONS.items() if name in names), None)
    if provider is None:
        return None if regions(world).find_inserted("name", name) is None else Rows.of(())
    rows = _zones(world, provider, name)
    return world.kept(f"zones in {name}", lambda: world.keyed(rows, "id", "name", label=f"zone in {name}"))


def service_types(world: World) -> Rows:
    """Kinds of services."""
    rows: list[Row] = [
        {
            "description": f"Services for {name} work\nin the cloud",
            "display_name": name.title(),
            "id": world.chance.uuid("service type", n),
            "name": name,
            "order": n * 10,
            "short_description": name,
        }
        for n, name in enumerate(("transactional", "analytical", "serverless"))
    ]
    return world.kept("service types", lambda: world.keyed(rows, "id", "name", label="service type"))


def sizes(world: World) -> Rows:
    """Node sizes: the same name once for each provider, tier, architecture, topology and kind."""
    return world.kept("sizes", lambda: world.keyed(_sizes(world), "id", label="size"))


def tiers(world: World) -> Rows:
    """Service tiers, each with whole topologies nested."""
    rows: list[Row] = [
        {
            "description": f"The {name} tier",
            "display_name": name.title(),
            "id": world.chance.uuid("tier", n),
            "is_active": name != "community",
            "name": name,
            "topologies": _topologies(world)[: 3 * n],
        }
        for n, name in enumerate((*_TIERS, "community"))
    ]
    return world.kept("tiers", lambda: world.keyed(rows, "id", "name", label="tier"))


def topologies(world: World) -> Rows:
    """Topologies; more than a default page of them."""
    return world.kept("topologies", lambda: world.keyed(_topologies(world), "id", "name", label="topology"))


def node_options(world: World, params: Mapping[str, str]) -> Rows | None:
    """Numbers of nodes that a topology allows in each tier."""
    rows: list[Row] = [
        {
            "default_maxscale_nodes": n,
            "id": world.chance.uuid(f"nodes {params['topology_name']}", n),
            "maxscale_nodes": [1, 2][: n + 1],
            "nodes": list(range(1, 4 + n)),
            "tier": tier,
            "topology": params["topology_name"],
        }
        for n, tier in enumerate(_TIERS)
    ]
    return _of_topology(world, params, "nodes", rows)


def topology_options(world: World, params: Mapping[str, str]) -> Rows | None:
    """The options of one topology: a single row."""
    if topologies(world).find("name", params["topology_name"]) is None:
        return None
    bits = world.chance.bits("topology options", len(params["topology_name"]))
    cpu: Row = {"default": [2, 4], "range": list(range(1, 3 + bits % 6))}
    return Rows.of([{"nosql_available": bool(bits & 1), "scale_options": {"cpu": cpu}}])


def storage_sizes(world: World, params: Mapping[str, str]) -> Rows | None:
    """Volume sizes that a topology allows in each tier, in GB."""
    rows: list[Row] = [
        {
            "id": world.chance.uuid(f"storage {params['topology_name']}", n),
            "storage_sizes": [100 << shift for shift in range(3 + n)],
            "tier": tier,
            "topology": params["topology_name"],
        }
        for n, tier in enumerate(_TIERS)
    ]
    return _of_topology(world, params, "storage", rows)


def config_keys(world: World, params: Mapping[str, str]) -> Rows | None:
    """The configuration parameters of one topology."""
    rows = [_config_key(world, params["topology_name"], n) for n in range(130)]
    return _of_topology(world, params, "keys", rows)


def versions(world: World) -> Rows:
    """Software versions; the release date of most is Go's zero time."""
    return world.kept("versions", lambda: world.keyed(_versions(world), "id", "name", label="version"))


def configs(world: World, *, with_default: bool = False) -> Rows:
    """Custom configurations; `with_default` adds the built-in ones."""
    name, count = ("all configs", 15) if with_default else ("configs", 12)
    rows = [_config(world, n) for n in range(count)]
    return world.kept(name, lambda: world.keyed(rows, "id", "name", label="config"))


def config_values(world: World, params: Mapping[str, str]) -> Rows | None:
    """The values that one configuration sets; one inserted later sets none."""
    found = configs(world).find("id", params["config_id"])
    if found is None:
        return None
    if found < 0:
        return Rows.of(())
    rows: list[Row] = [
        {
            "config_key_id": world.chance.uuid("config key standalone", found * 5 + n),
            "selected_values": [str(n), "ON"][: n % 3],
        }
        for n in range(found % 4 * 3)
    ]
    return Rows.of(rows)


def _of_topology(world: World, params: Mapping[str, str], label: str, rows: list[Row]) -> Rows | None:
    name = params["topology_name"]
    found = topologies(world).find("name", name)
    if found is None:
        return None
    if found < 0:
        return Rows.of(())
    return world.kept(f"{label} {name}", lambda: world.keyed(rows, "id", label=f"{label} {name}"))


def _iops(world: World, provider: str) -> list[Row]:
    types = {"aws": ("gp3", "io1"), "gcp": ("pd-ssd",), "azure": ()}[provider]
    cells = [(kind, tier, step) for kind in types for tier in _TIERS for step in range(3)]
    return [
        {
            "default_iops_per_gb": 3,
            "id": world.chance.uuid(f"iops {provider}", n),
            "iops_range_max": 16000 * (step + 1),
            "iops_range_min": 3000,
            "provider": provider,
            "storage_range_max": 1000 << step,
            "storage_range_min": 100 << step,
            "throughput_range_max": 1000,
            "throughput_range_min": 125,
            "tier": tier,
            "total_iops_range_max": 64000,
            "total_iops_range_min": 3000,
            "volume_type_name": kind,
        }
        for n, (kind, tier, step) in enumerate(cells)
    ]


def _regions(world: World) -> list[Row]:
    pairs = [(provider, name) for provider in PROVIDERS for name in REGIONS[provider]]
    return [
        {
            "default": name in ("us-east-1", "us-central1", "eastus"),
            "foundation_tier_maintenance_window": "1st and 3rd Sat 8:00 PM UTC",
            "has_clusters": n % 4 != 3,
            "id": world.chance.uuid("region", n),
            "is_available": n % 9 != 8,
            "name": name,
            "order": n * 10,
            "provider": provider,
            "region": _AREAS.get(name[:2], "APAC"),
        }
        for n, (provider, name) in enumerate(pairs)
    ]


def _zones(world: World, provider: str, region: str) -> list[Row]:
    return [
        {
            "id": world.chance.uuid(f"zone {region}", n),
            "name": f"{region}-{letter}",
            "provider": provider,
            "region_name": region,
        }
        for n, letter in enumerate("abc")
    ]


def _sizes(world: World) -> list[Row]:
    cells = [
        (provider, tier, topology, kind, cpu, ram)
        for provider in PROVIDERS
        for tier in _TIERS
        for topology, kind in (("es-replica", "server"), ("galera", "server"), ("es-replica", "proxy"))
        for cpu, ram in (_SHAPES if kind == "server" else _SHAPES[:4])
        if tier == "power" or cpu <= 16
    ]
    rows: list[Row] = []
    for n, (provider, tier, topology, kind, cpu, ram) in enumerate(cells):
        created = instant(world.moment("size", n))
        row: Row = {
            "architecture": "arm64" if n % 7 == 6 else "amd64",
            "cpu": f"{cpu} vCPU",
            "created_on": created,
            "default_maxscale_size_name": "sky-2x4" if kind == "server" else None,
            "display_name": f"Sky-{cpu}x{ram}",
            "id": world.chance.uuid("size", n),
            "is_active": n % 11 != 10,
            "name": f"sky-{cpu}x{ram}",
            "provider": provider,
            "ram": f"{ram} GB",
            "service_type": "transactional",
            "tier": tier,
            "topology": topology,
            "type": kind,
            "updated_on": created,
        }
        rows.append(row)
    return rows


def _topologies(world: World) -> list[Row]:
    return [
        {
            "database": "MariaDB Enterprise Server",
            "display_name": name.replace("-", " ").title(),
            "id": world.chance.uuid("topology", n),
            "name": name,
            "order": 100 * (n + 1),
            "service_type": kind,
            "storage_engine": engine,
        }
        for n, (name, kind, engine) in enumerate(_TOPOLOGIES)
    ]


def _versions(world: World) -> list[Row]:
    cells = [(release, topology[0]) for topology in _TOPOLOGIES for release in _RELEASES]
    return [
        {
            "default": release == _RELEASES[-1],
            "display_name": f"Enterprise Server {release}",
            "id": world.chance.uuid("version", n),
            "is_major": n % 2 == 0,
            "name": f"{release}-{topology}",
            "product": "xpand" if topology == "xpand" else "server",
            "release_date": instant(world.moment("version", n)) if n % 5 == 0 else "0001-01-01T00:00:00Z",
            "release_notes_url": f"https://docs.example.com/release-notes/{release}",
            "topology": topology,
            "version": release,
        }
        for n, (release, topology) in enumerate(cells)
    ]


def _config_key(world: World, topology: str, n: int) -> Row:
    base = _VARIABLES[n % len(_VARIABLES)]
    turn = n // len(_VARIABLES)
    return {
        "allowed_values": ["ON", "OFF"] if n % 3 == 0 else [],
        "component": "maxscale" if n % 10 == 9 else "server",
        "config_section": "mysqld",
        "default_value": ["OFF"] if n % 3 == 0 else [str(n)],
        "documentation_url": f"https://docs.example.com/variables/{base}",
        "flags": n % 8,
        "id": world.chance.uuid(f"config key {topology}", n),
        "maximum_value": "" if n % 3 == 0 else "18446744073709551615",
        "minimum_value": "" if n % 3 == 0 else "0",
        "multiselect": n % 20 == 2,
        "name": f"{base}_{turn}" if turn else base,
        "readonly": n % 13 == 0,
        "requires_restart": n % 4 == 0,
        "tags": ["memory"] if "size" in base else None,
    }


def _config(world: World, n: int) -> Row:
    created = world.moment("config", n)
    return {
        "created_by": world.chance.uuid("user", n % 12),
        "created_date": created,
        "id": world.chance.uuid("config", n),
        "name": f"config-{n:02d}",
        "public": n >= 12,
        "services": [world.service_id(n)] if n < world.options.services and n % 2 else [],
        "topology_id": world.chance.uuid("topology", n),
        "updated_by": world.chance.uuid("user", n % 5),
        "updated_date": 0 if n % 4 == 3 else created,
        "version_id": world.chance.uuid("version", n),
    }
