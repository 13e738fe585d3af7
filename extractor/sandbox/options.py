"""The knobs of the sandbox, and the one table from which its command line is read."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from types import MappingProxyType
from typing import NoReturn

__all__ = ("FAULT_KINDS", "FLAGS", "VARIANTS", "Flag", "SandboxOptions", "parse_options")

FAULT_KINDS = (
    "reset",
    "stall",
    "truncate",
    "500",
    "503",
    "429",
    "garbage",
    "slow-drip",
    "duplicate-page",
    "row-inserted",
)

VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        "bursts": "a 500, 503 or 429 fault comes four times in a row",
        "duplicate-samples": "every tenth sample of the metrics text stands there twice",
        "empty-error-body": "errors have no body",
        "extra-fields": "rows carry keys that the specification lacks",
        "growing-archive": "today's log archives exist and gain a line each time the list is read",
        "keyinfo-exp-null": "keyinfo says that the key has no expiry",
        "log-bare-types": "logs/types is a bare array",
        "metrics-space": "the metrics text writes `#TYPE` without its space",
        "missing-fields": "some rows lack some of their fields",
        "observability-400": "a refused key is 400 on the observability service",
        "organization-empty": "users and projects are 204 without a body",
        "rate-headers": "every answer names the rate limit and what is left of it",
        "restores-array": "restores are bare arrays, with `key` for `backup_id`",
        "retry-after-missing": "429 comes without Retry-After",
        "roles-present": "the organization has roles (else 204)",
        "schedules-need-service": "schedules and restores are 400 without service_id",
        "session-404": "the list of copilot sessions is empty: 404",
        "string-error-timestamp": "the timestamp of an error body is a string",
        "tax-404": "the organization has no tax record: 404",
        "token-end-empty": "the last page has an empty page token header instead of none",
        "write-scopes": "the key also holds a write scope",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxOptions:
    """What the sandbox serves and how badly; the defaults are a small, healthy API.

    Raises: ValueError, in one line, for a value that cannot be served.
    """

    port: int = 0
    services: int = 25
    series: int = 600
    log_lines: int = 120
    log_days: int = 3
    notifications: int = 260
    seed: int = 1
    today: date | None = None
    changes: int = 0  # a day in each collection; 0: time does not pass
    latency_ms: float = 0.0
    rate_limit: float = 0.0  # requests a second; 0: none
    token_ttl: float = 3600.0  # seconds
    revoke_after: int = 0  # authenticated requests of one key; 0: never
    deny: tuple[str, ...] = ()
    keys: tuple[str, ...] = field(default=(), repr=False)
    faults: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    variants: frozenset[str] = frozenset()
    clock_skew: float = 0.0  # seconds
    page_default: int = 10
    gzip: bool = False

    def __post_init__(self) -> None:
        for name in ("services", "series", "log_lines", "notifications", "changes", "revoke_after"):
            _require(getattr(self, name) >= 0, f"{name} must not be negative")
        for name in ("latency_ms", "rate_limit"):
            value = getattr(self, name)
            _require(math.isfinite(value) and value >= 0, f"{name} must not be negative")
        _require(0 <= self.port <= 65535, "port must be 0 to 65535")
        _require(0 <= self.log_days <= 28, "log_days must be 0 to 28")
        _require(self.token_ttl > 0, "token_ttl must be more than 0")
        _require(math.isfinite(self.clock_skew), "clock_skew must be a number of seconds")
        _require(1 <= self.page_default <= 100, "page_default must be 1 to 100")
        _require(all(self.keys), "a key must not be empty")
        for kind, probability in self.faults.items():
            _require(kind in FAULT_KINDS, f"unknown fault {kind!r}; known: {', '.join(FAULT_KINDS)}")
            _require(0 <= probability <= 1, f"the probability of {kind} must be 0 to 1")
        _require(
            not (self.changes and self.faults.get("row-inserted")),
            "where time passes (changes), rows come by themselves: row-inserted cannot be had as well",
        )
        for name in self.variants:
            _require(name in VARIANTS, f"unknown variant {name!r}; known: {', '.join(VARIANTS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One flag of the command line: `read` turns its text into the value of `field`."""

    name: str
    field: str
    read: Callable[[str], object] | None  # None: a switch
    metavar: str = ""
    explanation: str
    is_repeatable: bool = False


def _read_fault(text: str) -> tuple[str, float]:
    kind, _, probability = text.partition("=")
    try:
        return kind, float(probability)
    except ValueError:
        raise ValueError(f"a fault is KIND=PROBABILITY, as reset=0.01; not {text!r}") from None


FLAGS = (
    Flag(name="--port", field="port", read=int, metavar="PORT", explanation="0 takes a free one"),
    Flag(name="--services", field="services", read=int, metavar="N", explanation="services (25)"),
    Flag(name="--series", field="series", read=int, metavar="N", explanation="metric series (600)"),
    Flag(
        name="--log-lines",
        field="log_lines",
        read=int,
        metavar="N",
        explanation="lines of a log archive (120)",
    ),
    Flag(
        name="--log-days", field="log_days", read=int, metavar="N", explanation="days with log archives (3)"
    ),
    Flag(
        name="--notifications",
        field="notifications",
        read=int,
        metavar="N",
        explanation="notifications (260)",
    ),
    Flag(name="--seed", field="seed", read=int, metavar="N", explanation="equal seeds, equal data (1)"),
    Flag(
        name="--today",
        field="today",
        read=date.fromisoformat,
        metavar="YYYY-MM-DD",
        explanation="all data lie in the 28 days before this day's UTC midnight (today)",
    ),
    Flag(
        name="--changes",
        field="changes",
        read=int,
        metavar="N",
        explanation="things that happen in each collection on each day from today on; /_sandbox/time moves the "
        "clock (0: nothing ever changes)",
    ),
    Flag(
        name="--latency-ms",
        field="latency_ms",
        read=float,
        metavar="MS",
        explanation="pause before each answer",
    ),
    Flag(
        name="--rate-limit",
        field="rate_limit",
        read=float,
        metavar="RPS",
        explanation="a bucket of one second, full at the start; then 429",
    ),
    Flag(
        name="--token-ttl",
        field="token_ttl",
        read=float,
        metavar="SECONDS",
        explanation="life of a bearer token (3600)",
    ),
    Flag(
        name="--revoke-after",
        field="revoke_after",
        read=int,
        metavar="REQUESTS",
        explanation="authenticated requests after which a key is refused",
    ),
    Flag(
        name="--deny",
        field="deny",
        read=str,
        metavar="GLOB",
        explanation="paths or path templates that answer 403",
        is_repeatable=True,
    ),
    Flag(
        name="--key",
        field="keys",
        read=str,
        metavar="KEY",
        explanation="an accepted key; with none given, any key is",
        is_repeatable=True,
    ),
    Flag(
        name="--fault",
        field="faults",
        read=_read_fault,
        metavar="KIND=PROBABILITY",
        explanation=f"kinds: {', '.join(FAULT_KINDS)}",
        is_repeatable=True,
    ),
    Flag(
        name="--variant",
        field="variants",
        read=str,
        metavar="NAME",
        explanation="; ".join(f"{name}: {text}" for name, text in VARIANTS.items()),
        is_repeatable=True,
    ),
    Flag(
        name="--clock-skew",
        field="clock_skew",
        read=float,
        metavar="SECONDS",
        explanation="shift of the server's clock",
    ),
    Flag(
        name="--page-default",
        field="page_default",
        read=int,
        metavar="N",
        explanation="rows of a page without page_size (10)",
    ),
    Flag(
        name="--gzip", field="gzip", read=None, explanation="compress JSON answers above 1 kB when accepted"
    ),
)


def parse_options(argv: list[str]) -> SandboxOptions:
    """The options that a command line (without the program's name) asks for.

    Raises: ValueError with one line. `--help` prints and leaves by SystemExit, as argparse does.
    """
    parser = _Parser(prog="sandbox", description="The SkySQL API emulator, on loopback.", allow_abbrev=False)
    for flag in FLAGS:
        _add(parser, flag)
    found = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    if "faults" in found:
        found["faults"] = MappingProxyType(dict(found["faults"]))
    if "variants" in found:
        found["variants"] = frozenset(found["variants"])
    for name in ("deny", "keys"):
        if name in found:
            found[name] = tuple(found[name])
    return SandboxOptions(**found)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(" ".join(message.split()))


def _add(parser: argparse.ArgumentParser, flag: Flag) -> None:
    if flag.read is None:
        parser.add_argument(
            flag.name, dest=flag.field, action="store_true", default=None, help=flag.explanation
        )
        return
    parser.add_argument(
        flag.name,
        dest=flag.field,
        type=_reader(flag.read),
        action="append" if flag.is_repeatable else "store",
        metavar=flag.metavar,
        help=flag.explanation.replace("%", "%%"),
    )


def _reader(read: Callable[[str], object]) -> Callable[[str], object]:
    def converted(text: str) -> object:
        try:
            return read(text)
        except ValueError as error:
            # argparse replaces the text of a ValueError by the reader's name; ours says more.
            raise argparse.ArgumentTypeError(str(error)) from error

    return converted


def _require(is_true: bool, message: str) -> None:
    if not is_true:
        raise ValueError(message)
