"""The SkySQL API emulator: loopback only, deterministic in its seed, faults on request."""

from __future__ import annotations

from extractor.sandbox.options import SandboxOptions
from extractor.sandbox.server import running, serve

__all__ = ("SandboxOptions", "running", "serve")
