"""The pytest fixture of the virtual clock."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from ._virtual import virtual_time

if TYPE_CHECKING:
    from collections.abc import Iterator

_BACKENDS = ["asyncio", "trio"] if find_spec("trio") else ["asyncio"]


@pytest.fixture(params=_BACKENDS)
def virtual_backend(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run the async tests of a module on each backend, with a clock that jumps over every wait.

    It replaces AnyIO's fixture if you import it under that name::

        from creche.testing import virtual_backend as anyio_backend

    Each test has its own clock, see ``virtual_time()``.
    """
    with virtual_time(request.param) as backend:
        yield backend
