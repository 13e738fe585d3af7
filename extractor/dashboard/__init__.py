"""What a person sees of a run while it runs; it listens to events and touches nothing."""

from __future__ import annotations
