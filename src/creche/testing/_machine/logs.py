"""The library's log while a program of the machine runs: silent, or broken on purpose.

Scripts fail by the dozen, and each failure is logged with its traceback. A handler that keeps what
it is given, as pytest's does, keeps the frames of that traceback and of its callers too, and so the
worker. That is no leak of the library's, and nobody wants to read it beside a failure.
"""

from __future__ import annotations

import io
import logging
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


@contextmanager
def quiet_log(broken: str, told: Callable[[], object]) -> Generator[None]:
    """Keep what the logger ``creche`` is told from all handlers.

    Args:
        broken: What raises whenever the logger is told anything, changes of state included:
            ``"filter"``, ``"handler"``, or nothing.
        told: Called before it raises.
    """

    def fail(record: logging.LogRecord) -> bool:
        told()
        raise OSError(f"the {broken} of the log takes no {record.levelname}")

    logger = logging.getLogger("creche")
    before = logger.handlers[:], logger.propagate, logger.level, logger.disabled
    handler = logging.NullHandler()
    logger.handlers[:] = [handler]
    logger.propagate = False
    try:
        if not broken:
            yield
            return
        logger.setLevel(logging.DEBUG)
        logger.disabled = False
        if broken == "filter":
            logger.addFilter(fail)
        else:
            # NullHandler.handle() is what the logger calls.
            setattr(handler, "handle", fail)  # noqa: B010 (a method, which mypy lets nobody assign)
        with redirect_stderr(io.StringIO()):  # where all of it is told in the end
            yield
    finally:
        logger.removeFilter(fail)
        logger.handlers[:], logger.propagate, level, logger.disabled = before
        logger.setLevel(level)
