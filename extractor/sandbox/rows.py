"""Collections whose rows are made when asked for, and into which rows may be inserted at the front."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ("Ragged", "Row", "Rows", "Selection")

Row = dict[str, object]

# Insertion must end, or a client that reads pages of one row would never see the last.
_MOST_INSERTED = 50


class Rows:
    """Rows by ordinal: those of the start are 0 to count - 1, those inserted later -1, -2, and so on.

    A lower ordinal stands nearer to the front, and an ordinal never changes its row. So a position
    kept as an ordinal loses nothing when rows are inserted. Where time passes, the ordinals in `absent` have
    no row at the moment, and fields in `changed` read otherwise.
    """

    __slots__ = ("_at", "_fresh", "absent", "changed", "count", "inserted")

    def __init__(
        self, count: int, at: Callable[[int], Row], fresh: Callable[[int], Row] | None = None
    ) -> None:
        self.count = count
        self.inserted: list[Row] = []
        self.absent: frozenset[int] = frozenset()
        self.changed: Mapping[int, Mapping[str, object]] = {}
        self._at = at
        self._fresh = fresh

    @classmethod
    def of(cls, rows: Sequence[Row], fresh: Callable[[int], Row] | None = None) -> Rows:
        """The rows of a sequence."""
        return cls(len(rows), rows.__getitem__, fresh)

    def row(self, ordinal: int) -> Row:
        """The row of an ordinal."""
        row = self._at(ordinal) if ordinal >= 0 else self.inserted[-ordinal - 1]
        change = self.changed.get(ordinal) if self.changed else None
        return row if change is None else {**row, **change}

    def ordinals(self, *, of_start: bool = False) -> Sequence[int]:
        """All ordinals from the front; `of_start` leaves out what was inserted."""
        whole = range(0 if of_start else -len(self.inserted), self.count)
        return [ordinal for ordinal in whole if ordinal not in self.absent] if self.absent else whole

    def insert(self) -> bool:
        """Put a new row at the front; False where this collection takes no more."""
        if self._fresh is None or len(self.inserted) >= _MOST_INSERTED:
            return False
        self.inserted.append(self._fresh(len(self.inserted)))
        return True

    def grow(self, added: int, fresh: Callable[[int, Row], Row]) -> None:
        """Have exactly so many rows at the front; `fresh` makes those that the collection cannot, of its first."""
        del self.inserted[added:]
        for number in range(len(self.inserted), added):
            own = self._fresh(number) if self._fresh is not None else fresh(number, self._at(0))
            self.inserted.append(own)

    def find(self, field: str, value: str) -> int | None:
        """The ordinal of the row whose `field` reads `value`; looks at each row."""
        for ordinal in self.ordinals():
            if str(self.row(ordinal)[field]) == value:
                return ordinal
        return None

    def find_inserted(self, field: str, value: str) -> int | None:
        """As `find`, among the inserted rows only."""
        for number, row in enumerate(self.inserted):
            if str(row[field]) == value and -number - 1 not in self.absent:
                return -number - 1
        return None


@dataclass(frozen=True, slots=True)
class Selection:
    """The rows that an answer is cut from: some ordinals, in order, of a collection."""

    rows: Rows
    ordinals: Sequence[int]

    @classmethod
    def all(cls, rows: Rows) -> Selection:
        """Every row of a collection."""
        return cls(rows, rows.ordinals())

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Selection:
        """Rows that no other answer shares."""
        return cls.all(Rows.of(rows))

    def __iter__(self) -> Iterator[Row]:
        return map(self.rows.row, self.ordinals)


class Ragged:
    """Children of numbered parents where parent p has `pattern[p % len(pattern)]` of them.

    The repeating pattern is what makes the parent of any child a matter of arithmetic.
    """

    __slots__ = ("_pattern", "_starts", "_sum")

    def __init__(self, *pattern: int) -> None:
        self._pattern = pattern
        self._starts = (0, *accumulate(pattern[:-1]))
        self._sum = sum(pattern)

    def size(self, parent: int) -> int:
        """How many children `parent` has."""
        return self._pattern[parent % len(self._pattern)]

    def start(self, parent: int) -> int:
        """The index of the first child of `parent`; with the number of parents, the number of children."""
        turns, rest = divmod(parent, len(self._pattern))
        return turns * self._sum + self._starts[rest]

    def locate(self, child: int) -> tuple[int, int]:
        """The parent of a child, and which of its children it is."""
        turns, rest = divmod(child, self._sum)
        place = bisect_right(self._starts, rest) - 1
        return turns * len(self._pattern) + place, rest - self._starts[place]
