"""The nursery: a task group that counts what keeps it open, and raises what failed in it, once.

It knows nothing of trees, names, groups or messages. It serves an *owner* (a node's life), and asks
it four things: to mark all as cancelled, to set in motion what still has to end, to make up for
workers whose tasks have died, and to take leave.

*What keeps it open* is one number, ``holds``. Whatever has to end first adds one and takes it away
as it ends: a started worker that is no daemon, a task of a handler or of a call from a thread
(``held``), the block of a child node. Whoever takes away the last one wakes the block that is being
left. The block then asks the owner whether there is anything left to set in motion (daemons to
cancel, mounted nodes to tell to leave) and waits again if so. In the step in which there is not, it
closes the bridge as well: so nothing can arrive in a closed nursery, and nothing that was sent is
lost.

*Opening* it takes a task, its host. Work may be admitted before: ``begin()`` is a plain call, which
makes it OPENING. What is started then is kept, and ``open()`` launches it.

*Errors* never leave a task. A worker hands its error to ``Nursery.fail()``, which gathers it
(``failures``) and cancels everything below. The block raises them when all is over: each error
once in the whole tree, in one group, or bare where it is no ``Exception``.

*Cancellation* goes down the tree by ``Nursery.cancel()``: first everything below is told, then the
scopes are cancelled, from below. A cancellation from outside, of a scope round the block or of a
native ``Task.cancel()``, is heard by the watcher, a task of the nursery, and becomes the same
``cancel()``. The wait for the end is shielded, so that the block outlives what is in it.

*The end* is steps that may be taken again. Whatever breaks one of them off (memory, a Ctrl+C at the
wrong line), the step is taken once more, the rest follow, and the fault is raised with the others.
A task that has died without saying so is found and reaped. A block that its own task can no longer
leave is closed by whoever notices: the watcher as the program ends, the parent, or another task
that calls ``__aexit__``.

``nursery`` is the task group, what keeps it open, and its cancellation; ``held`` the tasks that are
no workers. ``end`` has all ways to the end, ``nesting`` the order in which a task leaves blocks,
``watcher`` the host and the task that listens. ``failures`` is what will be raised.
"""
