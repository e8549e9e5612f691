"""Workers, groups and nodes.

A worker goes through four stages::

    made         Worker(...)                 its node does not know it yet
    PENDING      admission.admit()           admitted: its group gives it a place, it is announced;
                                             it waits to be started, for a slot or for a thread
    RUNNING      run.begin()                 its work was entered, in the first step of its task
    final        ending.end()                SUCCESS, ERROR or CANCELLED

*One way in.* The node checks that it is open and admits the worker; the group applies exclusive,
its limit and its rule of overflow, finds it a slot and launches it; a runner takes it. What can
fail comes first, so a worker that is refused was never there, and nobody is told of it.

*One cancellation*, by three roads. Whoever asks one worker (``Worker.cancel()``, in any thread, or
exclusive work, or a limit) requests it in the calling thread and has it delivered on the loop.
Whoever cancels a node requests it of each worker below, and then cancels the scopes of the
nurseries at once. What comes from outside, a scope around the block or a native ``Task.cancel()``,
is heard by the nursery's watcher, or found as the work falls, and becomes one of the first two. On
each road the order is the same: request, tell what runs in a thread, cancel the scope. The first
request counts; from then on the worker never ends SUCCESS.

*One end*, whoever brings it about, in one order: the error is told and decorated, result or error
stored, state changed, announced, waiters woken, the node failed, the slot handed on, what the work
held let go of, and last the hold on the nursery. Threads read without a lock and rely on that
order. Each step may be taken again, and is, if it was interrupted.

``worker`` is the class: its fields, and what may be asked. ``admission`` is the way in, ``run`` the
task, ``moving`` the writer of the state, ``cancelling`` the cancellation, ``ending`` the end;
``checks`` tells what is invalid; ``adapting`` is for workers whose state is assigned from
outside. ``elsewhere`` is what a way that was given to ``where=`` sees of a worker, ``resources``
what such ways keep for a tree of nodes. ``parts`` holds what few workers have, ``readiness`` what
services need of it; ``events`` what is told of a worker, and ``followers`` whom, beside those who
hear the node; ``progress`` how far it is; ``log`` what is written of it. ``group`` decides who
runs, ``giving_way`` who makes room for that, and ``room`` waits for it; ``manager`` looks at a
whole tree. ``node`` is a place in the ``tree`` that *has* a nursery, a mailbox, an ``audience``
(who listens), a ``life`` (how it is entered and how it ends, which is what its nursery asks for)
and, when ``mounting`` opened it, a mount. ``shutdown`` ends the work below a node that stays open.
``calls`` are from threads into the loop. ``waiting`` waits; ``deadlock`` tells whether a wait can
end. ``snapshot`` pictures all of it as plain data.

A worker, its group, its node and its events name each other, for types only. Private names of nodes
begin with ``_creche_``: users write subclasses of Node, and must not overwrite one by accident.
"""
