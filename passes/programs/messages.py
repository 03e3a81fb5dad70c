"""Which accelerator sends which bytes to which, when a value moves between two sets."""

from __future__ import annotations

from typing import NamedTuple

Members = tuple[int, ...]


class Message(NamedTuple):
    """Bytes ``[begin, end)`` of a value; a message from an accelerator to itself is a copy."""

    sender: int
    receiver: int
    begin: int
    end: int


def share(size: int, part: int, parts: int) -> tuple[int, int]:
    """The bytes that member ``part`` of ``parts`` holds of a sharded value of ``size`` bytes."""
    return part * size // parts, (part + 1) * size // parts


def messages(source: Members, target: Members, size: int, *, sharded: bool, gathered: bool) -> list[Message]:
    """The messages of one transfer, in the order in which all accelerators work through them.

    Target ``t`` gets a whole value from source ``t mod s``, or, with ``gathered``, the ``t``-th piece of it (the
    targets then gather the pieces). Of a sharded value it gets each piece of its share from the source that holds it.
    A share of no bytes is one empty message, so that the target knows when the value is there.
    """
    s, d = len(source), len(target)
    if not sharded:
        return [
            Message(source[t % s], b, *(share(size, t, d) if gathered else (0, size))) for t, b in enumerate(target)
        ]
    found: list[Message] = []
    for t, b in enumerate(target):
        low, high = share(size, t, d)
        if low == high:
            found.append(Message(source[t % s], b, low, high))
            continue
        for i, a in enumerate(source):
            begin, end = share(size, i, s)
            begin, end = max(begin, low), min(end, high)
            if begin < end:
                found.append(Message(a, b, begin, end))
    return found
