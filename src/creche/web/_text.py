"""What is the user's, put in text that a page can show: of a bounded length, whatever it does."""

from __future__ import annotations

NAME = 200
"""Characters of a name that are shown."""
LINE = 500
"""Of a description or a reason."""
ERROR = 2_000
"""Of an error."""


def cut(text: str, longest: int) -> str:
    """Give a text of whole characters, at most so long."""
    short = text[:longest]
    if not short.isascii():
        short = short.encode("utf-8", "backslashreplace").decode("utf-8")
    return short if len(text) <= longest else f"{short}…"


def read(owner: object, name: str) -> str:
    """Give an attribute as a name, be it a property of a subclass."""
    try:
        return cut(str.__str__(str(getattr(owner, name))), NAME)
    except Exception:  # noqa: BLE001 (what others wrote)
        return f"<unreadable {name}>"


def told(error: BaseException | None) -> str:
    """Tell an error."""
    if error is None:  # it failed elsewhere
        return ""
    kind = type(error).__name__
    try:
        text = str.__str__(str(error))
    except Exception:  # noqa: BLE001 (what others wrote)
        text = "<unprintable>"
    return cut(f"{kind}: {text}" if text else kind, ERROR)
