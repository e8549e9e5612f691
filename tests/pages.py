"""The pages (README and docs) and their Python code; run with a folder to write it there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROSE = [*PAGES, *sorted(path for path in ROOT.glob("*.md") if path not in PAGES)]
# A ``with`` block may swallow its own cancellation, so names bound in it may be unbound after it.
PYRIGHT = '{"typeCheckingMode": "strict", "reportPossiblyUnboundVariable": "none"}\n'


def blocks(page):
    """Return the Python blocks of a page, each padded to keep its line numbers."""
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
