"""The OpenTelemetry trace that work belongs to, on its way to the far side.

Context variables do not travel. This is the one thing of them that can: text, which OpenTelemetry's
propagators make of the current span (``traceparent``, ``tracestate``) and of its baggage. A program
that has not imported OpenTelemetry has no span, and pays nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from creche._ground.report import harmless


def give_trace() -> dict[str, str]:
    """Return what tells another program of the current span; nothing if there is none."""
    carrier: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        with harmless:  # propagators of the program's
            propagate: Any = importlib.import_module("opentelemetry.propagate")
            propagate.inject(carrier)
    return carrier


def take_trace(carrier: dict[str, str]) -> None:
    """Go on with a trace in the current context, if OpenTelemetry is installed here."""
    if carrier:
        with harmless:
            propagate: Any = importlib.import_module("opentelemetry.propagate")
            context: Any = importlib.import_module("opentelemetry.context")
            context.attach(propagate.extract(carrier))
