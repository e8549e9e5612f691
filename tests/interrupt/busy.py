"""A busy program for tests to interrupt: ``python tests/interrupt/busy.py BACKEND SECONDS``."""

from __future__ import annotations

import faulthandler
import functools
import logging
import signal
import sys

import anyio
import fires
import programs

if __name__ == "__main__":
    # Without this, a process that a shell started in the background would ignore Ctrl+C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
    logging.getLogger("creche").addFilter(lambda record: record.getMessage() != fires.FAILS)
    begun = functools.partial(print, "begun", flush=True)
    anyio.run(programs.busy, begun, **fires.BACKENDS[sys.argv[1]])
