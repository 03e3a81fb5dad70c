"""Blocks of accelerators along a chain that share boundaries and pull segments forward.

Plan classes C1 and C2. Operations are taken in a topological order. Each block of accelerators gets
a contiguous range of them, as in contiguous stages, and two ways to use the idle time that is left
because the next operation does not fit any more:

* a *shared* range: the next operations run on this block and the next one together, at twice the
  width (operations that split well lose almost nothing, and it costs no latency);
* a *pulled* range: operations from a little further down the chain run here instead of on the block
  that runs their neighbours. A micro-batch that has passed this block comes back to it and goes on:
  that takes one extra period of latency, a *lap*, and one more micro-batch in flight.

Both are free of loss: the period equals the heaviest load. Rotate every block so that the range it
shares with its predecessor starts when the predecessor is done with its own range; the pulled range
follows; nothing on a block overlaps as long as its load fits in the period.

The search is a beam over the blocks from the front of the chain. A state is how far the chain is
covered, what is already promised on the next block, and which range ahead is already pulled; states
are kept apart by the number of laps, and preferred by the work that remains, measured by its
canonical area. Bisection on the period (:func:`shortest`) calls it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

NEVER = 1 << 60
"""Time of an operation on a width that admits none of its allotments; beyond any period."""

NOTHING = range(0)


class Block(NamedTuple):
    """``width`` accelerators from ``first`` on, and the positions of the order that they run.

    ``own`` less ``skipped`` on this block alone, ``shared`` on this block and the next at twice the
    width, ``pulled`` on this block alone, a lap later.
    """

    first: int
    width: int
    own: range
    skipped: range = NOTHING
    shared: range = NOTHING
    pulled: range = NOTHING


@dataclass(frozen=True)
class Effort:
    """How hard to search: states kept for each number of laps, and candidates tried from each.

    ``look`` is how far ahead a pulled range may start, ``back`` how many operations a block may leave
    although they fit, ``pulls`` how many pulled ranges are tried for each gap, ``pace`` how many laps
    a state may be ahead of an even spread.
    """

    beam: int = 8
    look: int = 32
    back: int = 3
    pulls: int = 3
    pace: int = 6


class Chain:
    """A sequence of moldable operations and the blocks that may run it.

    ``times[i]`` maps the allotments of the operation at position i to ns, ``params[i]`` to bytes on
    each accelerator. ``group`` is the size of the innermost group: blocks stay inside one or take
    whole ones, and two blocks share operations only inside one. On a platform of several groups a width
    below the group's size must divide it.
    """

    def __init__(
        self,
        times: Sequence[Mapping[int, int]],
        accelerators: int,
        *,
        params: Sequence[Mapping[int, int]] | None = None,
        memory: int = NEVER,
        group: int | None = None,
        widths: Sequence[int] | None = None,
    ):
        self.n = len(times)
        self.accelerators = accelerators
        self.memory = memory
        self.group = min(group or accelerators, accelerators)
        self.widths = tuple(widths) if widths else _powers(self.group)
        self.area = _prefix([min(k * t for k, t in table.items()) for table in times])
        self.choice: dict[int, list[int | None]] = {}
        self.time: dict[int, list[int]] = {}
        self.bytes: dict[int, list[int]] = {}
        for w in sorted({*self.widths, *(2 * w for w in self.widths)}):
            chosen = [_fastest(table, w) for table in times]
            self.choice[w] = chosen
            self.time[w] = _prefix([NEVER if k is None else t[k] for k, t in zip(chosen, times, strict=True)])
            nothing: Mapping[int, int] = {}
            held = params or [nothing] * self.n
            self.bytes[w] = _prefix([0 if k is None else p.get(k, 0) for k, p in zip(chosen, held, strict=True)])

    def aligned(self, first: int, width: int) -> bool:
        """Whether a block of ``width`` may begin at accelerator ``first``."""
        if first + width > self.accelerators:
            return False
        return self.group == self.accelerators or first % min(width, self.group) == 0

    def load(self, block: Block, before: range) -> int:
        """Time per period on ``block``, when the block before it shares the positions ``before``."""
        alone, both = self.time[block.width], self.time[2 * block.width]
        total = sum(alone[r.stop] - alone[r.start] for r in (block.own, block.pulled) if r)
        total -= alone[block.skipped.stop] - alone[block.skipped.start] if block.skipped else 0
        return total + sum(both[r.stop] - both[r.start] for r in (block.shared, before) if r)

    def period(self, blocks: Sequence[Block]) -> int:
        """The heaviest load."""
        return max(self.load(b, blocks[i - 1].shared if i else NOTHING) for i, b in enumerate(blocks))


def _powers(limit: int) -> tuple[int, ...]:
    """Powers of two up to ``limit`` that divide it."""
    return tuple(1 << e for e in range(limit.bit_length()) if limit % (1 << e) == 0)


def _prefix(values: Sequence[int]) -> list[int]:
    return list(accumulate(values, initial=0))


def _fastest(table: Mapping[int, int], width: int) -> int | None:
    """The fastest allotment of at most ``width``; the widest of several, so that values stay where they are."""
    return min((k for k in table if k <= width), key=lambda k: (table[k], -k), default=None)


Stop = Callable[[int], bool]
"""Told how many states were looked at since it was asked last: whether to end the search."""


# --- the beam --------------------------------------------------------------------------------


class _State(NamedTuple):
    """Positions before ``done`` are covered, but for what follows; ``carry`` ns and ``carried`` bytes of a
    shared range are promised on the next block, which must have ``width``; ``hole`` is pulled already."""

    remaining: int
    done: int
    carry: int
    carried: int
    width: int
    hole: range
    laps: int
    block: Block | None
    parent: _State | None


Found = dict[int, dict[tuple[int, int, int], _State]]
"""Laps → (done, width of a shared range, start of a pulled one) → best state."""


def fill(
    chain: Chain, period: int, laps: int = 0, effort: Effort = Effort(), stop: Stop = lambda states: False
) -> tuple[Block, ...] | None:
    """Blocks that cover ``chain`` within ``period`` ns and at most ``laps`` laps.

    None when none were found, or when ``stop``, told how many states were looked at since it was asked last,
    said so before.
    """
    goal = chain.accelerators
    levels: list[Found] = [{} for _ in range(goal + 1)]
    levels[0][0] = {(0, 0, 0): _State(chain.area[-1], 0, 0, 0, 0, NOTHING, 0, None, None)}
    search = _Search(chain, period, laps, effort)
    seen = 0
    for used in range(goal):
        if stop(seen):
            return None
        states = list(_promising(levels[used], laps * (used + 1) // goal + effort.pace, effort.beam))
        seen = len(states)
        for state in states:
            for w in chain.widths:
                if chain.aligned(used, w) and (not state.carry or state.width == w):
                    search.extend(state, used, w, levels[used + w])
            if not state.carry:  # leave an accelerator idle, for the next block to be aligned
                levels[used + 1].setdefault(state.laps, {}).setdefault((state.done, 0, state.hole.start), state)
        finished = [s for d in levels[used + 1].values() for s in d.values() if s.done == chain.n and not s.carry]
        if finished:
            return _trace(min(finished, key=lambda s: s.laps))
        levels[used] = {}
    return None


def _promising(found: Found, most_laps: int, beam: int) -> Iterator[_State]:
    """For each number of laps the states with least work remaining, if no state with fewer laps has less."""
    least = NEVER * NEVER
    for lap in sorted(found):
        if lap > most_laps:
            return
        ranked = sorted(found[lap].values(), key=lambda s: s.remaining)[:beam]
        yield from (s for s in ranked if s.remaining < least)
        least = min(least, ranked[0].remaining)


def _trace(state: _State) -> tuple[Block, ...]:
    blocks: list[Block] = []
    at: _State | None = state
    while at is not None and at.block is not None:
        blocks.append(at.block)
        at = at.parent
    return tuple(reversed(blocks))


class _Search:
    """The ways to go on from a state, for one trial period."""

    def __init__(self, chain: Chain, period: int, laps: int, effort: Effort):
        self.chain, self.period, self.laps, self.effort = chain, period, laps, effort
        self.known: dict[tuple[int, int, int, int, int], list[range]] = {}

    def extend(self, state: _State, first: int, w: int, into: Found) -> None:
        """Add every way to load a block of width ``w`` at accelerator ``first`` after ``state``."""
        chain, hole = self.chain, state.hole
        time, held, both, both_held = chain.time[w], chain.bytes[w], chain.time[2 * w], chain.bytes[2 * w]
        budget, room = self.period - state.carry, chain.memory - state.carried
        last = min(_reach(time, state.done, budget, hole), _reach(held, state.done, room, hole))
        can_share = first + 2 * w <= chain.accelerators and first // chain.group == (first + 2 * w - 1) // chain.group
        for stop in range(last, max(state.done, last - self.effort.back) - 1, -1):
            if hole.start <= stop < hole.stop:
                continue
            skipped = hole if stop >= hole.stop else NOTHING
            gap = budget - (time[stop] - time[state.done]) + time[skipped.stop] - time[skipped.start]
            left = room - (held[stop] - held[state.done]) + held[skipped.stop] - held[skipped.start]
            if stop == last:
                self._put(into, state, first, w, stop, NOTHING, NOTHING)
            if stop >= chain.n or skipped is not hole:
                continue
            options = [(stop, NOTHING, gap, left)]
            if can_share:
                most = min(bisect_right(both, both[stop] + gap), bisect_right(both_held, both_held[stop] + left)) - 1
                for end in (most, most - 1):
                    if end > stop and both[end] > both[stop]:
                        taken, stored = both[end] - both[stop], both_held[end] - both_held[stop]
                        self._put(into, state, first, w, end, range(stop, end), NOTHING)
                        options.append((end, range(stop, end), gap - taken, left - stored))
            if state.laps < self.laps:
                for done, shared, spare, bytes_left in options:
                    for pulled in self._pulls(w, done, spare, bytes_left, both[done] - both[stop]):
                        self._put(into, state, first, w, done, shared, pulled)

    def _put(self, into: Found, state: _State, first: int, w: int, done: int, shared: range, pulled: range) -> None:
        """Keep the new state unless one that covers the same promises less on the next block."""
        chain = self.chain
        both = chain.time[2 * w]
        carry = both[shared.stop] - both[shared.start]
        states = into.setdefault(state.laps + (1 if pulled else 0), {})
        ahead = pulled or (state.hole if done < state.hole.stop else NOTHING)
        key = (done, w if carry else 0, ahead.start)
        known = states.get(key)
        if known is not None and known.carry <= carry:
            return
        area, held = chain.area, chain.bytes[2 * w]
        remaining = area[chain.n] - area[done] + carry * w - (area[ahead.stop] - area[ahead.start])
        own = range(state.done, shared.start if shared else done)
        block = Block(first, w, own, state.hole if done >= state.hole.stop else NOTHING, shared, pulled)
        carried = held[shared.stop] - held[shared.start]
        laps = state.laps + (1 if pulled else 0)
        states[key] = _State(remaining, done, carry, carried, w, ahead, laps, block, state)

    def _pulls(self, w: int, done: int, gap: int, room: int, lead: int) -> list[range]:
        """The ranges after ``done`` that fill ``gap`` best.

        Only ranges no longer than what runs before them on the next block: then the micro-batch is back
        there after exactly one lap, and not two.
        """
        key = (w, done, gap, room, lead)
        if key in self.known:
            return self.known[key]
        time, held = self.chain.time[w], self.chain.bytes[w]
        begin = time[done] - lead
        found: list[tuple[int, int, int]] = []
        for start in range(done + 1, min(self.chain.n, done + self.effort.look)):
            now = time[start]
            stop = bisect_right(time, now + gap, start) - 1
            if stop > start and held[stop] - held[start] > room:
                stop = bisect_right(held, held[start] + room, start) - 1
            length = time[stop] - now
            if 0 < length <= now - begin:
                found.append((-length, start, stop))
        found.sort()
        self.known[key] = [range(start, stop) for _, start, stop in found[: self.effort.pulls]]
        return self.known[key]


def _reach(prefix: Sequence[int], start: int, budget: int, hole: range) -> int:
    """The furthest position up to which the operations from ``start`` on, less the hole, stay within ``budget``."""
    stop = bisect_right(prefix, prefix[start] + budget) - 1
    if hole and stop >= hole.start:
        size = prefix[hole.stop] - prefix[hole.start]
        stop = max(hole.stop, bisect_right(prefix, prefix[start] + budget + size) - 1)
    return stop


# --- the shortest period ---------------------------------------------------------------------


def shortest(
    chain: Chain,
    bound: int,
    laps: int = 0,
    effort: Effort = Effort(),
    tolerance: float = 1e-3,
    known: int | None = None,
    stop: Stop = lambda states: False,
    on_found: Callable[[int, tuple[Block, ...]], None] | None = None,
) -> tuple[int, tuple[Block, ...]] | None:
    """The shortest period found and its blocks, by bisection above the lower bound ``bound`` (ns).

    Stops within ``tolerance``, relative, or when ``stop`` says so; ``on_found`` is told of every
    improvement. Only periods below ``known`` are looked at. None when there is none, or when even a long
    period covers nothing, because an operation has no allotment that fits a block or the memory.
    """
    best: tuple[int, tuple[Block, ...]] | None = None
    low, high = bound - 1, known
    trial = max(1, bound) if known is None else (low + known) // 2
    while (high is None or high - low > max(1, int(tolerance * high))) and not stop(0):
        blocks = fill(chain, trial, laps, effort, stop)
        if blocks is None:
            low = trial
            if high is None and trial > 64 * max(1, bound):
                return None
        else:
            high = min(trial, chain.period(blocks))
            best = (high, blocks)
            if on_found is not None:
                on_found(high, blocks)
        trial = (low + high) // 2 if high is not None else max(trial + 1, trial * 21 // 20)
    return best
