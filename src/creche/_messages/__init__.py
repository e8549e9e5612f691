"""Messages: how they reach the handlers of a node, and its subscribers.

``mailbox``
    The messages of one node on their way to its handlers, one at a time and in order. No task waits
    for messages: the pump is a task that starts with the first message and ends with the last, and
    meanwhile it holds the nursery. So a block that is being left still handles what was posted. A
    message that bubbles is passed to the parent's mailbox after it was handled.
``subscription``
    A stream of what happens on a node, or on a whole tree. Each event is put into its backlog in
    the same step in which it happens, and the reader takes it from there. A subscription never
    slows or fails the node: if it is not read it grows, and after its block it gets nothing more.

A message of which only the newest counts has a key, and is dropped if one with the same key is
still waiting, whose reader sees the newest state: at most one progress event of a worker waits in
any queue.

An error of a handler fails the node, like an error of a worker, and is reported once. A handler
that returns a worker has started it and is done. While a node shuts down, async handlers run only
up to their first ``await``.
"""
