"""Workers, groups and nodes.

A worker goes through four stages::

    made Worker(...) its node does not know it yet PENDING admission.admit() admitted: its group
    gives it a place, it is announced;
                                             it waits to be started, for a slot or for a thread
    RUNNING      run.begin()                 its work was entered, in the first step of its task
    final        ending.end()                SUCCESS, ERROR or CANCELLED

*One way in.* The node checks that it is open and admits the worker; the group applies exclusive,
its limit and its rule of overflow, finds it a slot and launches it; a runner takes it. What can
fail comes first, so nothing is known or announced of a worker that is refused.

*One cancellation*, in three ways. Cancelling one worker (``Worker.cancel()`` in any thread,
exclusive work, or a limit) requests it in the calling thread and delivers it on the loop.
Cancelling a node requests it of each worker below, and then cancels the scopes of the nurseries at
once. A cancellation from outside, of a scope around the block or by a native ``Task.cancel()``, is
noticed by the nursery's watcher, or when the work ends, and becomes one of the first two. The order
is always the same: request, notify the thread, cancel the scope. The first request counts; from
then on the worker never ends SUCCESS.

*One end*, for whatever reason, in one order: the error gets its note and is logged, the result or
error is stored, the state changed, the change announced, waiters woken, the node failed, the slot
handed on, the work released, and last the hold on the nursery. Threads read without a lock and rely
on that order. Each step can be repeated, and is if it was interrupted.

``worker`` is the class: its fields and methods. ``admission`` is the way in, ``run`` the task,
``moving`` the writer of the state, ``cancelling`` the cancellation, ``ending`` the end; ``checks``
rejects invalid arguments; ``adapting`` is for workers whose state is assigned from outside.
``elsewhere`` is the view of a worker for a way that was given to ``where=``, ``resources`` what
such ways keep for a tree of nodes. ``parts`` holds what few workers have, ``readiness`` what
services need of that; ``events`` are the events about a worker, ``followers`` those who listen to
one worker only; ``progress`` sets its steps; ``log`` writes to the log. ``group`` decides which
workers run, ``giving_way`` which make room, and ``room`` waits for room; ``manager`` is a view of a
whole tree. ``node`` is a place in the ``tree`` that *has* a nursery, a mailbox, an ``audience``
(its listeners), a ``life`` (how it is entered and ends, the owner of its nursery) and, if
``mounting`` opened it, a mount. ``shutdown`` ends the work below a node that stays open. ``calls``
come from threads into the loop. ``waiting`` waits; ``deadlock`` finds out whether a wait can end.
``snapshot`` copies all of it as plain data.

A worker, its group, its node and its events name each other, for types only. Private names of nodes
begin with ``_creche_``: users write subclasses of Node, and must not overwrite one by accident.
"""
