"""The fixture ``node`` for pytest-asyncio, which runs only fixtures that are its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import pytest_asyncio

from creche.hosting import Host

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from creche import Node

_Scope = Literal["function", "class", "module", "package", "session"]


def _make_opener(scope: _Scope) -> None:
    name = f"_creche_node_in_{scope}_loop"

    @pytest_asyncio.fixture(loop_scope=scope, name=name)
    async def opener(new_node: Node) -> AsyncGenerator[Node, None]:
        async with Host(new_node) as opened:
            yield opened

    globals()[name] = opener  # pytest finds it there


# A node belongs to the loop of its test, so there is a fixture for each scope of a loop.
for _scope in get_args(_Scope):
    _make_opener(_scope)
