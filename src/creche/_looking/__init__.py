"""What everything that watches nodes shares: the board, the trace, OpenTelemetry, trees as text.

A watcher never fails the program that it watches, and never hides its errors. It subscribes
(``creche._messages.subscription``), reads the events in a task of its own beside the block
(``watching.beside()``), and keeps its own faults out of the program: the logger ``creche`` reports
the first, and the watcher continues (``watching.Faults``). It also continues while the block is
being cancelled, so that it sees the end; errors leave the block unchanged.

Watchers read facts, not properties: a subclass may have overridden ``state`` or ``path``, and
names, reasons and errors are the user's, whose ``__str__`` may raise. ``creche._core.facts``
returns what the library itself keeps, in a form that can be shown.

``watching``
    Running a task beside a block, and handling its faults.
``format``
    A snapshot as text, a line for each node, group and worker, of bounded length.

A new listener is an ``async with`` that subscribes and follows; ``creche.otel`` is the plainest
example. One that has to be called in the same step as a change, like the log, is a ``Listener``
instead: it gets each message (``_put``) and must neither wait nor raise.
"""
