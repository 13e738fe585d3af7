"""What a row of each shape is: its values, its columns as the catalogue says them, its Arrow schema."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ("SAMPLE_COLUMNS", "SHAPES", "TAG_KEYS", "Row", "Shape", "arrow_schema")

Row = dict[str, object]

SAMPLE_COLUMNS = """
[metrics.columns]
name = "string"
type = "string"
namespace = "string"
server_name = "string"
server_type = "string"
service_name = "string"
topology_type = "string"
labels = "map<string, string>"
value = "float64"
timestamp = "timestamp"
"""
"""Those of a sample of metrics, as a catalogue says them."""

TAG_KEYS = "team env cost_center owner project level policy compliance zone_hint app stage ticket".split()

_REGIONS = ("us-east-1", "us-west-2", "eu-central-1", "eu-west-1", "ap-southeast-2", "us-central1")
_STATES = ("ready", "ready", "ready", "ready", "pending_create", "stopped", "failed")
_SIZES = ("sky-2x4", "sky-2x8", "sky-4x16", "sky-4x32", "sky-8x32", "sky-16x64")
_TEXTS = ("blue", "green", "platform", "payments", "search", "gold", "silver", "nightly", "pci", "gdpr")
_PURPOSES = ("readwrite", "readonly", "nosql")
_METRICS = ("cpu_usage", "disk_used", "connections", "queries", "replica_lag", "threads_running")


def nested_row(number: int, chance: random.Random) -> Row:
    """A row like one of the services: objects, lists of objects and of texts, money, times, and open tags."""
    draw, pick = chance.random, chance.choice
    name = f"dbp{number:09d}"
    region = pick(_REGIONS)
    host = f"{name}.{region}.db.example.net"
    octet = number % 250
    return {
        "id": name,
        "name": f"service {number}",
        "status": pick(_STATES),
        "region": region,
        "provider": "gcp" if region.endswith("1") else "aws",
        "service_type": "transactional",
        "topology": "es-replica",
        "version": pick(("10.6.14-9", "10.6.17-12", "11.4.2-1")),
        "size": pick(_SIZES),
        "nodes": 1 + number % 5,
        "is_active": draw() < 0.9,
        "ssl_enabled": draw() < 0.8,
        "created_on": f"202{number % 6}-{1 + number % 12:02d}-{1 + number % 28:02d}T{octet % 24:02d}:"
        f"{number % 60:02d}:{octet % 60:02d}.{number % 1000:03d}Z",
        "updated_on": 1_700_000_000 + number * 7 % 50_000_000,
        "hourly_price": round(draw() * 9, 4),
        "load": draw(),
        "created_by": f"user{number % 977}@example.net",
        "fqdn": host,
        "outbound_ips": [f"34.{octet}.{chance.getrandbits(8)}.{chance.getrandbits(8)}" for _ in range(2)],
        "storage_volume": {
            "size": 100 * (1 + number % 40),
            "volume_type": "gp3",
            "iops": 3000 + chance.getrandbits(10),
            "throughput": None if octet % 3 else 125,
        },
        "endpoints": [
            {
                "name": which,
                "fqdn": f"{which}.{host}",
                "visibility": "public" if draw() < 0.7 else "private",
                "ports": [
                    {"name": purpose, "port": 3306 + port, "purpose": purpose}
                    for port, purpose in enumerate(_PURPOSES[: 1 + chance.getrandbits(1)])
                ],
                "allow_list": [
                    {"ip": f"10.{octet}.{chance.getrandbits(8)}.0/24", "comment": pick(_TEXTS)}
                    for _ in range(1 + chance.getrandbits(1))
                ],
            }
            for which in ("primary", "replica")
        ],
        "maintenance": {"day": number % 7, "window": {"start": "02:00", "hours": 2}, "is_automatic": True},
        "tags": {key: pick(_TEXTS) for key in chance.sample(TAG_KEYS, 2 + number % 4)},
    }


def flat_row(number: int, chance: random.Random) -> Row:
    """A row like a sample of a metric."""
    minute = number // 60
    return {
        "id": number,
        "metric": _METRICS[number % 6],
        "server": f"dbp{number % 997:09d}-mariadb-{number % 3}",
        "region": _REGIONS[number % 5],
        "timestamp": f"2026-0{1 + minute // 40320 % 9}-{1 + minute // 1440 % 28:02d}T"
        f"{minute // 60 % 24:02d}:{minute % 60:02d}:{number % 60:02d}Z",
        "value": chance.random() * 100,
        "count": number * 31 % 10_007,
        "is_final": number % 7 != 0,
        "unit": "percent",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A kind of rows. `columns` are typed as in an endpoint file; `checked` is an integer column to be summed."""

    name: str
    make_row: Callable[[int, random.Random], Row]
    checked: str
    columns: dict[str, str]


SHAPES = {
    "nested": Shape(
        name="nested",
        make_row=nested_row,
        checked="nodes",
        columns={
            **dict.fromkeys(
                "id name status region provider service_type topology version size".split(), "string"
            ),
            "nodes": "int64",
            "is_active": "bool",
            "ssl_enabled": "bool",
            "created_on": "timestamp",
            "updated_on": "epoch",
            "hourly_price": "decimal",
            "load": "float64",
            "created_by": "string",
            "fqdn": "string",
            "outbound_ips": "list<string>",
            "storage_volume": "struct<size: int64, volume_type: string, iops: int64, throughput: int64>",
            "endpoints": "list<struct<name: string, fqdn: string, visibility: string, "
            "ports: list<struct<name: string, port: int64, purpose: string>>, "
            "allow_list: list<struct<ip: string, comment: string>>>>",
            "maintenance": "struct<day: int64, window: struct<start: string, hours: int64>, is_automatic: bool>",
            "tags": "map<string, string>",
        },
    ),
    "flat": Shape(
        name="flat",
        make_row=flat_row,
        checked="count",
        columns={
            "id": "int64",
            "metric": "string",
            "server": "string",
            "region": "string",
            "timestamp": "timestamp",
            "value": "float64",
            "count": "int64",
            "is_final": "bool",
            "unit": "string",
        },
    ),
}


def arrow_schema(shape: str) -> pa.Schema:
    """What pyarrow's reader is asked for; the open tags are a struct of all keys that there are."""
    import pyarrow as pa

    text, number, moment = pa.string(), pa.int64(), pa.timestamp("us", "UTC")
    names = SHAPES[shape].columns
    simple = {
        "string": text,
        "int64": number,
        "float64": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": moment,
        "epoch": number,
        "decimal": pa.decimal128(38, 12),
        "list<string>": pa.list_(text),
    }
    ports = pa.list_(pa.struct([("name", text), ("port", number), ("purpose", text)]))
    allowed = pa.list_(pa.struct([("ip", text), ("comment", text)]))
    composed = {
        "storage_volume": pa.struct(
            [("size", number), ("volume_type", text), ("iops", number), ("throughput", number)]
        ),
        "endpoints": pa.list_(
            pa.struct(
                [
                    *((name, text) for name in ("name", "fqdn", "visibility")),
                    ("ports", ports),
                    ("allow_list", allowed),
                ]
            )
        ),
        "maintenance": pa.struct(
            [
                ("day", number),
                ("window", pa.struct([("start", text), ("hours", number)])),
                ("is_automatic", pa.bool_()),
            ]
        ),
        "tags": pa.struct([(key, text) for key in TAG_KEYS]),
    }
    return pa.schema([(name, composed.get(name) or simple[kind]) for name, kind in names.items()])
