"""The fixtures of the demo's own tests, for the tests of its training."""

from __future__ import annotations

from export.demo.conftest import delivered, untrained

__all__ = ["delivered", "untrained"]
