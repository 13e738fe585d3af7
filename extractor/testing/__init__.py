"""Fakes and judges that the package ships for its own tests and for those of its users."""

from __future__ import annotations

from extractor.normal import canonical
from extractor.testing.clock import VirtualClock

__all__ = ("VirtualClock", "canonical")
