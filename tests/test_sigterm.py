"""A service under load that is ended by SIGTERM, a few times; ``nox -s sigterm`` does it 2,000."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "sigterm" / "run.py"


@pytest.mark.skipif(sys.platform == "win32", reason="it has no SIGTERM")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_service_under_load_is_ended(backend):
    """A service under load ends in time, with the right exit status, and every end is reported."""
    pytest.importorskip(backend)
    command = [sys.executable, str(RUN), "--times", "2", "--backend", backend, "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert run.stdout.startswith(f"{backend}, seed 1: 2 ended by SIGTERM, 0 not as they should")
    assert (run.stderr, run.returncode) == ("", 0)
