"""Check the contents of the wheel and the sdist: ``python tests/packed.py dist``, in a clone."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
NOT_IN_SDIST = re.compile(r"\.(?!gitignore)")  # files that only the repository needs


def kept():
    """Return the files that are in git."""
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)  # noqa: S607
    return set(run.stdout.decode().rstrip("\0").split("\0"))


def faults(folder):
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {each.name.partition("/")[2] for each in archive if each.isfile()}
        expected = {name for name in kept() if not NOT_IN_SDIST.match(name)} | {"PKG-INFO"}
        yield from (f"{sdist.name}: {name}" for name in sorted(held ^ expected))
    with zipfile.ZipFile(wheel) as archive:
        info = wheel.name.partition("-py3")[0] + ".dist-info"
        expected = {each.removeprefix("src/") for each in kept() if each.startswith("src/")}
        expected |= {f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD")}
        expected |= {f"{info}/licenses/LICENSE"}
        yield from (f"{wheel.name}: {name}" for name in sorted({*archive.namelist()} ^ expected))
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
    urls = dict(each.split(", ") for each in metadata.get_all("Project-URL"))
    for link in re.findall(r"\]\(([^)#][^)]*)\)", metadata.get_payload()):
        if link.startswith(urls["Source"]):
            path = link.removeprefix(urls["Source"]).split("/", 3)[3].partition("#")[0]
            if not (ROOT / path).exists():
                yield f"the README on PyPI: {link} leads nowhere"
        elif not link.startswith("https://"):
            yield f"the README on PyPI: {link} is not a whole address"
        elif "creche" in link and link not in urls.values():
            yield f"the README on PyPI: {link} is not an address of the project"


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1])))
    sys.exit("\n".join(["wrong, or missing:", *found]) if found else 0)
