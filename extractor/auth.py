"""The one place a bearer token comes from, and what the identity service says of a key.

The current keys go out as they are and need none of this. An older key is exchanged for a bearer token of
about an hour, which `TokenSource` keeps fresh: whatever the concurrency, one exchange is in flight and the
others wait.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import anyio
import msgspec

from extractor import retry
from extractor.clock import Clock
from extractor.errors import AuthError, MalformedBody, RequestError, StatusError
from extractor.events import Observer, TokenRefreshed, ignore

__all__ = (
    "DEFAULT_LIFETIME_SECONDS",
    "Exchange",
    "KeyFacts",
    "Token",
    "TokenAnswer",
    "TokenSource",
    "read_keyinfo",
    "read_token_answer",
)

DEFAULT_LIFETIME_SECONDS = 3600.0
"""How long a token is taken to live whose answer does not say."""

_LONGEST_MARGIN_SECONDS = 60.0
_MARGIN_SHARE = 0.2
_SHORTEST_LIFETIME_SECONDS = 1.0
"""A server whose clock makes its tokens expired at birth must not turn each request into an exchange."""

_VISIBLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A bearer token in use.

    `generation` tells it from those before and after it; `expires_at` is in monotonic seconds.
    """

    value: str = field(repr=False)
    generation: int
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAnswer:
    """What the token endpoint answered; who the key belongs to is left out on purpose.

    `lifetime_seconds` is by the server's clock, None for a token that does not expire.
    """

    token: str = field(repr=False)
    lifetime_seconds: float | None = DEFAULT_LIFETIME_SECONDS
    jti: str | None = None
    parent: str | None = None
    tenant_id: str | None = None
    scopes: tuple[str, ...] = ()
    exp: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFacts:
    """What keyinfo says of a key, without the name and address of its owner."""

    jti: str | None = None
    key_prefix: str | None = None
    description: str | None = None
    exp: datetime | None = None
    iat: datetime | None = None
    scopes: tuple[str, ...] = ()
    entitlements: tuple[str, ...] = ()
    iss: str | None = None
    tenant_id: str | None = None


Exchange = Callable[[], Awaitable[TokenAnswer]]
"""One attempt to exchange the key for a token; raises a phase error as `fetch` does."""


class TokenSource:
    """The current token of one account, and a new one when it is about to expire or was refused.

    A token is replaced ahead of its end by a fifth of its lifetime, a minute at most; its lifetime counts
    from before the exchange was sent. A refused exchange is final: later callers are told at once.
    """

    def __init__(
        self,
        exchange: Exchange,
        clock: Clock,
        observer: Observer = ignore,
        *,
        account: str = "default",
        policy: retry.RetryPolicy | None = None,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._exchange = exchange
        self._clock = clock
        self._observer = observer
        self._account = account
        self._policy = policy or retry.RetryPolicy()
        self._chance = chance
        self._turn = anyio.Lock()
        self._token: Token | None = None
        self._refresh_at = -math.inf
        self._generation = 0
        self._refusal: AuthError | None = None
        self._failure: tuple[int, RequestError] | None = None
        self._refreshes = 0
        self._provenance: Mapping[str, object] = MappingProxyType({})

    @property
    def provenance(self) -> Mapping[str, object]:
        """`jti`, `parent`, `tenant_id`, `scopes` and `exp` of the newest token; empty before the first."""
        return self._provenance

    async def get(self) -> Token:
        """A token that is good for a while.

        Callers that need a new one at the same time share one exchange, and its failure. If the one that
        carries it out is cancelled, the next in line carries out another.
        Raises: AuthError if the key is refused; the last RequestError if the exchange keeps failing.
        """
        token = self._fresh()
        if token is not None:
            return token
        asked_at = self._refreshes
        async with self._turn:
            token = self._fresh()
            if token is not None:
                return token
            if self._failure is not None and self._failure[0] > asked_at:
                raise self._failure[1].with_traceback(None)
            return await self._refresh()

    @property
    def is_fresh(self) -> bool:
        """True while `get` would return at once."""
        return self._fresh() is not None

    def invalidate(self, generation: int) -> None:
        """Forget the token of that generation, which a server refused; a newer one stays."""
        if self._token is not None and self._token.generation == generation:
            self._token = None

    def _fresh(self) -> Token | None:
        if self._refusal is not None:
            raise AuthError(self._refusal.message) from self._refusal.__cause__
        return self._token if self._clock.monotonic() < self._refresh_at else None

    async def _refresh(self) -> Token:
        first_at = self._clock.monotonic()
        attempt = 0
        while True:
            attempt += 1
            sent_at = self._clock.monotonic()
            try:
                answer = await self._exchange()
            except AuthError as error:
                self._refusal = error
                raise
            except RequestError as error:
                not_before = self._judge(error, attempt, first_at)
                token = self._token
                if token is not None and self._clock.monotonic() < token.expires_at:
                    # It was ahead of time: use up what there is, and try again after the pause.
                    self._refresh_at = min(max(not_before, self._clock.monotonic() + 1), token.expires_at)
                    return token
                if not_before == math.inf:
                    self._refreshes += 1
                    self._failure = (self._refreshes, error)
                    raise
                await self._clock.sleep_until(not_before)
            else:
                return self._adopt(answer, sent_at)

    def _judge(self, error: RequestError, attempt: int, first_at: float) -> float:
        """When to try again, infinity if never; raises AuthError if the key or the address is refused."""
        if retry.classify(error) is not retry.Verdict.TRANSIENT:
            self._refusal = AuthError(_advice(error))
            self._refusal.__cause__ = error
            raise self._refusal from error
        decision = retry.decide(
            error,
            attempt=attempt,
            first_at=first_at,
            now=self._clock.monotonic(),
            server_now=self._clock.now(),
            policy=self._policy,
            chance=self._chance(),
        )
        return decision.not_before if isinstance(decision, retry.RetryAt) else math.inf

    def _adopt(self, answer: TokenAnswer, sent_at: float) -> Token:
        lifetime = math.inf if answer.lifetime_seconds is None else answer.lifetime_seconds
        lifetime = max(lifetime, _SHORTEST_LIFETIME_SECONDS)
        self._generation += 1
        self._refreshes += 1
        self._token = Token(value=answer.token, generation=self._generation, expires_at=sent_at + lifetime)
        margin = min(_LONGEST_MARGIN_SECONDS, _MARGIN_SHARE * lifetime)
        self._refresh_at = self._token.expires_at - margin
        self._provenance = MappingProxyType(
            {
                "jti": answer.jti,
                "parent": answer.parent,
                "tenant_id": answer.tenant_id,
                "scopes": answer.scopes,
                "exp": answer.exp,
            }
        )
        self._observer(
            TokenRefreshed(account=self._account, generation=self._generation, lifetime_seconds=lifetime)
        )
        return self._token


def read_token_answer(body: bytes, *, date_header: datetime | None) -> TokenAnswer:
    """The token and its facts; it lives for `exp - iat`, else `exp` less the server's `Date`, else an hour.

    Times are ISO text, with or without fraction and zone, or epoch numbers; one that cannot be read counts as
    absent, as a token that turns out to be expired is replaced anyway.
    Raises: MalformedBody if there is no usable token in it. No message quotes the body.
    """
    answer = _json_object(body, "token")
    token = answer.get("token")
    if not isinstance(token, str) or not _VISIBLE.fullmatch(token):
        raise MalformedBody(
            "the token endpoint answered without a usable token; check source.token_url, or use "
            'source.auth = "api_key" with a current key'
        )
    exp, issued = _moment(answer.get("exp")), _moment(answer.get("iat"))
    if issued is None and date_header is not None:
        # A Date header leaves the fraction of its second out: it may be nearly one second later.
        issued = date_header + timedelta(seconds=1)
    lifetime = DEFAULT_LIFETIME_SECONDS
    if exp is not None and issued is not None:
        lifetime = max(0.0, (exp - issued).total_seconds())
    return TokenAnswer(
        token=token,
        lifetime_seconds=lifetime,
        jti=_text(answer.get("jti")),
        parent=_text(answer.get("parent")),
        tenant_id=_text(answer.get("tenant_id")),
        scopes=_texts(answer.get("scopes")),
        exp=exp,
    )


def read_keyinfo(body: bytes) -> KeyFacts:
    """What keyinfo says; whatever it lacks is None or empty, so is a time that cannot be read.

    Raises: MalformedBody if it is no JSON object. No message quotes the body.
    """
    answer = _json_object(body, "keyinfo")
    return KeyFacts(
        jti=_text(answer.get("jti")),
        key_prefix=_text(answer.get("key_prefix")),
        description=_text(answer.get("description")),
        exp=_moment(answer.get("exp")),
        iat=_moment(answer.get("iat")),
        scopes=_texts(answer.get("scopes")),
        entitlements=_texts(answer.get("entitlements")),
        iss=_text(answer.get("iss")),
        tenant_id=_text(answer.get("tenant_id")),
    )


def _advice(error: RequestError) -> str:
    if isinstance(error, StatusError) and error.status in (400, 401, 403):
        return (
            f"the API key was refused by the token endpoint (status {error.status}): it is invalid, expired "
            "or revoked; make a new key in the portal and put it where the old one is, or set source.auth = "
            '"api_key" if it is a current key'
        )
    return f"the API key cannot be exchanged for a token: {error.message}; check source.token_url"


def _json_object(body: bytes, endpoint: str) -> Mapping[str, object]:
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = None  # raised below, without the decoder's message: it may quote the body
    if not isinstance(answer, dict):
        raise MalformedBody(f"the {endpoint} endpoint did not answer with a JSON object; check its address")
    return answer


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[str, ...]:
    """A list of texts, or one text with spaces between them."""
    if isinstance(value, str):
        return tuple(value.split())
    return tuple(item for item in value if isinstance(item, str)) if isinstance(value, list) else ()


def _moment(value: object) -> datetime | None:
    """A time in UTC: ISO text (UTC where it names no zone), epoch seconds, or milliseconds beyond 10^11."""
    if isinstance(value, str) and value.replace(".", "", 1).isdecimal():
        value = float(value)
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value.strip())
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000 if value >= 1e11 else value, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None
