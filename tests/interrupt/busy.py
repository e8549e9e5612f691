"""A busy program, to be interrupted: ``python tests/interrupt/busy.py BACKEND SECONDS``."""

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
    # What a shell runs in the background ignores Ctrl+C, and so would this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.dump_traceback_later(float(sys.argv[2]), exit=True)
    logging.getLogger("creche").addFilter(lambda record: record.getMessage() != fires.FAILS)
    begun = functools.partial(print, "begun", flush=True)
    anyio.run(programs.busy, begun, **fires.BACKENDS[sys.argv[1]])
