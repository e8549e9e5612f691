"""The ways of running work, one in each file. None knows of groups, nodes or messages.

A way is one coroutine function: it takes a *job* (``job.Job``, which is what a way sees of its
worker), runs its work and returns what that returned, or raises what it raised. The worker awaits
it in its own task and makes an end of the outcome. ``docs/internals.md`` tells how to add one.

``task``
    Async work in the worker's own task. The way gives the work's own coroutine to await, as one
    around it would be the largest object of a worker.
``thread``
    A plain callable in a worker thread of AnyIO's. The call takes the place of the limiter: it is
    told when the token is there, and from then on the call is certain, so the worker becomes
    RUNNING there and can no longer be called off. AnyIO gives a token back as the task stops
    waiting; ours goes back when the thread has really ended.
``far``, ``wire``
    The far side of work that runs elsewhere, and the bytes that go there and come back. They import
    no event loop, so that a new process is soon there. What carries the bytes is a way that is
    given to ``where=``, see ``creche._ground.way``.
``executor``, ``line``, ``hub``
    The way into an executor of others, such as a pool of processes; and the far and the home end of
    the line by which work there asks to begin, tells how far it is, and is told to stop.
``processes``, ``child``
    The way into processes of our own, which can be killed; and such a process from within.
``own_loop``
    Async work in a thread, on an event loop of its own there, of the node's backend.
``runner``
    What a job runs in: tasks that run one job after another, as a task is most of what a short job
    costs. Whatever the way, the work cannot tell that it shares one.
``stacks``
    Where a job stands in the code, wherever it runs.

What a job is asked: whether a value is to be awaited, to note that it waits for a thread, to enter
the work (which raises if it was called off), to note that its thread was abandoned, and to have
something called when it is cancelled.

A thread cannot be stopped. A cancelled one is waited for, unless it may be abandoned: then its
worker ends at once, and what the thread does later has no effect; an error of its own is logged. A
native ``Task.cancel()`` goes through AnyIO's shield; the wait is taken up again.

User's code runs in functions that are marked ``@interruptible``: there a Ctrl+C may come on Trio.
"""
