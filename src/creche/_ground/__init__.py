"""The ground floor: what the rest of the library uses, and what knows nothing of workers or nodes.

``states``
    The states of a worker and those of a nursery, each with one table of the allowed changes. The
    tables are data: the diagram in the docs and the tests are generated from them.
``errors``
    The public errors; how attributes of a user's error are set even if its class refuses; and the
    rule on reference cycles.
``report``, ``text``
    The one way to turn the user's objects into text and to write to the log. Names, reasons and
    errors are the user's, so their ``str()`` may raise; nothing in the library fails because of
    that.
``message``
    What is posted to a node, and a queue in which a message may stand for a later one.
``backend``
    What AnyIO does not offer: whether a task has ended, and whether a cancellation came from
    outside (the cancel probe).
``interrupts``
    How the library's own steps are protected from a Ctrl+C on Trio.
``bridge``
    The way into an event loop, for threads and for signal handlers.
``public``
    Sets the module that public names claim to be defined in.
``context``, ``options``
    The context variable of the current worker; the options of a worker, and the checks of them.

Two rules hold everywhere above.

*Steps.* A signal handler runs in the main thread between any two lines. So a step of the library
that must not be interrupted is marked (``bridge.steps.busy``), and a call that arrives during it is
posted to the loop instead of being made at once. Changes that are made in one line cannot be
interrupted.

*Cycles.* A worker holds the error of its work, and the traceback of an error holds frames. If such
a frame knows the worker, the two keep each other alive until the collector runs. ``errors`` lists
the four ways in which the library avoids this.
"""
