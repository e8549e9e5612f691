"""Tools for tests of programs that use Creche: a virtual clock, a recorder, scripts, a machine.

Needs the extra ``creche[testing]``. Hypothesis and pytest are only imported by what needs them, and
nothing here affects a test that did not ask for it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._leaks import NothingLeft, assert_nothing_left
from ._recorder import EventRecorder
from ._scripts import Ending, OnCancel, Play, Script, ScriptBaseError, ScriptError
from ._virtual import virtual_time

if TYPE_CHECKING:
    from ._fixtures import virtual_backend
    from ._machine import WorkerMachine
    from ._strategies import scripts

__all__ = [
    "Ending",
    "EventRecorder",
    "NothingLeft",
    "OnCancel",
    "Play",
    "Script",
    "ScriptBaseError",
    "ScriptError",
    "WorkerMachine",
    "assert_nothing_left",
    "scripts",
    "virtual_backend",
    "virtual_time",
]

_LAZY = {
    "WorkerMachine": ("_machine", "hypothesis"),
    "scripts": ("_strategies", "hypothesis"),
    "virtual_backend": ("_fixtures", "pytest"),
}

# Tracebacks, docs and pickles show the public module.
for _public in (
    *(Ending, EventRecorder, NothingLeft, OnCancel, Play, Script, ScriptBaseError, ScriptError),
    *(assert_nothing_left, virtual_time),
):
    _public.__module__ = __name__


def __getattr__(name: str) -> object:
    """Import what needs Hypothesis or pytest when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, needed = _LAZY[name]
    try:
        value: Any = getattr(import_module(f"{__name__}.{module}"), name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != needed:
            raise
        raise ImportError(
            f"{__name__}.{name} needs {needed}, which is not installed; "
            "pip install 'creche[testing]'"
        ) from exc
    value.__module__ = __name__
    return value
