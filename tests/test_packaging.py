"""What is installed: its names, its types, its floors and what it brings along."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import creche

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

PACKAGE = Path(creche.__file__).parent
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

# From the bottom up. A file imports from the files listed before it and from nothing else, be it
# for types alone.
FLOORS = (
    ("_state", "_message", "_errors"),
    ("_bridge", "_waiting"),
    ("_running",),
    ("_nursery",),
    ("_mailbox",),
    ("_worker",),
    ("_group",),
    ("_manager",),
    ("_node",),
    ("_decorator",),
    ("__init__",),
    ("__main__",),
)
ORDER = [module for floor in FLOORS for module in floor]

# What each file may import from outside: the standard library and this. The rest is for one file.
ALLOWED = {"anyio", "exceptiongroup"}
ALLOWED_FOR_TYPES = {*ALLOWED, "typing_extensions"}
ALLOWED_IN = {"__main__": {"rich"}}
# May be absent: its import is in a ``try`` that catches ImportError.
OPTIONAL = {"sniffio", "rich"}


def modules():
    return sorted(path.stem for path in PACKAGE.glob("*.py"))


def parse(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imported(node):
    """The modules that an import statement names: of the package as ``.x``, of others as ``x``."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif node.level == 0:
        names = [node.module]
    elif node.module is not None:
        names = [f"creche.{node.module}"]
    else:
        names = [f"creche.{alias.name}" for alias in node.names]
    for name in names:
        if name == "creche":
            yield ".__init__"
        elif name.startswith("creche."):
            yield name.removeprefix("creche")
        else:
            yield name.partition(".")[0]


def imports(tree, *, kind=""):
    """Each module that a file imports, and how: plainly, for types, or as an option."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for module in imported(node):
                yield module, kind
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(node.body, []), kind="for types")
            yield from imports(ast.Module(node.orelse, []), kind=kind)
        elif isinstance(node, ast.Try) and any(
            handler.type is not None and "ImportError" in ast.unparse(handler.type)
            for handler in node.handlers
        ):
            yield from imports(ast.Module(node.body, []), kind="optional")
            yield from imports(ast.Module([*node.handlers, *node.finalbody], []), kind=kind)
        else:
            yield from imports(node, kind=kind)


def public_objects():
    """Each public object that has a module of its own, and the classes that are within them."""
    for name in creche.__all__:
        value = getattr(creche, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value
        if inspect.isclass(value):
            for inner_name, inner in vars(value).items():
                if inspect.isclass(inner) and not inner_name.startswith("_"):
                    yield f"{name}.{inner_name}", inner


def test_all_is_the_public_names():
    """``__all__`` names everything public at the root that is no module, sorted, and once."""
    public = [
        name
        for name, value in vars(creche).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    ]
    assert creche.__all__ == sorted(public)


def test_public_modules_are_the_documented_ones():
    """No module but the listed ones can be imported without an underscore."""
    assert [module for module in modules() if not module.startswith("_")] == []


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(*each, id=each[0]) for each in public_objects()]
)
def test_public_objects_belong_to_the_root(name, value):
    """What is public says that it is of ``creche``, in tracebacks, docs and pickles."""
    assert value.__module__ == "creche"
    assert value.__qualname__ == name


def test_types_are_shipped():
    """Type checkers are told that the package has types."""
    assert (PACKAGE / "py.typed").read_bytes() == b""


def test_floors_name_every_file():
    """Each file of the package stands on one floor."""
    assert sorted(ORDER) == modules()


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_downward(module):
    """A file imports only from files below it, for types as well."""
    below = ORDER[: ORDER.index(module)]
    upward = [
        name
        for name, _ in imports(parse(module))
        if name.startswith(".") and name.removeprefix(".") not in below
    ]
    assert upward == []


@pytest.mark.parametrize("module", ORDER)
def test_imports_from_outside_are_declared(module):
    """A file needs the standard library and the declared dependencies, and no more."""
    undeclared = []
    for name, kind in imports(parse(module)):
        allowed = set(sys.stdlib_module_names) | ALLOWED_IN.get(module, set())
        allowed |= ALLOWED_FOR_TYPES if kind == "for types" else ALLOWED
        if kind == "optional":
            allowed |= OPTIONAL
        if not name.startswith(".") and name not in allowed:
            undeclared.append(name)
    assert undeclared == []


def test_import_brings_no_extras():
    """Importing Creche imports neither a backend nor anything that is an extra."""
    program = (
        "import sys; before = set(sys.modules); import creche; print(*set(sys.modules) - before)"
    )
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    brought = set(answer.stdout.split())
    assert "creche" in brought
    unwanted = {"trio", "rich", "asyncio", "anyio._backends._asyncio", "anyio._backends._trio"}
    assert brought & unwanted == set()


def test_metadata_is_that_of_the_project():
    """The installed version, Pythons and dependencies are those that pyproject.toml states."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    metadata = importlib.metadata.metadata("creche")
    assert metadata["Name"] == project["name"]
    assert metadata["Version"] == project["version"]
    assert metadata["Requires-Python"] == project["requires-python"]
    assert sorted(metadata.get_all("Provides-Extra")) == sorted(project["optional-dependencies"])
    required = [
        each for each in importlib.metadata.requires("creche") or [] if "extra ==" not in each
    ]
    assert [each.partition(";")[0].replace(" ", "") for each in required] == [
        each.partition(";")[0].replace(" ", "") for each in project["dependencies"]
    ]
