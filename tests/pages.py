"""The pages, README and docs, and the Python in them; run with a folder, it writes that there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROSE = [*PAGES, *sorted(path for path in ROOT.glob("*.md") if path not in PAGES)]
# A block may really swallow its own cancellation, so that what it binds may be unbound after it.
PYRIGHT = '{"typeCheckingMode": "strict", "reportPossiblyUnboundVariable": "none"}\n'


def blocks(page):
    """Give the blocks of Python in a page, each below as many empty lines as are above it."""
    text = page.read_text()
    return [
        "\n" * text.count("\n", 0, found.start(1)) + found[1]
        for found in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "pyrightconfig.json").write_text(PYRIGHT)
    for page in PAGES:
        for number, code in enumerate(blocks(page)):
            (folder / f"{page.stem}_{number}.py").write_text(code)
