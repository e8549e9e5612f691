"""Numbers, times and names in few letters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


_LONGEST = 99_999 * 86_400.0
"""Seconds; nobody waits for what takes longer."""


def amount(number: float) -> str:
    """Tell a number in at most five letters."""
    for unit in ("", "k", "M", "G", "T"):
        if number < 999.5:  # noqa: PLR2004 (what is still told with three digits)
            whole = number >= 99.5 or (not unit and number == int(number))  # noqa: PLR2004
            return f"{number:.{0 if whole else 1}f}{unit}"
        number /= 1000
    return "lots"


def speed(rate: float) -> str:
    """Tell how many a second, or a minute or an hour where those are few; nothing of none."""
    if rate <= 0:
        return ""
    for unit in ("s", "m"):
        if rate >= 0.05:  # noqa: PLR2004 (less would be told as 0.0)
            return f"{amount(round(rate, 1))}/{unit}"
        rate *= 60
    return f"{amount(round(rate, 1))}/h"


def duration(seconds: float) -> str:
    """Tell a time in at most six letters."""
    minutes, rest = divmod(int(min(max(0.0, seconds), _LONGEST)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h" if days < 100 else f"{days}d"  # noqa: PLR2004 (two digits)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def plain(text: str, encoding: str) -> str:
    """Tell a text in one line, in letters that a terminal of an encoding can show."""
    shown = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def counted(numbers: Mapping[str, int]) -> str:
    """Tell how many there are of what there is any of."""
    return ", ".join(f"{number:,} {what}" for what, number in numbers.items() if number)
