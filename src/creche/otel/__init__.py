"""OpenTelemetry: spans and metrics of the workers of a tree; ``pip install 'creche[otel]'``."""

from __future__ import annotations

from importlib import import_module

try:
    import_module("opentelemetry.metrics")
except ImportError:
    raise ImportError(
        "creche.otel needs the package opentelemetry-api; pip install 'creche[otel]'"
    ) from None

from ._metrics import metered
from ._spans import traced

__all__ = ["metered", "traced"]

for _public in (metered, traced):
    _public.__module__ = __name__  # tracebacks and docs show the public module
