"""The code in the README and the docs runs unchanged on every backend, and the links are valid."""

from __future__ import annotations

import ast
import re
import socket
from pathlib import Path

import anyio
import pytest

import creche
from helpers import run_python
from pages import PAGES, PROSE, ROOT, blocks

EXTRAS = {  # imported module: package that it needs
    "opentelemetry": "opentelemetry",
    "PIL": "PIL",
    "distributed": "distributed",
    "creche.board": "rich",
    "aiometer": "aiometer",
    "stamina": "stamina",
    "fastapi": "fastapi",
    "aiohttp": "aiohttp",
    "mcp": "mcp",
    "pydantic_ai": "pydantic_ai",
    "pytest_asyncio": "pytest_asyncio",
    "textual": "textual",
    "trio": "trio",
    "creche.web": "sse_starlette",
    "starlette": "starlette",
}
REFERENCE = ROOT / "docs" / "reference"
PACKAGE = Path(creche.__file__).parent
MODULES = [
    path.relative_to(PACKAGE)
    for path in sorted(PACKAGE.rglob("*.py"))
    if not str(path.relative_to(PACKAGE).with_suffix("")).replace("__init__", "").count("_")
]
CODE = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page))
]


PROGRAM = """
import runpy, sys, anyio
backend, run = {backend!r}, anyio.run
anyio.run = lambda main, *args, **options: run(main, *args, **(options or backend))
runpy.run_path("program.py", run_name="__main__")
"""


def run_as_program(folder, code, backend):
    """Run a program from a file, in a process of its own."""
    (folder / "program.py").write_text(code)
    ended = run_python(PROGRAM.format(backend=backend), warnings="default")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("code", CODE)
def test_code_runs(monkeypatch, tmp_path, backend, code):
    """Each Python block in the pages is a program that ends without an error."""
    for module, package in EXTRAS.items():
        if re.search(rf"^(from|import) {module}\b", code, re.MULTILINE):
            pytest.importorskip(package)
    if 'backend="trio"' in code:
        pytest.importorskip("trio")
    if "serve_tree(" in code and not hasattr(socket, "AF_UNIX"):
        pytest.skip("needs sockets with names")
    monkeypatch.chdir(tmp_path)  # some write files
    if 'if __name__ == "__main__":' in code:  # another process imports it
        run_as_program(tmp_path, code, backend)
        return
    run = anyio.run
    monkeypatch.setattr(anyio, "run", lambda main, **options: run(main, **(options or backend)))
    exec(compile(code, "<docs>", "exec"), {"__name__": "__main__"})  # noqa: S102 (our own pages)


def headings(page):
    """Return the anchors that GitHub and the site give to the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Each relative link leads to an existing file, and each anchor to a heading in it."""
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        target = page.parent / file if file else page
        if not (ROOT / "src").exists() and file.startswith(("src/", "../src/")):
            continue  # the wheel is tested without src
        assert target.exists(), file
        assert not anchor or anchor in headings(target), f"{file}#{anchor}"


def test_names_of_the_internals_are_in_the_code():
    """Each function and file that docs/internals.md names exists."""
    page = (ROOT / "docs" / "internals.md").read_text()
    package = Path(creche.__file__).parent
    code = "\n".join(path.read_text() for path in package.glob("_*/*.py"))
    functions = set(re.findall(r"`(?:\w+\.)?(\w+)\(\)", page))
    assert "_take_end" in functions
    assert sorted(name for name in functions if f"def {name}(" not in code) == []
    files = re.findall(r"`(_\w+/\w+\.py)`", page)
    assert [name for name in files if not (package / name).exists()] == []


def public_names(path):
    """Return ``__all__``, read from the source because the module's extra may not be installed."""
    for node in ast.parse((PACKAGE / path).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_the_reference_has_every_public_name(path):
    """Each name in ``__all__`` is documented in a page of docs/reference."""
    entry = re.compile(r"^\.\. (currentmodule|automodule|auto\w+):: (\S+)$", re.MULTILINE)
    documented = set()
    for page in REFERENCE.glob("*.rst"):
        current = ""
        for directive, name in entry.findall(page.read_text()):
            if directive in {"currentmodule", "automodule"}:
                current = name
            else:
                documented.add(name if name.startswith("creche.") else f"{current}.{name}")
    module = ".".join(["creche", *path.with_suffix("").parts]).removesuffix(".__init__")
    assert {f"{module}.{name}" for name in public_names(path)} <= documented


def test_the_site_has_every_page():
    """The tables of contents list exactly the pages that exist."""
    for index in (ROOT / "docs" / "index.md", REFERENCE / "index.md"):
        trees = re.findall(r"^```{toctree}\n(.*?)^```", index.read_text(), re.MULTILINE | re.DOTALL)
        listed = [line for line in "".join(trees).splitlines() if line and line[0] != ":"]
        pages = {each.stem for each in index.parent.iterdir() if each.suffix in {".md", ".rst"}}
        assert sorted(name for name in listed if "/" not in name) == sorted(pages - {"index"})
