"""OpenTelemetry: a span for each worker of a tree; ``pip install 'creche[otel]'``."""

from __future__ import annotations

from ._spans import traced

__all__ = ["traced"]

traced.__module__ = __name__  # tracebacks and docs show the public module
