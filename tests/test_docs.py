"""The code in README and docs runs as it stands, on every backend."""

from __future__ import annotations

import re
from pathlib import Path

import anyio
import pytest

import creche
from pages import PAGES, ROOT, blocks

EXTRAS = {  # what needs which
    "opentelemetry": "opentelemetry",
    "creche.board": "rich",
    "fastapi": "fastapi",
    "aiohttp": "aiohttp",
    "pytest_asyncio": "pytest_asyncio",
    "trio": "trio",
}
CODE = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page))
]


@pytest.mark.parametrize("code", CODE)
def test_code_runs(monkeypatch, tmp_path, backend, code):
    """Each block of Python in the pages is a program that ends without an error."""
    for module, package in EXTRAS.items():
        if re.search(rf"^(from|import) {module}\b", code, re.MULTILINE):
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)  # some write files
    run = anyio.run
    monkeypatch.setattr(anyio, "run", lambda main, **options: run(main, **(options or backend)))
    exec(compile(code, "<docs>", "exec"), {"__name__": "__main__"})  # noqa: S102 (our own pages)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Each link to a file of the repository leads to one."""
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    if not (ROOT / "src").exists():  # the wheel is tested without it
        links = [link for link in links if not link.startswith("src/")]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_names_of_the_internals_are_in_the_code():
    """Each function and file that the page on the internals names is there."""
    page = (ROOT / "docs" / "internals.md").read_text()
    package = Path(creche.__file__).parent
    code = "\n".join(path.read_text() for path in package.glob("_*/*.py"))
    functions = set(re.findall(r"`(?:\w+\.)?(\w+)\(\)", page))
    assert "_take_end" in functions
    assert sorted(name for name in functions if f"def {name}(" not in code) == []
    files = re.findall(r"`(_\w+/\w+\.py)`", page)
    assert [name for name in files if not (package / name).exists()] == []
