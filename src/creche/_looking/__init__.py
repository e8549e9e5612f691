"""What all who look at nodes share: the board, the trace, OpenTelemetry, a tree as text.

Who looks never fails the program that is looked at, and never loses an error of it. They subscribe
(``creche._messages.subscription``), follow what they hear in a task of their own beside the block
(``watching.beside()``), and keep their own faults from it: the first is told by the logger
``creche``, and they go on (``watching.Faults``). While the block is being cancelled they go on too,
so that the end is seen; what leaves the block leaves it as it is.

They read facts, not properties: a subclass may have made something else of ``state`` or ``path``,
and names, reasons and errors are the user's, whose ``__str__`` may raise. ``creche._core.facts``
gives what the library itself keeps, in a form that can be shown.

``watching``
    Being beside a block, and what becomes of faults.
``format``
    A snapshot as text, a line for each node, group and worker, of bounded length.

A new listener is an ``async with`` that subscribes and follows; ``creche.otel`` is the plainest
example. One that must be told in the very step of a change, as the log is, is a ``Listener``
instead: it takes what it is given (``_put``) and must neither wait nor raise.
"""
