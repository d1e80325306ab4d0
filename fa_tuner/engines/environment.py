"""What is installed beside fa-tune, for the fingerprint of what it measured."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version


def installed_versions(*distributions: str) -> dict[str, str]:
    """Version by distribution name; what is not installed is left out."""
    found = {}
    for name in distributions:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
