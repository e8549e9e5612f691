"""Messages: how they reach the handlers of a node, and those who subscribed.

``mailbox``
    The messages of one node on their way to its handlers, one at a time and in order. There is no
    task that idles: the pump is a task that starts with the first message and ends with the last,
    and it holds the nursery meanwhile. So a block that is left still handles what was posted. A
    message that bubbles goes on to the parent's mailbox once it was handled.
``subscription``
    A stream of what happens on a node, or on a whole tree. Whatever is told is put in its backlog
    in the very step in which it happens; whoever reads takes it from there. A subscription never
    slows or fails the node: one that is not read grows, and one that was left hears no more.

A message of which only the newest counts has a key, and takes the place of an older one with the
same key that still waits: of one worker's progress at most one waits anywhere.

An error of a handler fails the node, as one of a worker does, and is told once. A handler that
returns a worker has started it and is done. While a node shuts down, handlers are hurried: an async
one runs up to its first ``await`` only.
"""
