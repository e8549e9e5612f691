"""Runs work on a Dask cluster, for ``where=``: ``pip install 'creche[dask]'``.

``node.run_worker(work, where=OnDask(client))`` runs a function on one of the cluster's machines.
Creche must be installed there too.
"""

from __future__ import annotations

try:
    import distributed as _  # noqa: F401 (is it there?)
except ImportError:
    raise ImportError("creche.dask needs distributed: pip install 'creche[dask]'") from None

import copyreg
import sys

from creche import WorkerError

from ._way import OnDask

if sys.version_info < (3, 11):  # pragma: no cover (one of the two branches runs on any version)
    from exceptiongroup import BaseExceptionGroup

__all__ = ["OnDask"]

OnDask.__module__ = __name__

# Dask has tblib pickle every error, with its causes. Those of Creche pickle themselves, as
# a cause may be one that cannot be pickled. So do groups before Python 3.11, which tblib cannot
# make again.
_kinds: list[type[BaseException]] = [WorkerError]
if sys.version_info < (3, 11):  # pragma: no cover (as above)
    _kinds.append(BaseExceptionGroup)
while _kinds:
    _kind = _kinds.pop()
    copyreg.dispatch_table.pop(_kind, None)
    _kinds += _kind.__subclasses__()
