"""What an answer consists of before faults touch it, and the error bodies of each family of routes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal

import orjson

from extractor.sandbox.options import SandboxOptions

__all__ = ("Family", "Reply", "failure", "family_of", "json_reply")

Family = Literal[
    "provisioning", "skybackup", "billing", "copilot", "organization", "observability", "identity"
]

_JSON = "application/json"
_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_FAMILIES: tuple[tuple[str, Family], ...] = (
    ("/skybackup/", "skybackup"),
    ("/billing/", "billing"),
    ("/public/services/bcs/", "billing"),
    ("/copilot/", "copilot"),
    ("/organization/", "organization"),
    ("/public/services/ous/", "organization"),
    ("/observability/", "observability"),
    ("/api/v1/", "identity"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer as the API would give it: a body at once, or pieces of it as they are made."""

    status: int = 200
    media_type: str = ""
    body: bytes = b""
    pieces: Callable[[], Iterator[bytes]] | None = None
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def json_reply(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """An answer with a JSON body."""
    return Reply(status=status, media_type=_JSON, body=orjson.dumps(value), headers=headers or {})


def family_of(path: str) -> Family:
    """Whose error bodies a path answers with; provisioning's where nobody else claims it."""
    return next((family for prefix, family in _FAMILIES if path.startswith(prefix)), "provisioning")


def failure(
    options: SandboxOptions,
    path: str,
    status: int,
    message: str,
    *,
    now: float,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """An error in the shape of the path's family."""
    family = family_of(path)
    if family == "observability" and status == 401 and "observability-400" in options.variants:
        status, message = 400, "Missing or invalid API key"
    if "empty-error-body" in options.variants:
        return Reply(status=status, headers=headers or {})
    body, media_type = _error_body(options, family, path, status, message, now)
    if path.endswith("/pdf"):
        media_type = "application/pdf"  # as the specification claims, though the body is JSON
    return Reply(status=status, media_type=media_type, body=body, headers=headers or {})


def _error_body(
    options: SandboxOptions, family: Family, path: str, status: int, message: str, now: float
) -> tuple[bytes, str]:
    title = _TITLES.get(status, "Error")
    match family:
        case "organization":
            return b"", ""
        case "observability":
            return message.encode(), "text/plain; charset=utf-8"
        case "identity":
            return orjson.dumps({"detail": message}), _JSON
        case "copilot":
            return orjson.dumps(
                {"detail": [{"loc": ["path", 0], "msg": message, "type": "value_error"}]}
            ), _JSON
        case "billing":
            return orjson.dumps(_billing_error(status, title, message)), _JSON
        case "skybackup":
            error: dict[str, object] = {"error": title, "message": message}
        case _:
            error = {
                "error": title,
                "message": message,
                "location": path,
                "solution": "",
                "metadata": {},
                "type": "error",
            }
    moment = datetime.fromtimestamp(now, UTC)
    is_text = "string-error-timestamp" in options.variants
    body = {
        "code": status,
        "exception": title.replace(" ", ""),
        "path": path,
        "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%SZ") if is_text else int(now),
        "trace_id": f"{int(now * 1e6):032x}",
        "errors": [error],
    }
    if family == "provisioning":
        body["metadata"] = {}
    return orjson.dumps(body), _JSON


def _billing_error(status: int, title: str, message: str) -> dict[str, object]:
    return {
        "code": status,
        "err": message,
        "exception": title.replace(" ", ""),
        "location": "billing",
        "message": message,
        "metadata": [],
        "solution": "",
        "type": "error",
    }
