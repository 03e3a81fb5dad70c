"""Steps made at random: left-shifted ones are accepted and nothing of them can be earlier; even ones are periodic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hypothesis import event, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr

from dialects.attributes import LimitsAttr, ScheduleAttr
from dialects.levels import check_level
from dialects.links import LinkAttr
from dialects.placement import Placement
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform

ACCELERATORS = 3


@dataclass(frozen=True)
class Op:
    time: int
    reads: tuple[tuple[int, int], ...]
    """Operators and the distance at which they are read."""
    on: int
    params: int
    output: int
    workspace: int
    value: int
    """Bytes of the result, whole."""
    takes_input: bool


class Move(NamedTuple):
    """Of the result of an operator to an accelerator; in a step starts and landings of all micro-batches."""

    op: int
    to: int
    start: Any
    time: int
    landing: Any


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Op, ...]:
    small = st.integers(0, 9)
    ops: list[Op] = []
    for v in range(draw(st.integers(1, 5))):
        earlier = [(u, 0) for u in range(v)]
        later = [(u, d) for u in range(v + 1) for d in (1, 2)]
        reads = draw(st.lists(st.sampled_from(earlier + later), max_size=2, unique=True))
        on = draw(st.integers(0, ACCELERATORS - 1))
        numbers = [draw(small) for _ in range(4)]
        ops.append(Op(draw(st.integers(1, 9)), tuple(reads), on, *numbers, draw(st.booleans())))
    return tuple(ops)


def module_of(
    sketch: Callable[..., Any],
    ops: Sequence[Op],
    starts: Sequence[int | Sequence[int]],
    schedule: tuple[int, int, int, bool],
    moves: Iterable[Move] | None = None,
    *,
    mode: str = "overlapped",
    memory: int = 10**6,
    limits: Mapping[str, int | None] | None = None,
) -> ModuleOp:
    """Of pattern, micro-batches, bound, and whether it is a step; there are links only with ``moves``."""
    link = LinkAttr(StringAttr("all"), IntAttr(ACCELERATORS), IntAttr(2), IntAttr(10**9))
    links = [] if moves is None else [link]
    s = sketch(accelerators=ACCELERATORS, links=links, transfers=mode, memory=memory)
    s.stage(range(ACCELERATORS))
    x = s.input("x", 5)
    left = sorted({read for op in ops for read in op.reads if read[1]})
    states = {(u, d): s.state(f"s{u}.{d}", d, ops[u].value) for u, d in left}
    made: list[Any] = []
    for v, (op, start) in enumerate(zip(ops, starts, strict=True)):
        operands = [states[read] if read[1] else made[read[0]] for read in op.reads] + [x] * op.takes_input
        table = {1: (op.time, op.params, op.output, op.workspace)}
        made.append(s.op(f"v{v}", *operands, table=table, results=[op.value], stage=0, sets=[[op.on]], start=start))
    for v, to, start, time, landing in moves or ():
        s.reserve(made[v], [[to]], "all", start, time, landing)
    for u, d in left:
        s.leave(f"s{u}.{d}", made[u])
    pattern, microbatches, bound, step = schedule
    module = s.module("scheduled", made[-1], pattern=pattern)
    numbers = IntAttr(pattern), IntAttr(microbatches), IntAttr(bound)
    words = StringAttr("area"), StringAttr("list"), StringAttr("test")
    kept = LimitsAttr.make(limits or {})
    find_graph(module).properties["schedule"] = ScheduleAttr(*numbers, *words, IntAttr(0), kept, step)
    return module


# --- left-shifted steps --------------------------------------------------------------------------


def left_shifted(ops: Sequence[Op], microbatches: int, choose: Callable[[int], int]) -> list[list[int]]:
    """Runs one after the other, each as early as possible behind those before it on its accelerator."""
    starts: list[dict[int, int]] = [{} for _ in ops]
    free = Counter[int]()
    for _ in range(len(ops) * microbatches):
        ready = [
            (v, i)
            for v, op in enumerate(ops)
            for i in range(microbatches)
            if i not in starts[v] and all(i - d in starts[u] for u, d in op.reads if d <= i)
        ]
        v, i = ready[choose(len(ready))]
        ends = [starts[u][i - d] + ops[u].time for u, d in ops[v].reads if d <= i]
        starts[v][i] = max([free[ops[v].on], *ends])
        free[ops[v].on] = starts[v][i] + ops[v].time
    return [[of[i] for i in range(microbatches)] for of in starts]


def bytes_at(ops: Sequence[Op], starts: Sequence[Sequence[int]], step: int, accelerator: int, moment: int) -> int:
    """Bytes beside the parameters: of each micro-batch of enough steps everything that is there."""
    m, total = len(starts[0]), 0

    def begin(v: int, j: int) -> int:
        return starts[v][j % m] + j // m * step

    def end(v: int, j: int) -> int:
        return begin(v, j) + ops[v].time

    takers = [v for v, op in enumerate(ops) if op.takes_input and op.on == accelerator]
    for j in range(-4 * m, m):
        for v, op in enumerate(ops):
            readers = [(w, d) for w, other in enumerate(ops) for u, d in other.reads if u == v]
            last = max((end(w, j + d) for w, d in readers if ops[w].on == accelerator), default=end(v, j))
            if op.on == accelerator:
                total += op.workspace * (begin(v, j) <= moment < end(v, j))
                total += op.output * (begin(v, j) <= moment < max(end(v, j), last))
            else:
                total += op.value * (end(v, j) <= moment < last)
        if takers:
            total += 5 * (min(begin(v, j) for v in takers) <= moment < max(end(v, j) for v in takers))
    return total


@settings(max_examples=25, deadline=None)
@given(st.data(), graphs(), st.integers(1, 4))
def test_left_shifted_steps(sketch: Callable[..., Any], data: st.DataObject, ops: tuple[Op, ...], m: int) -> None:
    starts = left_shifted(ops, m, lambda count: data.draw(st.integers(0, count - 1)))
    ends = [s + op.time for op, of in zip(ops, starts, strict=True) for s in of]
    step = max(ends)
    module = module_of(sketch, ops, starts, (step, m, 0, True))
    assert check_level(module) == []

    peaks = peak_memory(find_graph(module), find_platform(module))
    for accelerator in range(ACCELERATORS):
        found = max(bytes_at(ops, starts, step, accelerator, t) for t in range(step))
        held = sum(op.params for op in ops if op.on == accelerator)
        assert peaks[accelerator] == (held, found)

    placement = Placement(find_graph(module))
    firsts = [min(of[i] for of in starts) for i in range(m)]
    lasts = [max(of[i] + op.time for op, of in zip(ops, starts, strict=True)) for i in range(m)]
    spans = [(a + lap * step, b + lap * step) for a, b in zip(firsts, lasts, strict=True) for lap in (-1, 0)]
    assert placement.latency == max(b - a for a, b in spans) * m
    assert placement.in_flight == max(sum(a <= t < b for a, b in spans) for t in range(step))
    assert sum(placement.loads.values()) * step == m * sum(op.time for op in ops)

    v, i = data.draw(st.sampled_from([(v, i) for v in range(len(ops)) for i in range(m)]))
    starts[v][i] -= 1
    broken = check_level(module_of(sketch, ops, starts, (step, m, 0, True)))
    assert {d.rule for d in broken} & {"starts", "precedence", "exclusive"}
    assert m == 1 or any(f"of micro-batch {i}" in d.message for d in broken)


# --- evenly spaced steps -------------------------------------------------------------------------


def judged(module: ModuleOp) -> tuple[Any, ...]:
    """What the checker says of a schedule, rule by rule, and its figures."""
    graph = find_graph(module)
    placement = Placement(graph)
    rules = Counter(d.rule for d in check_level(module))
    figures = placement.nanoseconds(placement.latency), placement.in_flight, placement.loads
    return set(rules), rules["precedence"], rules["memory"], figures, peak_memory(graph, find_platform(module))


@settings(max_examples=60, deadline=None)
@given(st.data(), graphs(), st.integers(1, 4), st.integers(4, 30))
def test_evenly_spaced_steps(
    sketch: Callable[..., Any], data: st.DataObject, ops: tuple[Op, ...], m: int, period: int
) -> None:
    mode = data.draw(st.sampled_from(["overlapped", "blocking", "buffered"]))
    late = st.sampled_from([0, 0, 0, 1, 7, -1])
    starts: list[int] = []
    for op in ops:
        reads = [(u, distance) for u, distance in op.reads if u < len(starts)]
        ready = max((starts[u] + ops[u].time - d * period + (ops[u].on != op.on) * 12 for u, d in reads), default=0)
        starts.append(max(0, ready) + data.draw(late))
    moves: dict[tuple[int, int], Move] = {}
    for op in ops:
        for u, _ in op.reads:
            if ops[u].on != op.on and ops[u].value and data.draw(st.integers(0, 9)):
                start, time = starts[u] + ops[u].time + data.draw(late), 2 + ops[u].value + data.draw(late)
                moves[u, op.on] = Move(u, op.on, start, max(0, time), start + (mode == "buffered") * time)
    limits = {
        name: data.draw(st.none() | st.integers(0, 60)) for name in ("in_flight", "latency", "memory", "crossing")
    }
    more = {"mode": mode, "memory": data.draw(st.integers(20, 200)), "limits": limits}
    bound = data.draw(st.integers(0, 30))

    def even(start: int) -> list[int]:
        return [start + i * period for i in range(m)]

    listed = [Move(v, to, even(start), time, even(landing)) for v, to, start, time, landing in moves.values()]
    steady = module_of(sketch, ops, starts, (period, 1, bound, False), moves.values(), **more)
    step = module_of(sketch, ops, [even(s) for s in starts], (period * m, m, bound * m, True), listed, **more)
    assert judged(step) == judged(steady)
    event(f"broken: {', '.join(sorted(judged(step)[0])) or 'none'}")
