"""What the server saw and did, second by second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

__all__ = ("Stats",)


class Stats:
    """Counters since the start, or since they were last reset."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self.reset()

    def reset(self) -> None:
        """Forget all counts; seconds go on counting from the server's start."""
        self._answered: Counter[int] = Counter()
        self._refused: Counter[int] = Counter()
        self._token_times: list[float] = []
        self._paths: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._faults: Counter[str] = Counter()
        self.expired_token_requests = 0
        self.unauthenticated = 0

    def uptime(self) -> float:
        """Seconds since the server started."""
        return self._clock() - self._start

    def count(self, template: str, status: int, arrived: float) -> None:
        """Count one request by the second, on the uptime clock, in which it was let in or refused."""
        (self._refused if status == 429 else self._answered)[int(arrived)] += 1
        self._paths[template] += 1
        self._statuses[status] += 1

    def count_token(self) -> None:
        """Count a token that was given out now."""
        self._token_times.append(round(self.uptime(), 3))

    def count_fault(self, kind: str) -> None:
        """Count a fault that was injected."""
        self._faults[kind] += 1

    def as_json(self) -> dict[str, object]:
        """All counts."""
        seconds = sorted({*self._answered, *self._refused})
        answered, refused = self._answered.total(), self._refused.total()
        return {
            "requests": answered + refused,
            "answered": answered,
            "refused": refused,
            "seconds": [
                {"second": second, "answered": self._answered[second], "refused": self._refused[second]}
                for second in seconds
            ],
            "tokens_issued": len(self._token_times),
            "token_times": list(self._token_times),
            "expired_token_requests": self.expired_token_requests,
            "unauthenticated": self.unauthenticated,
            "statuses": {str(status): count for status, count in sorted(self._statuses.items())},
            "paths": dict(sorted(self._paths.items())),
            "faults": dict(sorted(self._faults.items())),
            "uptime_seconds": round(self.uptime(), 3),
        }
