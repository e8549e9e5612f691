"""How Sphinx builds the site: ``nox -s docs``, or on Read the Docs."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

from pygments.lexers.python import PythonLexer
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer

import creche

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Source"]

project = "Creche"
author = copyright = PROJECT["authors"][0]["name"]  # noqa: A001 (Sphinx wants it)
release = PROJECT["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build"]
nitpicky = True
# What is outside of Creche is checked by nobody here: its inventories would need the network.
nitpick_ignore_regex = [
    ("py:.*", "(?!creche).*"),
    ("py:.*", r"creche(\..*)?\._.*|creche\..*[a-z]T"),  # what is private; variables of types
]
suppress_warnings = ["ref.python"]  # of a short name in an annotation that two modules have
if "READTHEDOCS" in os.environ:  # names from outside are links too, where there is a network
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "anyio": ("https://anyio.readthedocs.io/en/stable", None),
        "trio": ("https://trio.readthedocs.io/en/stable", None),
    }

myst_heading_anchors = 3

autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Checkpoint", "Threads"]
napoleon_use_rtype = False

NAME = r"``((?:[A-Z]\w*|\w+\.\w+|\w+(?=\(\)))[\w.]*)(\(\))?``"

# Types are in annotations alone: what stands before a colon is text.
GoogleDocstring._consume_inline_attribute = lambda self: (
    ("", GoogleDocstring(self._consume_to_end(), self._config).lines())
)
GoogleDocstring._consume_returns_section = lambda self, **_: [
    ("", "", self._dedent(self._consume_to_next_section()))
]

html_theme = "furo"
html_title = f"Creche {release}"
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}


def modules() -> list[Any]:
    """Import all of the package."""
    found = [each.name for each in pkgutil.walk_packages(creche.__path__, "creche.")]
    found = [name for name in found if not name.endswith("__main__")]
    return [creche, *map(importlib.import_module, found)]


def reveal_types(module: Any) -> None:
    """Import what a module imports for type checkers alone, so that annotations can be read."""
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(node.body, []), module.__file__, "exec"), vars(module))  # noqa: S102


def read_attributes(module: Any) -> None:
    """Have the docstrings of attributes found, of classes that say they are of another module."""
    source = ModuleAnalyzer.for_module(module.__name__)
    source.analyze()
    for public in {value.__module__ for value in vars(module).values() if isinstance(value, type)}:
        if public.startswith("creche") and public != module.__name__:
            shown = ModuleAnalyzer.for_module(public)
            shown.analyze()
            shown.attr_docs.update(source.attr_docs)
            shown.annotations.update(source.annotations)
            shown.tagorder.update(source.tagorder)


def link_names(
    _app: Any, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]
) -> None:
    """Make links of names in docstrings: what has a dot, a capital letter or ``()``."""
    lines[:] = [re.sub(NAME, r":py:obj:`\1\2 <\1>`", line) for line in lines]


def find_at_root(app: Any, env: Any, node: Any, shown: Any) -> Any:
    """Look for such a name at the root of the package too; what is no name of ours is no link."""
    if node.get("reftype") != "obj":
        return None
    node["py:module"] = "creche"
    where = (node["refdoc"], app.builder, "obj", node["reftarget"])
    return env.get_domain("py").resolve_xref(env, *where, node, shown) or shown


def link_outside(_app: Any, _page: str, source: list[str]) -> None:
    """Have links to files outside of the docs lead to the repository."""
    source[0] = re.sub(r"\]\(\.\./(?!docs/)", f"]({REPOSITORY}/blob/main/", source[0])


def setup(app: Any) -> None:
    app.add_lexer("ipython", PythonLexer)  # GitHub knows it by this name
    for module in modules():
        reveal_types(module)
        read_attributes(module)
    app.connect("autodoc-process-docstring", link_names)
    app.connect("missing-reference", find_at_root, priority=900)  # intersphinx goes first
    app.connect("source-read", link_outside)
