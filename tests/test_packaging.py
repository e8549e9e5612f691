"""The installed package: its names, types, layers and dependencies."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import sys
import textwrap
from pathlib import Path

import pytest

import creche
import creche.testing
from helpers import run_python

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # a dependency of pytest

PACKAGE = Path(creche.__file__).parent
PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

# Folders from the bottom up, and in each folder its files from the bottom up, in layers. Files of
# one layer do not need each other. A file imports only from files that are listed before it. Only
# for types may files of one folder import each other, as a worker, its group and its node do.
FLOORS = {
    "_ground": (
        ("_ground.states", "_ground.message", "_ground.report", "_ground.interrupts"),
        ("_ground.public", "_ground.way"),
        ("_ground.errors", "_ground.context", "_ground.text", "_ground.backend"),
        ("_ground.bridge", "_ground.options", "_ground.call", "_ground.steps"),
    ),
    "_nursery": (
        ("_nursery.failures", "_nursery.held", "_nursery.nesting", "_nursery.watcher"),
        ("_nursery.end",),
        ("_nursery.nursery",),
    ),
    "_running": (
        ("_running.job", "_running.runner"),
        ("_running.task", "_running.own_loop", "_running.thread", "_running.stacks"),
        ("_running.wire", "_running.tracing", "_running.stream"),
        ("_running.far", "_running.line", "_running.hub"),
        ("_running.executor", "_running.child", "_running.processes"),
    ),
    "_messages": (("_messages.mailbox", "_messages.subscription"),),
    "_core": (
        (
            "_core.events",
            "_core.followers",
            "_core.log",
            "_core.parts",
            "_core.progress",
            "_core.deadlock",
        ),
        ("_core.tree", "_core.moving", "_core.ending", "_core.cancelling", "_core.waiting"),
        ("_core.room", "_core.giving_way"),
        ("_core.adapting", "_core.readiness", "_core.run"),
        ("_core.resources", "_core.elsewhere", "_core.checks"),
        ("_core.worker",),
        ("_core.calls", "_core.group", "_core.admission", "_core.manager", "_core.facts"),
        ("_core.snapshot", "_core.audience", "_core.mounting", "_core.late", "_core.life"),
        ("_core.shutdown",),
        ("_core.node",),
    ),
    "_looking": (("_looking.watching", "_looking.format"),),
    "": (
        ("_decorator", "__init__", "ways", "hosting", "remote"),
        ("otel._spans", "otel._metrics", "otel.__init__"),
        ("board._words", "board._pace", "board._tally", "board._pen", "board._picture"),
        ("board._terminal", "board._notebook", "board._lines", "board.__init__"),
        ("services._function", "services._log", "services._restart", "services._watchdog"),
        ("services._attempts", "services._service", "services.__init__"),
        ("jobs._status", "jobs._errors", "jobs._store", "jobs._ask"),
        ("jobs._job", "jobs._jobs", "jobs._sqlite", "jobs.__init__"),
        ("dask._there",),
        ("dask._line", "dask._way", "dask.__init__"),
        ("mcp._wire", "agents"),
        ("mcp._client", "mcp._server", "mcp.__init__"),
        ("web._problems", "web._closing", "web._text", "web._answers", "web._documented"),
        ("web._access", "web._lifespan", "web._jobs", "web._tally", "web._state", "web._tree"),
        ("web._page", "web._routes", "web.__init__"),
        ("textual._worker", "textual._manager", "textual._app", "textual.__init__"),
        ("trace._layout", "trace._chrome", "trace._page", "trace._recorder", "trace.__init__"),
        ("testing._scripts", "testing._virtual"),
        ("testing._leaks", "testing._recorder", "testing._strategies", "testing._fixtures"),
        ("testing._machine.world", "testing._machine.logs", "testing._machine.model"),
        ("testing._machine.machine",),
        ("testing._machine.bundles", "testing._machine.acts"),
        ("testing._machine.worker_invariants", "testing._machine.node_invariants"),
        ("testing._machine.nodes", "testing._machine.running", "testing._machine.cancels"),
        ("testing._machine.calls", "testing._machine.progress", "testing._machine.races"),
        ("testing._machine.__init__",),
        ("testing.plugin", "testing._of_asyncio"),
        ("testing.__init__", "__main__"),
    ),
}
HEADS = [f"{folder}.__init__" for folder in FLOORS if folder]  # which import nothing
ORDER = HEADS + [module for floors in FLOORS.values() for floor in floors for module in floor]
PUBLIC_MODULES = [
    *("agents", "board", "dask", "hosting", "jobs", "mcp", "otel", "remote", "services"),
    *("testing", "textual", "trace", "ways", "web"),
]

# What a file may import from outside: the standard library and ALLOWED. FOR_TYPES may also be
# imported for types only. OPTIONAL may be missing: its import is in a ``try`` that catches
# ImportError. Packages outside the core may have dependencies of their own.
ALLOWED = {"anyio", "exceptiongroup"}
FOR_TYPES = {"typing_extensions"}
OPTIONAL = {"sniffio", "stackscope"}
OF_PACKAGES = {
    "board": {"rich"},
    "dask": {"distributed"},
    "mcp": {"mcp", "mcp_types", "pydantic"},
    "otel": {"opentelemetry"},
    "services": set[str](),
    "testing": {"hypothesis", "pytest", "trio"},
    "textual": {"textual"},
    "trace": set[str](),
    "web": {"starlette", "sse_starlette"},
}
# Imported within functions that run only where the library is installed.
OF_FILES = {
    "__main__": {"distributed"},
    "board._notebook": {"IPython"},
    "_ground.backend": {"trio"},
    "services._watchdog": {"trio"},
    "testing._of_asyncio": {"pytest_asyncio"},
    "web._routes": {"fastapi"},
}


def modules():
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return sorted(".".join(path.parts) for path in paths)


def parse(module):
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(node, package):
    """The full names of everything that an import statement imports, modules or not."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    parts = package.split(".")
    origin = [*parts[: len(parts) - node.level + 1]] if node.level else []
    origin += node.module.split(".") if node.module else []
    return [".".join([*origin, alias.name]) for alias in node.names]


def placed(name):
    """The file of Creche that has a name, with a leading dot, or the top-level outside package."""
    top, _, rest = name.partition(".")
    if top != "creche":
        return top
    every = modules()
    while rest:
        for module in (rest, f"{rest}.__init__"):
            if module in every:
                return f".{module}"
        rest = rest.rpartition(".")[0]
    return ".__init__"


def imports(tree, package, kind=""):
    """Each file that is imported, and how: normally, for types, or optionally."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported(node, package):
                yield placed(name), kind
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(node.body, []), package, "for types")
            yield from imports(ast.Module(node.orelse, []), package, kind)
        elif isinstance(node, ast.Try) and any(
            handler.type is not None and "ImportError" in ast.unparse(handler.type)
            for handler in node.handlers
        ):
            yield from imports(ast.Module(node.body, []), package, "optional")
            rest = [*node.handlers, *node.orelse, *node.finalbody]
            yield from imports(ast.Module(rest, []), package, kind)
        else:
            yield from imports(node, package, kind)


def imports_of(module):
    return list(imports(parse(module), f"creche.{module}".rpartition(".")[0]))


def public_objects():
    """Each public object of a public module, and the classes nested in them."""
    for module in (creche, creche.testing):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield module.__name__, name, value
            if inspect.isclass(value):
                for inner_name, inner in vars(value).items():
                    if inspect.isclass(inner) and not inner_name.startswith("_"):
                        yield module.__name__, f"{name}.{inner_name}", inner


def test_all_is_the_public_names():
    """``__all__`` lists each public name of the root that is not a module, once and sorted."""
    public = [
        name
        for name in dir(creche)
        if not name.startswith("_") and not inspect.ismodule(getattr(creche, name))
    ]
    public = [name for name in public if name not in {"annotations", "publish", "TYPE_CHECKING"}]
    assert creche.__all__ == sorted(public)


def test_public_modules_are_the_documented_ones():
    """Only the listed modules have a name without an underscore."""
    tops = {module.partition(".")[0] for module in modules()}
    assert sorted(top for top in tops if not top.startswith("_")) == PUBLIC_MODULES


@pytest.mark.parametrize(
    ("module", "name", "value"), [pytest.param(*each, id=each[1]) for each in public_objects()]
)
def test_public_objects_belong_to_their_module(module, name, value):
    """The module and qualified name of a public object are those it is imported by."""
    assert value.__module__ == module
    assert value.__qualname__ == name


def test_types_are_shipped():
    """The package ships ``py.typed`` for type checkers."""
    assert (PACKAGE / "py.typed").read_bytes() == b""


def test_floors_name_every_file():
    """The layers list each file of the package exactly once."""
    assert sorted(ORDER) == modules()


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_downward(module):
    """A file imports only from files below it, and for types also from files of its own folder."""
    below = {f".{each}" for each in ORDER[: ORDER.index(module)]}
    folder = f".{module.rpartition('.')[0]}."
    upward = {
        name
        for name, kind in imports_of(module)
        if name.startswith(".")
        and name not in below
        and not (kind == "for types" and name.startswith(folder) and name.count(".") > 1)
    }
    assert upward == set()


# Types of a folder above, which a folder below names, and what users implement: ways, resources.
PROTOCOLS = {
    "_ground": {"FailedWorker", "Job", "Resource", "Steps"},
    "_nursery": {"Owner"},
    "_messages": {"Listener", "Source"},
    "_running": {"Job", "TaskJob"},
    "_core": {"Waitable"},  # a vertex of the wait-for graph: a worker, a node or a free slot
}


def test_protocols_stand_at_borders():
    """Only the listed types of the core are Protocols; all others are classes."""
    found = {}
    for module in ORDER:
        folder = module.partition(".")[0]
        for node in ast.walk(parse(module)) if folder in PROTOCOLS else ():
            if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases):
                found.setdefault(folder, set()).add(node.name)
    assert found == PROTOCOLS


def test_few_names_are_deleted_for_cycles():
    """A ``del`` that breaks a reference cycle cites its reason, and there are few of them."""
    lines = [
        line.strip()
        for path in PACKAGE.glob("_*/*.py")
        for line in path.read_text("utf-8").splitlines()
        if line.strip().startswith("del ") and "[" not in line
    ]
    assert all(line.endswith("# see errors: frames") for line in lines)
    assert len(lines) <= 10


@pytest.mark.parametrize("module", ORDER)
def test_imports_from_outside_are_declared(module):
    """A file imports only the standard library and declared dependencies."""
    always = {*sys.stdlib_module_names, *ALLOWED, *OF_FILES.get(module, ())}
    always |= OF_PACKAGES.get(module.partition(".")[0], set())
    allowed = {
        "": always,
        "for types": always | FOR_TYPES,
        "optional": always | OPTIONAL,
    }
    outside = [each for each in imports_of(module) if not each[0].startswith(".")]
    assert [name for name, kind in outside if name not in allowed[kind]] == []


def test_import_brings_no_extras():
    """Importing Creche imports neither a backend nor an extra."""
    program = (
        "import sys; before = set(sys.modules); import creche; print(*set(sys.modules) - before)"
    )
    brought = set(run_python(program).stdout.split())
    assert "creche" in brought
    unwanted = {"trio", "rich", "asyncio", "anyio._backends._asyncio", "anyio._backends._trio"}
    assert brought & unwanted == set()


def test_what_looks_at_trees_is_imported_when_it_is_used():
    """Code for snapshots is imported on first use, and its names can be pickled and resolved."""
    program = """
        import pickle, sys, typing
        import creche
        looking = {"creche._core.snapshot", "creche._running.stacks", "creche._looking.format"}
        print(looking & set(sys.modules))
        picture = creche.Node("app").snapshot()
        print(pickle.loads(pickle.dumps(picture)) == picture, type(picture))
        print(typing.get_type_hints(type(picture))["groups"])
    """
    assert run_python(textwrap.dedent(program)).stdout.splitlines() == [
        "set()",
        "True <class 'creche.NodeSnapshot'>",
        "tuple[creche.GroupSnapshot, ...]",
    ]


def test_names_that_are_imported_later_are_there():
    """Names that are imported lazily are in ``dir()``, star imports and attribute access."""
    program = """
        import creche
        print({*creche.__all__} <= {*dir(creche)}, "format_tree" in vars(creche))
        print(creche.FrameSnapshot)
        from creche import *
        print(format_tree(Node("app")))
        creche.format_trees
    """
    run = run_python(textwrap.dedent(program))
    assert run.stdout.splitlines() == [
        "True False",
        "<class 'creche.FrameSnapshot'>",
        "node app: not open yet",
    ]
    assert "AttributeError: module 'creche' has no attribute 'format_trees'" in run.stderr


def test_metadata_is_that_of_the_project():
    """The installed version, Python versions and dependencies are those in pyproject.toml."""
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
