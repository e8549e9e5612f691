"""Places at which something can be made to happen: the executed lines of the library.

A trace function counts them as the main thread executes them, and acts at some of them. What it
raises appears in that line, like an error from a signal handler.

A line is executed in several steps. CPython checks for signals between some of these: when a
function begins, after a call, and when a loop repeats. Such a moment can be a place, too. There are
no others, so Ctrl+C cannot strike elsewhere. Lines are what people read.
"""

from __future__ import annotations

import dis
import os
import sys
from pathlib import Path

import anyio

import creche

LIBRARY = str(Path(creche.__file__).parent)
AROUND = (LIBRARY, str(Path(anyio.__file__).parent), str(Path(__file__).with_name("programs.py")))


LOOKS = ("RESUME", "CALL", "JUMP_BACKWARD")
"""After these instructions CPython looks for signals."""


def is_one_step(code):
    """Whether CPython looks for signals nowhere in a function, but before its first line.

    3.10 looks at jumps ahead as well.
    """
    names = {each.opname for each in dis.get_instructions(code)}
    return sys.version_info >= (3, 11) and not any(name.startswith(LOOKS[1:]) for name in names)


def is_core(path):
    """Whether a file is of the core: not the tour, nor a package of its own, like the board."""
    if not path.startswith(LIBRARY):
        return False
    first = Path(path).relative_to(LIBRARY).parts[0]
    return first.startswith("_") and first != "__main__.py"


def is_around(path):
    """Whether a file belongs to the library, to AnyIO or to the programs."""
    return path.startswith(AROUND)


REACHES = {"core": is_core, "around": is_around}


def spoken(frame):
    """Name the place of a frame."""
    code = frame.f_code
    folder, _, file = code.co_filename.rpartition(os.sep)
    return f"{os.path.basename(folder)}/{file}:{frame.f_lineno} {code.co_name}"  # noqa: PTH119 (often)


class Places:
    """Counts places, and acts at some.

    Args:
        acts: What to call, by the number of the place; the first is 1.
        reach: Whose lines count, see ``REACHES``.
        grain: What counts, ``"line"`` or ``"moment"``.
        trail: If given, it collects all places that are met.
    """

    def __init__(self, acts, reach="core", grain="line", trail=None):
        self._acts = acts
        self._counts_in = REACHES[reach]
        self._grain = grain
        self._trail = trail
        self._known = {}
        self._moments = {}  # of each code
        self._last = {}  # instruction, of each frame
        self.count = 0
        self.hit = []
        """Where it has acted, in words."""

    def __enter__(self):
        sys.settrace(self._enter)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)
        sys.settrace(None)

    def _counts(self, code):
        known = self._known.get(code)
        if known is None:
            known = self._counts_in(code.co_filename) and not is_one_step(code)
            self._known[code] = known
        return known

    def _enter(self, frame, event, arg):
        if not self._counts(frame.f_code):
            return None
        return self._begin(frame)

    def _begin(self, frame):
        frame.f_trace_opcodes = self._grain == "moment"
        return self._step

    def _step(self, frame, event, arg):
        if event == "line" if self._grain == "line" else self._is_moment(frame, event):
            self.count += 1
            if self._trail is not None:
                self._trail.append(spoken(frame))
            act = self._acts.get(self.count)
            if act is not None:
                self._act(act, frame)
        return self._step

    def _is_moment(self, frame, event):
        if event == "return":
            self._last.pop(frame, None)
        if event != "opcode":
            return False
        moments = self._moments.get(frame.f_code)
        if moments is None:
            moments = self._moments[frame.f_code] = {
                each.offset
                for each in dis.get_instructions(frame.f_code)
                if each.opname.startswith(LOOKS)
            }
        last = self._last.get(frame)
        self._last[frame] = frame.f_lasti
        return last in moments

    def _act(self, act, frame):
        self.hit.append(spoken(frame))
        try:
            act()
        except BaseException:
            # Python has no use for a trace function that raises, and drops it.
            if len(self.hit) < len(self._acts):
                sys.setprofile(self._go_on)
            raise

    def _go_on(self, frame, event, arg):
        sys.setprofile(None)
        sys.settrace(self._enter)
        while frame is not None:
            if self._counts(frame.f_code):
                frame.f_trace = self._begin(frame)
            frame = frame.f_back
