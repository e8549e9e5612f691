"""The user's objects as text and numbers that can be shown, whatever their methods do.

Names, groups, descriptions, reasons and errors are the user's: they may not be strings, and their
``str()`` may raise. A program must not fail because it is being watched.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from .report import harmless
from .report import text_of as _text_of

_MOST = 10**18
"""The largest number that is shown. Python's integers may be too long to print or divide."""


def text(value: object) -> str:
    """Turn an object into text, whatever its ``__str__`` does.

    Returns:
        A plain ``str`` without surrogates, which can be written to any file. For a string, or a
        member of a string ``Enum``, its characters. ``<unprintable Foo>`` if there is no text.
    """
    told = value if type(value) is str else _text_of(value)
    if told.isascii():
        return told
    return told.encode("utf-8", "backslashreplace").decode("utf-8")  # surrogates


def text_of(owner: object, attribute: str) -> str:
    """Turn an attribute into text, even a property of a subclass; empty for ``None``."""
    with harmless:
        value = getattr(owner, attribute)
        return "" if value is None else text(value)
    return f"<unreadable {attribute}>"


def error_text(error: BaseException) -> str:
    """Return the class of an error, and its text if it has one."""
    told = text(error)
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def number(value: Any) -> float:
    """Turn a user's number into one that can be shown: finite, and of bounded length.

    Returns:
        The number; 0 if it is not a number.
    """
    if type(value) is int and -_MOST <= value <= _MOST:
        return value
    try:
        try:
            found: float = int(operator.index(value))
        except TypeError:
            found = float(value)
            if math.isnan(found):
                return 0
        return max(-_MOST, min(_MOST, found))
    except Exception:  # noqa: BLE001 (the user's code; a Ctrl+C does get through)
        return 0


def name_of(worker: Any) -> str:
    """Return the name of a worker, or that of its class if it has none."""
    return text_of(worker, "name") or type(worker).__name__


def place_of(worker: Any) -> str:
    """Return the place of a worker: ``path/group``."""
    return f"{path_of(worker._node)}/{text_of(worker, 'group')}"


def label(worker: Any) -> str:
    """Return the name of a worker's task: ``path/group/name``."""
    return f"{place_of(worker)}/{name_of(worker)}"


def path_of(node: Any) -> str:
    """Return the names of the nodes from the root to this one, joined by slashes.

    Args:
        node: The node.
    """
    names: list[str] = []
    above = node
    with harmless:  # around all of them: nearly always none of them raises
        while above is not None and type(name := above.name) is str and name.isascii():
            names.append(name)
            above = above._creche_parent
    while above is not None:
        names.append(text_of(above, "name"))
        above = above._creche_parent
    return "/".join(reversed(names))


def name_of_work(work: Any) -> str:
    """Return the name of the function that work calls, if it has one."""
    called: object = getattr(work, "__name__", None)
    if called is None:  # perhaps a partial
        called = getattr(getattr(work, "func", work), "__name__", "")
    return called if type(called) is str else ""
