"""Runs work on a Dask cluster, for ``where=``: ``pip install 'creche[dask]'``.

``node.run_worker(work, where=OnDask(client))`` runs a function on one of the cluster's machines.
Creche must be installed there too.
"""

from __future__ import annotations

try:
    import distributed as _  # noqa: F401 (is it there?)
except ImportError:
    raise ImportError("creche.dask needs distributed: pip install 'creche[dask]'") from None

from ._way import OnDask

__all__ = ["OnDask"]

OnDask.__module__ = __name__
