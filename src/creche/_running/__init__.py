"""The ways of running work, one in each file. None knows about groups, nodes or messages.

A way is one coroutine function: it takes a *job* (``job.Job``, its view of the worker), runs the
work and returns what that returned, or raises what it raised. The worker awaits it in its own task
and ends with that outcome. ``docs/internals.md`` explains how to add one.

``task``
    Async work in the worker's own task. The way returns the work's own coroutine to await, because
    a coroutine around it would be the largest object of a worker.
``thread``
    A plain callable in a worker thread of AnyIO's. The call acts as AnyIO's limiter, so it learns
    when the token is acquired. From then on the call is certain: the worker becomes RUNNING and can
    no longer be called off. AnyIO releases a token when the task stops waiting; ours is released
    when the thread has really ended.
``far``, ``wire``
    The far side of work that runs elsewhere, and the bytes that go there and come back. They import
    no event loop, so a new process starts quickly. The bytes are carried by a way that is given to
    ``where=``, see ``creche._ground.way``.
``executor``, ``line``, ``hub``
    The way into a user's executor, such as a pool of processes; and the far and the home end of the
    line on which work there asks to begin, reports progress and receives cancellation.
``processes``, ``child``
    The way into processes of our own, which can be killed; and the code of such a process.
``own_loop``
    Async work in a thread, on an event loop of its own there, of the node's backend.
``runner``
    The tasks that jobs run in, one after another, because a task is most of the cost of a short
    job. The work cannot tell that it shares a task.
``stacks``
    Finds where in the code a job is, wherever it runs.

A way asks its job whether a value should be awaited, tells it that it waits for a thread or has
abandoned one, makes it enter the work (which raises if it was called off), and registers what to
call on cancellation.

A thread cannot be stopped. A cancelled thread is waited for, unless it may be abandoned: then its
worker ends at once, and what the thread does later has no effect; its errors are logged. A native
``Task.cancel()`` gets through AnyIO's shield; the wait is then resumed.

The user's code runs in functions marked ``@interruptible``, where a Ctrl+C may come on Trio.
"""
