"""What is the user's, put in text and in numbers for those who watch, whatever its methods do.

Names, groups, descriptions, reasons and errors are the user's: they may be no text, and to ask them
for theirs may raise. That is no reason to fail a program which is only looked at.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from .report import harmless
from .report import text_of as _text_of

_MOST = 10**18
"""No number is told that is larger. Python's may have no end, and refuse to be told or divided."""


def text(value: object) -> str:
    """Put an object in text, whatever its ``__str__`` does.

    Returns:
        A plain ``str`` of whole characters, which every file can hold; of a string, and of a member
        of an ``Enum`` that is one, its own. ``<unprintable Foo>`` if there is no text to be had.
    """
    told = value if type(value) is str else _text_of(value)
    if told.isascii():
        return told
    return told.encode("utf-8", "backslashreplace").decode("utf-8")  # of half characters


def text_of(owner: object, attribute: str) -> str:
    """Put an attribute in text, be it a property of a subclass; of ``None`` that is empty."""
    with harmless:
        value = getattr(owner, attribute)
        return "" if value is None else text(value)
    return f"<unreadable {attribute}>"


def error_text(error: BaseException) -> str:
    """Tell what kind of error it is, and its text if it has one."""
    told = text(error)
    return f"{type(error).__name__}: {told}" if told else type(error).__name__


def number(value: Any) -> float:
    """Give what a user counts with as a number that can be shown: finite, and of a bounded length.

    Returns:
        The number; 0 if it is none.
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
    except Exception:  # noqa: BLE001 (what others wrote; a Ctrl+C does go on its way)
        return 0


def name_of(worker: Any) -> str:
    """Give the name of a worker, or that of its class if it has none."""
    return text_of(worker, "name") or type(worker).__name__


def place_of(worker: Any) -> str:
    """Tell where a worker is: ``path/group``."""
    return f"{path_of(worker._node)}/{text_of(worker, 'group')}"


def label(worker: Any) -> str:
    """Name a worker as its task is named: ``path/group/name``."""
    return f"{place_of(worker)}/{name_of(worker)}"


def path_of(node: Any) -> str:
    """Give the names of the nodes from the root to this one, joined by slashes.

    Args:
        node: The node, or what a worker knows of it.
    """
    names: list[str] = []
    above = node
    with harmless:  # round all of them, as in nearly all cases nothing is wrong with any
        while above is not None and type(name := above.name) is str and name.isascii():
            names.append(name)
            above = above._creche_parent
    while above is not None:
        names.append(text_of(above, "name"))
        above = above._creche_parent
    return "/".join(reversed(names))


def name_of_work(work: Any) -> str:
    """Give the name of the function that work calls, as far as it has one."""
    called: object = getattr(work, "__name__", None)
    if called is None:  # a partial, perhaps
        called = getattr(getattr(work, "func", work), "__name__", "")
    return called if type(called) is str else ""
