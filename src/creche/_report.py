"""What the library says to the log, whatever the log does; and the texts of users' objects.

A filter or a handler of the program's logging may raise, and so may the ``str()`` or ``repr()`` of
anything that a user gave: a reason, an error, an argument. Neither may stop the library half-way,
so nothing in it formats or logs but through this module.
"""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress

logger = logging.getLogger("creche")
_LONGEST = 200  # characters of an object of the user's within a sentence


def text_of(value: object) -> str:
    """Give ``str(value)``, whatever that does."""
    try:
        # A subclass of str may have ideas of its own; its letters are what counts.
        return str.__str__(value if isinstance(value, str) else str(value))
    except Exception:  # noqa: BLE001 (the user's own, of which a text is all that is wanted)
        return f"<unprintable {type(value).__name__}>"


def shown(value: object, longest: int = _LONGEST) -> str:
    """Give ``repr(value)``, whatever that does, cut to a length fit for a sentence."""
    if isinstance(value, str):
        value = str.__str__(value)[:longest]  # the repr of 20 MB takes its time
    elif isinstance(value, bytes | bytearray):
        value = value[:longest]
    try:
        text = str.__str__(repr(value))
    except Exception:  # noqa: BLE001 (as above)
        text = f"<unprintable {type(value).__name__}>"
    return text if len(text) <= longest else f"{text[:longest]}..."


def tell(
    level: int,
    message: str,
    *args: object,
    error: BaseException | None = None,
    fields: dict[str, str | None] | None = None,
) -> None:
    """Write to the log; what the log raises is told on standard error, as logging itself does.

    Args:
        level: The level, as of ``logging``.
        message: The message, with places for ``args`` as of ``logging``.
        args: What goes there.
        error: An exception that is to be shown with its traceback.
        fields: What the record gets as attributes.
    """
    try:
        logger.log(level, message, *args, exc_info=error, extra=fields)
    except Exception as fault:  # noqa: BLE001 (the program's own, and nothing may stop for it)
        with suppress(Exception):
            what = text_of(message % args if args else message)
            print(f"--- the log failed to tell: {what} ---", file=sys.stderr)  # noqa: T201 (see above)
            traceback.print_exception(fault, file=sys.stderr)
