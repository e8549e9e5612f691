"""Writing to the log, whatever the log does; and the texts of users' objects.

A filter or a handler of the program's logging may raise, and so may the ``str()`` or ``repr()`` of
any object of the user's: a reason, an error, an argument. Neither may stop the library half-way, so
all formatting and logging in it goes through this module.
"""

from __future__ import annotations

import inspect
import logging
import sys
import traceback
from collections.abc import Awaitable
from types import GeneratorType
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    if sys.version_info >= (3, 13):
        from typing import TypeIs
    else:
        from typing_extensions import TypeIs

T = TypeVar("T")
logger = logging.getLogger("creche")
_LONGEST = 200  # characters of an object of the user's within a sentence


class _Harmless:
    """See ``harmless``."""

    def __enter__(self) -> None:
        """Begin what may fail."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        """End it; what it raised is dropped."""
        return kind is not None and not issubclass(kind, KeyboardInterrupt)


harmless = _Harmless()
"""``with harmless:`` reads something optional from a user's object; only a Ctrl+C gets through."""


def is_a(value: object, kind: type[T] | tuple[type[T], ...]) -> TypeIs[T]:
    """Like ``isinstance()``, but does not read ``__class__``, which may raise."""
    return issubclass(type(value), kind)


def is_awaitable(value: object) -> TypeIs[Awaitable[Any]]:
    """Return whether something can be awaited, judged by its class: see ``is_a()``."""
    if type(value) is GeneratorType:
        return inspect.isawaitable(cast("object", value))  # generators of types.coroutine() can
    return issubclass(type(value), Awaitable)


def text_of(value: object) -> str:
    """Return ``str(value)``, even if that raises."""
    with harmless:
        # A subclass of str may override anything; only its characters count.
        return str.__str__(value if is_a(value, str) else str(value))
    return f"<unprintable {type(value).__name__}>"


def shown(value: object, longest: int = _LONGEST) -> str:
    """Return ``repr(value)``, even if that raises, cut to a length that fits a sentence."""
    if is_a(value, str):
        value = str.__str__(value)[:longest]  # the repr of 20 MB takes long
    elif is_a(value, (bytes, bytearray)):
        value = value[:longest]
    text = f"<unprintable {type(value).__name__}>"
    with harmless:
        text = str.__str__(repr(value))
    return text if len(text) <= longest else f"{text[:longest]}..."


def tell(
    level: int,
    message: str,
    *args: object,
    error: BaseException | None = None,
    fields: Mapping[str, object] | None = None,
) -> None:
    """Write to the log; what the log raises goes to standard error, as logging does it.

    Args:
        level: The level, as of ``logging``.
        message: The message, with places for ``args`` as of ``logging``.
        args: What goes there.
        error: An exception that is to be shown with its traceback.
        fields: What the record gets as attributes.
    """
    try:
        logger.log(level, message, *args, exc_info=error, extra=fields)
    except KeyboardInterrupt:
        raise
    except BaseException as fault:  # noqa: BLE001 (from the program's handlers; nothing may stop because of it)
        with harmless:
            what = text_of(message % args if args else message)
            print(f"--- the log failed to tell: {what} ---", file=sys.stderr)  # noqa: T201 (see above)
            traceback.print_exception(fault, file=sys.stderr)
