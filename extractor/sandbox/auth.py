"""Keys, bearer tokens and the rate limit: who is let in, and how often."""

from __future__ import annotations

import base64
import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from extractor.sandbox.options import SandboxOptions

__all__ = ("Bucket", "Doorkeeper", "Entry")

_SCOPES = ("skysql::database::read", "skysql::observability::read")
_WRITE_SCOPE = "skysql::database::write"
_KEY_LIFE_SECONDS = 365 * 86_400


class Bucket:
    """A token bucket that holds one second's worth, full at the start."""

    def __init__(self, rate: float, clock: Callable[[], float]) -> None:
        self.rate = rate
        self.capacity = max(1.0, rate)
        self._clock = clock
        self._level = self.capacity
        self._at = clock()

    def take(self) -> bool:
        """Let one request through, or refuse it; a rate of 0 refuses nothing."""
        if not self.rate:
            return True
        now = self._clock()
        self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
        self._at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def headers(self) -> dict[str, str]:
        """The limit in the two customary spellings; pauses in seconds."""
        limit, left = str(int(self.capacity)), str(int(self._level))
        values = {"Limit": limit, "Remaining": left, "Reset": "1"}
        return {
            **{f"X-RateLimit-{name}": value for name, value in values.items()},
            **{f"RateLimit-{name}": value for name, value in values.items()},
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of a request's credentials."""

    is_granted: bool
    is_expired: bool = False
    message: str = ""


class Doorkeeper:
    """Knows the accepted keys, how often each was used, and the tokens given out for them."""

    def __init__(self, options: SandboxOptions, clock: Callable[[], float], now: Callable[[], float]) -> None:
        self._options = options
        self._clock = clock
        self._now = now
        self._uses: Counter[str] = Counter()
        self._tokens: dict[str, tuple[str, float]] = {}

    def admit(self, headers: Mapping[str, str]) -> Entry:
        """Judge `X-API-Key` or a bearer token, and count the use of the key behind it."""
        key = headers.get("X-API-Key", "")
        scheme, _, token = headers.get("Authorization", "").partition(" ")
        if not key and scheme.lower() == "bearer":
            known = self._tokens.get(token.strip())
            if known is None:
                return Entry(False, message="JWT is not valid")
            key, end = known
            if self._clock() >= end:
                return Entry(False, is_expired=True, message="JWT is expired")
        if not self._is_accepted(key):
            return Entry(False, message="Missing or invalid API key")
        self._uses[key] += 1
        return Entry(True)

    def key_of(self, headers: Mapping[str, str]) -> str | None:
        """The accepted key of an `Authorization: Token` header."""
        scheme, _, key = headers.get("Authorization", "").partition(" ")
        is_accepted = scheme.lower() == "token" and self._is_accepted(key.strip())
        return key.strip() if is_accepted else None

    def issue(self, key: str, org: str) -> dict[str, object]:
        """A new bearer token for a key, as the older exchange answers."""
        life = self._options.token_ttl
        claims = orjson.dumps({"jti": secrets.token_hex(8), "exp": int(self._now() + life)})
        token = ".".join(_encoded(part) for part in (b'{"alg":"RS256"}', claims, secrets.token_bytes(32)))
        self._tokens[token] = (key, self._clock() + life)
        return {**self._claims(life), "parent": secrets.token_hex(8), "tenant_id": org, "token": token}

    def keyinfo(self, org: str) -> dict[str, object]:
        """What the older API tells about a key."""
        claims = self._claims(_KEY_LIFE_SECONDS)
        if "keyinfo-exp-null" in self._options.variants:
            claims["exp"] = None
        return {**claims, "key_prefix": "sandbox", "description": "the sandbox's key"}

    def _claims(self, life: float) -> dict[str, object]:
        has_write = "write-scopes" in self._options.variants
        return {
            "jti": secrets.token_hex(16),
            "email": "owner@example.com",
            "full_name": "Ada Ash",
            "exp": _iso(self._now() + life),
            "iat": _iso(self._now()),
            "scopes": [*_SCOPES, *([_WRITE_SCOPE] if has_write else [])],
            "iss": "sandbox",
            "entitlements": [],
        }

    def _is_accepted(self, key: str) -> bool:
        if not key or (self._options.keys and key not in self._options.keys):
            return False
        limit = self._options.revoke_after
        return not limit or self._uses[key] < limit


def _iso(epoch: float) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _encoded(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).rstrip(b"=").decode()
