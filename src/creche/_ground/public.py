"""The names that belong to the root of the package, wherever they are defined."""

from __future__ import annotations

import sys
from typing import Any

_ROOT = __name__.partition(".")[0]


def publish(*public: Any) -> None:
    """Make classes and functions belong to the root, for tracebacks, docs and pickles.

    Args:
        *public: What users import from there; anything else stays as it is.
    """
    root = sys.modules[_ROOT]
    for each in public:
        if _adopt(each):
            setattr(root, each.__name__, each)


def _adopt(public: Any) -> bool:
    if not str(getattr(public, "__module__", "")).startswith(f"{_ROOT}._"):
        return False
    public.__module__ = _ROOT
    for inner in vars(public).values() if isinstance(public, type) else ():
        _adopt(inner)
    return True
