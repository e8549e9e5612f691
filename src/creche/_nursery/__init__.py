"""The nursery: a task group that counts what keeps it open, and raises its failures once.

It knows nothing of trees, names, groups or messages. It serves an *owner* (a node's life), and asks
it to do four things: mark all workers as cancelled, start whatever still has to end, end workers
whose tasks have died, and leave the tree.

*What keeps it open* is one number, ``holds``. Whatever has to end first adds one and removes it
when it ends: a started worker that is not a daemon, a task of a handler or of a call from a thread
(``held``), the block of a child node. Removing the last one wakes the block that is being left. The
block then asks the owner whether anything else has to be ended (daemons to cancel, mounted nodes to
close) and if so, waits again. If not, it closes the bridge in the same step, so nothing can arrive
in a closed nursery, and nothing that was sent is lost.

*Opening* it needs a task, its host. Work can be admitted before that: ``begin()`` is a plain call,
which makes it OPENING. What is started then is kept until ``open()`` launches it.

*Errors* never leave a task. A worker hands its error to ``Nursery.fail()``, which gathers it
(``failures``) and cancels everything below. The block raises them at the end: each error once in
the whole tree, in one group, or bare if it is not an ``Exception``.

*Cancellation* goes down the tree by ``Nursery.cancel()``: first everything below is marked, then
the scopes are cancelled, from the bottom up. A cancellation from outside, of a scope around the
block or of a native ``Task.cancel()``, reaches the watcher, a task of the nursery, which turns it
into the same ``cancel()``. The wait for the end is shielded, so the block outlives everything in
it.

*The end* consists of steps that can be repeated. If a step is interrupted (out of memory, a Ctrl+C
at the wrong line), it is repeated, the remaining steps follow, and the fault is raised with the
other errors. A task that has died silently is found and reaped. If its own task can no longer leave
a block, something else closes it: the watcher when the program ends, the parent, or another task
that calls ``__aexit__``.

``nursery`` has the task group, what keeps it open, and its cancellation; ``held`` the tasks that
are not workers; ``end`` all ways of ending; ``nesting`` the order in which a task leaves blocks;
``watcher`` the host and the task that watches; ``failures`` what will be raised.
"""
