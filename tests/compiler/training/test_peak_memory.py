"""On random training graphs and schedules checker, simulator and counting by hand agree, and on broken ones too."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import IntAttr, IntegerAttr, ModuleOp, i64

from compiler.simulate import SimulationError, self_timed, time_triggered
from compiler.simulate.jobs import Jobs
from compiler.simulate.machine import Clock, Machine, whole_steps
from compiler.simulate.memory import moments
from compiler.simulate.self_timed import earliest
from compiler.view import view_of
from dialects.attributes import CostEntry, ScheduleAttr, SlotAttr
from dialects.communication import ReserveOp
from dialects.gradients import OptimizerStepOp
from dialects.levels import check_level
from dialects.network import Network
from dialects.operators import OperatorOp
from dialects.placement import bytes_of
from dialects.schedule_rules import peak_memory
from dialects.structure import InputOp, find_graph, find_platform
from dialects.updates import update_time

Place = tuple[int, ...]
Scheduled = Callable[[int, bool], ModuleOp]

# --- counting by hand ------------------------------------------------------------------------

Life = tuple[Place, int, int, int]
"""Accelerators, begin, end, bytes on each."""


class ByHand:
    """Bytes and micro-batches in ``[0, pattern)`` of the steady state, every life written down and counted."""

    def __init__(self, module: ModuleOp):
        graph, platform = find_graph(module), find_platform(module)
        assert graph is not None
        assert platform is not None
        assert graph.schedule is not None
        self.graph, self.platform = graph, platform
        self.pattern, self.count = graph.schedule.pattern.data, graph.schedule.microbatches.data
        self.operators = list(graph.operators())
        moved = [t + op.time.value.data for op in graph.transfers() for t in (*op.starts, *op.landings)]
        last = max([*moved, *(t + self.cost(op).time for op in self.operators for t in self.slot(op)[1])])
        self.laps = range(-(last // self.pattern) - 1, 1)

    def slot(self, op: OperatorOp) -> tuple[Place, Sequence[int]]:
        assert op.slot is not None
        return op.slot.copies()[0], op.slot.starts

    def cost(self, op: OperatorOp) -> CostEntry:
        assert op.cost is not None
        return op.cost.table()[len(self.slot(op)[0])]

    def end(self, op: OperatorOp, i: int) -> int:
        return self.slot(op)[1][i] + self.cost(op).time

    def lives(self) -> Iterator[Life]:
        """Of all micro-batches of one pattern."""
        for i in range(self.count):
            for op in self.operators:
                yield from self.of(op, i)
            for source in self.graph.inputs():
                yield from self.of_input(source, i)
        for update in self.graph.updates():
            if update.slot is not None:
                place, (start,) = self.slot(update)
                time = update_time(update, Network.of(self.platform))
                assert time is not None
                yield place, start, start + time, self.cost(update).workspace

    def of(self, op: OperatorOp, i: int) -> Iterator[Life]:
        place, starts = self.slot(op)
        end, cost = self.end(op, i), self.cost(op)
        yield place, starts[i], end, cost.workspace
        readers = [(r, use.operation) for r in op.results for use in r.uses if isinstance(use.operation, OperatorOp)]
        readers = [(r, reader) for r, reader in readers if not isinstance(reader, OptimizerStepOp)]
        moves = [use.operation for r in op.results for use in r.uses if isinstance(use.operation, ReserveOp)]
        left = [move.starts[i] + move.time.value.data for move in moves]
        here = [self.end(reader, i) for _, reader in readers if self.slot(reader)[0] == place]
        yield place, starts[i], max([end, *left, *here]), cost.output
        for there in {self.slot(reader)[0] for _, reader in readers} - {place}:
            read = [(r, reader) for r, reader in readers if self.slot(reader)[0] == there]
            landed = [move.landings[i] for move in moves if move.sets() == (there,)]
            size = sum(
                -(-bytes_of(r) // len(there)) if op.is_sharded(r.index) else bytes_of(r) for r in {r for r, _ in read}
            )
            yield there, min(landed, default=end), max(self.end(reader, i) for _, reader in read), size

    def of_input(self, source: InputOp, i: int) -> Iterator[Life]:
        readers = {use.operation for use in source.output.uses if isinstance(use.operation, OperatorOp)}
        for there in {self.slot(reader)[0] for reader in readers}:
            here = [reader for reader in readers if self.slot(reader)[0] == there]
            begin = min(self.slot(reader)[1][i] for reader in here)
            yield there, begin, max(self.end(reader, i) for reader in here), bytes_of(source.output)  # pyright: ignore

    def peaks(self) -> dict[int, int]:
        shifts = [lap * self.pattern for lap in self.laps]
        every = [(place, b + shift, e + shift, size) for place, b, e, size in self.lives() for shift in shifts]
        times = {b for _, b, _, _ in every if 0 <= b < self.pattern} | {0}
        return {
            p: self.parameters(p) + max(sum(s for place, b, e, s in every if p in place and b <= t < e) for t in times)
            for p in range(self.platform.count)
        }

    def parameters(self, accelerator: int) -> int:
        held: dict[object, int] = {}
        for op in self.operators:
            if accelerator in self.slot(op)[0]:
                key = op if op.group is None else op.group.data
                held[key] = max(held.get(key, 0), self.cost(op).params)
        return sum(held.values())

    def in_flight(self) -> int:
        runs = [
            (min(self.slot(op)[1][i] for op in self.operators), max(self.end(op, i) for op in self.operators))
            for i in range(self.count)
        ]
        every = [(b + lap * self.pattern, e + lap * self.pattern) for b, e in runs for lap in self.laps]
        return max(sum(b <= t < e for b, e in every) for t in {b % self.pattern for b, _ in every})


# --- what agrees -----------------------------------------------------------------------------

seeds = st.integers(0, 2**32)


def of_checker(module: ModuleOp) -> dict[int, int]:
    graph, platform = find_graph(module), find_platform(module)
    assert graph is not None
    assert platform is not None
    return {p: params + peak for p, (params, peak) in peak_memory(graph, platform).items()}


@pytest.mark.parametrize("step", [False, True])
@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_memory_is_what_counting_finds(scheduled: Scheduled, step: bool, seed: int) -> None:
    module = scheduled(seed, step)
    assert check_level(module) == []
    view, by_hand = view_of(module), ByHand(module)
    report = time_triggered(view)
    assert by_hand.peaks() == of_checker(module) == report.peak_memory
    assert by_hand.in_flight() == view.in_flight == report.in_flight
    assert report.steady
    assert report.latency_max == view.latency
    assert report.period == view.period
    assert report.step == (view.pattern if step else None)
    assert report.load == {p: 1 - idle for p, idle in view.bubble.items()}


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_order_alone_never_ends_a_step_later(scheduled: Scheduled, seed: int) -> None:
    view = view_of(scheduled(seed, True))
    report = self_timed(view)
    assert report.steady
    assert report.step is not None
    assert max(view.load.values()) * view.microbatches <= report.step <= view.pattern
    clock, jobs = Clock.of(view), Jobs.of(view, Machine.of(view))
    count = whole_steps(view, 3 * view.microbatches)
    assert (earliest(view, clock, jobs, count) <= moments(view, [job.starts for job in jobs.jobs], count)).all()


def broken(module: ModuleOp, choose: random.Random) -> ModuleOp:
    """The schedule with another pattern, or another start of one run, transfer or update."""
    module = module.clone()
    graph, platform = find_graph(module), find_platform(module)
    assert graph is not None
    assert platform is not None
    assert graph.schedule is not None
    by = choose.choice((-1, 1, -50, 50, choose.randint(-500, 500)))
    # What leaves as one may not be moved alone: the simulator knows no rule against two copies into a buffer.
    moves = [] if platform.mode == "buffered" else list(graph.transfers())
    what = choose.choice([None, *graph.operators(), *(u for u in graph.updates() if u.slot is not None), *moves])
    if what is None:
        pattern = IntAttr(max(1, graph.schedule.pattern.data + by))
        graph.schedule = ScheduleAttr(pattern, *graph.schedule.parameters[1:7], step=graph.schedule.is_step)  # pyright: ignore
    elif isinstance(what, OperatorOp):
        assert what.slot is not None
        what.slot = SlotAttr.make(what.slot.copies(), shifted(what.slot.starts, by, choose))
    else:
        starts = shifted(what.starts, by, choose)
        graph.body.block.insert_op_before(
            ReserveOp.make(what.moved, what.sets(), what.link.data, starts, what.time.value.data), what
        )
        what.detach()
        what.erase()
    return module


def shifted(starts: Sequence[int], by: int, choose: random.Random) -> list[int]:
    moved = list(starts)
    moved[choose.randrange(len(moved))] += by
    return moved


@pytest.mark.parametrize("step", [False, True])
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_what_the_checker_refuses_does_not_run(scheduled: Scheduled, step: bool, seed: int) -> None:
    module, choose = scheduled(seed, step), random.Random(seed)
    for _ in range(5):
        mutant = broken(module, choose)
        found = check_level(mutant)
        if any(diagnostic.rule == "starts" for diagnostic in found):
            continue  # the simulator does not mind when the first micro-batch begins
        if not found:
            time_triggered(view_of(mutant))
            continue
        with pytest.raises(SimulationError) as error:
            time_triggered(view_of(mutant))
        assert error.value.operator
        assert error.value.microbatch >= 0
        assert error.value.accelerator is not None


@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_one_byte_less_is_too_little(scheduled: Scheduled, seed: int) -> None:
    module = scheduled(seed, True)
    platform, most = find_platform(module), max(of_checker(module).values())
    assert platform is not None
    platform.memory = IntegerAttr(most, i64)
    assert check_level(module) == []
    assert max(time_triggered(view_of(module)).peak_memory.values()) == most
    platform.memory = IntegerAttr(most - 1, i64)
    assert {diagnostic.rule for diagnostic in check_level(module)} == {"memory"}
    with pytest.raises(SimulationError) as error:
        time_triggered(view_of(module))
    assert error.value.fault == "memory"
    assert error.value.accelerator in {p for p, need in of_checker(module).items() if need == most}
