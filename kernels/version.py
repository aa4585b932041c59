"""The version of Edgewise. The one in `pyproject.toml` is read from here."""

from __future__ import annotations

VERSION = "0.1.0"
