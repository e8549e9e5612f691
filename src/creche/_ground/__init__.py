"""What all of the library stands on, and what knows nothing of workers or nodes.

``states``
    The states of a worker and those of a nursery, each with one table of the changes that are
    allowed. The tables are data: the diagram in the docs and the tests are made from them.
``errors``
    The public errors; what is set on an error of the user's, past its class, which may refuse; and
    the rule on reference cycles.
``report``, ``text``
    The one way to put the user's objects in words and to write to the log. Names, reasons and
    errors are the user's, so to ask them for their text may raise; nothing in the library fails
    because of that.
``message``
    What is posted to a node, and a queue in which a message may take the place of an older one.
``backend``
    What AnyIO does not tell: whether a task has ended, and whether a cancellation has come from
    outside (the cancel probe).
``interrupts``
    How a Ctrl+C is kept out of the library's own steps on Trio.
``bridge``
    The way into an event loop, for threads and for signal handlers.
``public``
    Which module the public names say they belong to.
``context``, ``options``
    The context variable of the current worker; the options of a worker, and the checks of them.

Two rules hold everywhere above.

*Steps.* A signal handler runs in the main thread between any two lines. So a step of the library
that must not be broken into says so (``bridge.steps.busy``), and a call that comes in its midst is
posted to the loop instead of made at once. What one line changes, nothing can come between.

*Cycles.* A worker holds the error of its work, and the traceback of an error holds frames. If such
a frame knows the worker, the two keep each other alive until the collector runs. ``errors`` lists
the four ways in which the library avoids this.
"""
