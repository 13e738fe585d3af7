"""Tables and views over a lake, as statements for the engines that can read it."""

from __future__ import annotations
