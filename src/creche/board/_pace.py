"""How fast something goes: over the last seconds, not over all the time that it has been there."""

from __future__ import annotations

from collections import deque

_SPAN = 10.0
"""Seconds over which a rate is taken, at least."""
_STEP = 0.5
"""Seconds between two points that are kept, at least."""
_LEAST = 5
"""How many points are kept, however old: what does a step a minute has a rate, too."""


class Pace:
    """Tells how fast a count grows, from the points at which it has grown.

    What has stopped gets slower and slower, as its points get older.

    Args:
        begun: When it was at 0, in seconds of the loop's clock.
    """

    def __init__(self, begun: float) -> None:
        self._points = deque([(begun, 0.0)])

    def note(self, now: float, count: float) -> None:
        """Note how far it is.

        Args:
            now: The time, in seconds of the loop's clock.
            count: How many have been counted.
        """
        points = self._points
        if count < points[-1][1]:  # it begins again
            points.clear()
        if not points or count > points[-1][1]:
            if len(points) > 1 and now - points[-2][0] < _STEP:
                points.pop()  # of many at once the last is kept
            points.append((now, count))
        while len(points) > _LEAST and points[1][0] <= now - _SPAN:
            points.popleft()

    def rate(self, now: float, count: float) -> float:
        """Tell how many it does per second, now that it is so far."""
        self.note(now, count)
        begun, before = self._points[0]
        return (count - before) / (now - begun) if now > begun else 0.0
