"""Send a service all kinds of valid and invalid requests, generated from its OpenAPI document.

schemathesis does that with all of its checks: the service must not fail, must send only documented
statuses and content, and bodies that fit their schemas, and must reject invalid requests.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> int:
    """Run the service and schemathesis against it, and return the exit status of schemathesis."""
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        port = each.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
    with subprocess.Popen([*command, "--log-level", "warning"], cwd=FOLDER) as server:
        try:
            while True:
                with socket.socket() as each:
                    if each.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            url = f"http://127.0.0.1:{port}/openapi.json"
            given = sys.argv[1:] or ["--checks", "all", "--max-examples", "60"]
            return subprocess.run(
                [sys.executable, "-m", "schemathesis.cli", "run", url, *given],
                check=False,
                cwd=FOLDER,
            ).returncode
        finally:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
