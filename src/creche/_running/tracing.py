"""The OpenTelemetry trace that work belongs to, on its way to the far side.

Context variables are not sent. But OpenTelemetry's propagators turn the current span
(``traceparent``, ``tracestate``) and its baggage into text, which is. A program that has not
imported OpenTelemetry has no span, and this costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from creche._ground.report import harmless


def give_trace() -> dict[str, str]:
    """Return the text that identifies the current span; empty if there is none."""
    carrier: dict[str, str] = {}
    if "opentelemetry.trace" in sys.modules:
        with harmless:  # the program's propagators
            propagate: Any = importlib.import_module("opentelemetry.propagate")
            propagate.inject(carrier)
    return carrier


def take_trace(carrier: dict[str, str]) -> None:
    """Continue a trace in the current context, if OpenTelemetry is installed here."""
    if carrier:
        with harmless:
            propagate: Any = importlib.import_module("opentelemetry.propagate")
            context: Any = importlib.import_module("opentelemetry.context")
            context.attach(propagate.extract(carrier))
