"""Fakes and judges that the package ships for its own tests and for those of its users."""

from __future__ import annotations

from extractor.testing.clock import VirtualClock
from extractor.testing.normal import canonical

__all__ = ("VirtualClock", "canonical")
