"""Plain data of a scheduled module (level 4), read from the IR alone.

The simulator and the output formats work on this; the solver and the checker never see it. It does not judge the
schedule: what breaks a rule is shown as it stands, so that the simulator can find the fault by running it.
Times are integer nanoseconds, sizes integer bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import accumulate
from math import ceil, lcm
from typing import cast

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import OpResult, SSAValue

from compiler.records import (
    Accelerators,
    Edge,
    InputView,
    LinkView,
    Move,
    OutputView,
    PlatformView,
    StageView,
    Task,
    Update,
)
from dialects.attributes import values
from dialects.diagnostics import Diagnostic, TaktError, at
from dialects.network import Link, Network, Resource, Way
from dialects.operators import OperatorOp, Tensor, operator_names, tensor_bytes
from dialects.structure import GraphOp, InputOp, PlatformOp, find_graph, find_platform
from dialects.updates import gradients, place_of, update_time

__all__ = [
    "Accelerators",
    "Edge",
    "InputView",
    "LinkView",
    "Move",
    "OutputView",
    "PlatformView",
    "ScheduleView",
    "StageView",
    "Task",
    "Update",
    "arrivals_of",
    "view_of",
]


@dataclass(frozen=True)
class ScheduleView:
    """A scheduled graph: ``pattern`` ns for ``microbatches`` micro-batches, the certificate, tasks in program order."""

    graph: str
    platform: PlatformView
    pattern: int
    microbatches: int
    bound: int
    bound_by: str
    plan: str
    engine: str
    seed: int
    stages: tuple[StageView, ...]
    tasks: tuple[Task, ...]
    edges: tuple[Edge, ...]
    inputs: tuple[InputView, ...]
    outputs: tuple[OutputView, ...]
    moves: tuple[Move, ...] = ()
    """Transfers between accelerator sets, in program order."""
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    """The limits it was asked to keep: ``in_flight``, ``latency`` (ns), ``memory`` and ``crossing`` (bytes)."""
    training: tuple[str, str] | None = None
    """Of a training step: optimizer and precision."""
    step: bool = False
    """Whether each of the ``microbatches`` of a pattern has starts of its own; ``bound`` is then one on the pattern."""
    updates: tuple[Update, ...] = ()
    """What the optimizer does once a step."""
    asynchronous: int = 0
    """Micro-batches after which parameters are updated without a step; 0 where they wait for its end."""

    def begin(self, what: Task | Move, microbatch: int) -> Fraction:
        """When a micro-batch starts an operator or a transfer, in ns."""
        return self._moment(what.start, what.later, microbatch)

    def landing(self, move: Move, microbatch: int) -> Fraction:
        """When a micro-batch begins to arrive, in ns."""
        return self._moment(move.landing, move.later_landings, microbatch)

    def _moment(self, first: int, later: tuple[int, ...], microbatch: int) -> Fraction:
        if not self.step:
            return first + microbatch * self.period
        lap, turn = divmod(microbatch, self.microbatches)
        return Fraction((first, *later)[turn] + lap * self.pattern)

    @property
    def period(self) -> Fraction:
        """Time between two micro-batches in the steady state, in ns."""
        return Fraction(self.pattern, self.microbatches)

    @cached_property
    def turns(self) -> int:
        """Micro-batches after which the sets on which everything runs repeat: the least common multiple of copies."""
        return lcm(*(len(t.copies) for t in self.tasks), *(len(m.targets) for m in self.moves))

    @cached_property
    def rounds(self) -> int:
        """Micro-batches after which everything repeats: :attr:`turns`; in a step at least all micro-batches of it."""
        return lcm(self.turns, self.microbatches) if self.step else self.turns

    @cached_property
    def extents(self) -> tuple[tuple[int, int], ...]:
        """First start and last end of each micro-batch of a step; outside of steps of micro-batch 0 alone."""
        columns = zip(*(t.starts for t in self.tasks), strict=True)
        return tuple((min(c), max(s + t.time for s, t in zip(c, self.tasks, strict=True))) for c in columns)

    @cached_property
    def span(self) -> tuple[int, int]:
        """First start and last end of anything in a step, updates included; outside of steps of micro-batch 0."""
        begun = [s for x in (*self.tasks, *self.moves) for s in x.starts]
        ended = [end for _, end in self.extents] + [s + m.time for m in self.moves for s in (*m.starts, *m.landings)]
        for update in self.updates:
            if update.start is not None:
                begun.append(update.start)
                ended.append(update.start + update.time)
        return min(begun, default=0), max(ended, default=0)

    @property
    def makespan(self) -> int:
        """From the first start to the last end of anything in a step, in ns; see :attr:`span`."""
        return self.span[1] - self.span[0]

    @cached_property
    def latency(self) -> int:
        """From the start of a micro-batch's first operator to the end of its last, in ns; in a step the longest."""
        return max((end - begin for begin, end in self.extents), default=0)

    @cached_property
    def in_flight(self) -> int:
        """The most micro-batches begun and not yet finished at once."""
        if not self.step:
            return ceil(self.latency / self.period)
        # Each begins again every pattern: from the phase of its start on, as many of it run as it lasts patterns, and
        # one more until the rest has passed.
        always, changes = 0, list[tuple[int, int]]()
        for begin, end in self.extents:
            laps, rest = divmod(end - begin, self.pattern)
            always += laps
            if rest:
                begin %= self.pattern
                changes += [(begin, 1), (begin + rest, -1)]
                changes += [(begin - self.pattern, 1), (begin + rest - self.pattern, -1)]
        return always + max(accumulate((change for _, change in sorted(changes)), initial=0))

    @property
    def gap(self) -> Fraction | None:
        """How far above the least period, or step, this one may be, as a share: ``period / bound - 1``.

        None without a bound.
        """
        return (self.pattern if self.step else self.period) / Fraction(self.bound) - 1 if self.bound else None

    @cached_property
    def load(self) -> Mapping[int, Fraction]:
        """Accelerator → busy ns per micro-batch, for all of the platform.

        A replica counts a ``1/copies`` share, and so does the update of a step for each of its micro-batches.
        """
        busy = {p: Fraction(0) for p in range(self.platform.accelerators)}
        shares = [(p, Fraction(t.time, len(t.copies))) for t in self.tasks for copy in t.copies for p in copy]
        if self.step:
            shares += [(p, Fraction(u.time, self.microbatches)) for u in self.updates for p in u.place]
        for p, share in shares:
            busy[p] = busy.get(p, Fraction(0)) + share
        return busy

    @cached_property
    def bubble(self) -> Mapping[int, Fraction]:
        """Accelerator → the share of a pattern in which it runs nothing, for all of the platform."""
        return {p: 1 - busy / self.period for p, busy in self.load.items()}

    @cached_property
    def parameters(self) -> Mapping[int, int]:
        """Accelerator → bytes of parameters it holds; tasks of one group hold the greatest of theirs once.

        Further versions of them are not counted.
        """
        held = dict.fromkeys(range(self.platform.accelerators), 0)
        largest: dict[tuple[int, str], int] = {}
        for task in self.tasks:
            for p in {p for copy in task.copies for p in copy}:
                more = task.params
                if task.group is not None:
                    before = largest.get((p, task.group), 0)
                    more = max(0, task.params - before)
                    largest[p, task.group] = before + more
                held[p] = held.get(p, 0) + more
        return held

    def taking_part(self, update: Update) -> Accelerators:
        """The accelerators of an update: its own, and those on which the weight gradients lie that it reads."""
        places = (update.place, *(self.tasks[v].copies[0] for v in update.gradients))
        return tuple(sorted({p for place in places for p in place}))

    @cached_property
    def readers(self) -> tuple[tuple[Edge, ...], ...]:
        """The edges that leave each task."""
        found: list[list[Edge]] = [[] for _ in self.tasks]
        for edge in self.edges:
            found[edge.producer].append(edge)
        return tuple(tuple(edges) for edges in found)

    @cached_property
    def reach(self) -> int:
        """The greatest distance between the micro-batches of an edge."""
        return max((edge.distance for edge in self.edges), default=0)

    @cached_property
    def crossing(self) -> Fraction:
        """Bytes per micro-batch of values read on another set than their producer's, once for each such set."""
        total = 0
        for microbatch in range(self.turns):
            for task, edges in zip(self.tasks, self.readers, strict=True):
                arrivals = arrivals_of(self.tasks, edges, microbatch)
                home = task.set_of(microbatch)
                total += sum(task.results[r] for s, read in arrivals.items() if s != home for r in read)
        return Fraction(total, self.turns)

    # --- transfers ---------------------------------------------------------------------------

    @cached_property
    def carriers(self) -> Mapping[Edge, Mapping[int, Move]]:
        """For each edge, the results that are moved to its consumer, and the move that serves it."""
        leaving: dict[tuple[int, int], list[Move]] = {}
        for move in self.moves:
            leaving.setdefault((move.producer, move.result), []).append(move)
        found: dict[Edge, dict[int, Move]] = {}
        for edge in self.edges:
            there, home = self.tasks[edge.consumer].copies, self.tasks[edge.producer].copies
            served = found.setdefault(edge, {})
            if not _agree(home, there, edge.distance):
                for r in edge.results:
                    moves = (m for m in leaving.get((edge.producer, r), ()) if _agree(m.targets, there, edge.distance))
                    if (move := next(moves, None)) is not None:
                        served[r] = move
        return found

    @cached_property
    def ways(self) -> tuple[tuple[Way, ...], ...]:
        """For each move, how it goes in each turn, until the turns repeat."""

        def way(move: Move, turn: int) -> Way:
            home = self.tasks[move.producer].set_of(turn)
            return self.platform.network.way(move.size, move.sharded, home, move.target_of(turn))

        turns = [lcm(len(self.tasks[m.producer].copies), len(m.targets)) for m in self.moves]
        return tuple(tuple(way(m, i) for i in range(n)) for m, n in zip(self.moves, turns, strict=True))

    @cached_property
    def link_load(self) -> Mapping[str, Fraction]:
        """Level of the network → the share of what it can carry that its busiest port or wire does carry.

        All levels, from the innermost; those that are never used have 0.
        """
        network = self.platform.network
        busy: dict[Resource, Fraction] = {}
        for move, ways in zip(self.moves, self.ways, strict=True):
            for way in ways:
                for resource in way.sender | way.receiver:
                    share = Fraction(move.time, len(ways) * network.capacity(resource))
                    busy[resource] = busy.get(resource, Fraction(0)) + share
        load = {link.name: Fraction(0) for link in self.platform.links}
        for resource, time in busy.items():
            if resource.level >= 0:
                name = self.platform.links[resource.level].name
                load[name] = max(load[name], time / self.period)
        return load

    @cached_property
    def link_bytes(self) -> Mapping[str, Fraction]:
        """Level of the network → bytes per micro-batch that are moved over it, each value once for each transfer."""
        moved = {link.name: Fraction(0) for link in self.platform.links}
        for move, ways in zip(self.moves, self.ways, strict=True):
            for way in ways:
                if way.moves:
                    moved[self.platform.links[way.level].name] += Fraction(move.size, len(ways))
        return moved


def _agree(a: tuple[Accelerators, ...], b: tuple[Accelerators, ...], distance: int) -> bool:
    """Whether micro-batch ``i`` in the turns of ``a`` and ``i + distance`` in those of ``b`` have one set, always."""
    return all(a[i % len(a)] == b[(i + distance) % len(b)] for i in range(lcm(len(a), len(b))))


def arrivals_of(tasks: tuple[Task, ...], edges: Iterable[Edge], microbatch: int) -> dict[Accelerators, set[int]]:
    """Accelerator set → the results read there, over edges that leave one task."""
    read: dict[Accelerators, set[int]] = {}
    for edge in edges:
        read.setdefault(tasks[edge.consumer].set_of(microbatch + edge.distance), set()).update(edge.results)
    return read


# --- reading the IR --------------------------------------------------------------------------


def view_of(module: ModuleOp) -> ScheduleView:
    """Read a scheduled module; raises :class:`TaktError` when it is not scheduled."""
    graph, platform = find_graph(module), find_platform(module)
    if graph is None:
        raise TaktError(Diagnostic("the module has no takt.graph"))
    if graph.schedule is None:
        hint = "run the pass 'schedule-periodic' first"
        raise TaktError(at(graph, f"graph '{graph.sym_name.data}' is not scheduled", hint=hint))
    if platform is None:
        raise TaktError(at(graph, "the module has no takt.platform", hint="name one with --platform"))
    names = operator_names(graph)
    tasks = tuple(_task(op, name, index) for index, (op, name) in enumerate(names.items()))
    schedule = graph.schedule
    _check_listed(graph, names)
    return ScheduleView(
        graph=graph.sym_name.data,
        platform=_platform(platform),
        pattern=schedule.pattern.data,
        microbatches=schedule.microbatches.data,
        bound=schedule.bound.data,
        bound_by=schedule.bound_by.data,
        plan=schedule.plan.data,
        engine=schedule.engine.data,
        seed=schedule.seed.data,
        stages=tuple(StageView(s.index.value.data, s.accelerators()) for s in graph.stages()),
        tasks=tasks,
        edges=_edges(graph, names),
        inputs=_inputs(graph, names),
        outputs=_outputs(graph, names),
        moves=_moves(graph, names),
        limits=schedule.limits.given(),
        training=graph.training and (graph.training.optimizer.data, graph.training.precision.data),
        step=schedule.is_step,
        updates=_updates(graph, names, _platform(platform).network),
        asynchronous=0 if graph.training is None else graph.training.asynchronous.data,
    )


def _platform(op: PlatformOp) -> PlatformView:
    return PlatformView(
        op.sym_name.data,
        op.accelerator.data,
        op.count,
        op.memory.value.data,
        op.group_size,
        tuple(Link.of(link) for link in op.links.data),
        op.mode,
    )


def _bytes(value: SSAValue) -> int:
    return tensor_bytes(cast(Tensor, value.type))


def _task(op: OperatorOp, name: str, index: int) -> Task:
    if op.slot is None or op.cost is None:
        raise TaktError(at(op, f"operator '{name}' has no {'slot' if op.slot is None else 'cost table'}"))
    allotment = op.slot.allotment.data
    entry = op.cost.table().get(allotment)
    if entry is None:
        raise TaktError(at(op, f"operator '{name}' runs on {allotment} accelerators, which its cost table leaves out"))
    return Task(
        index=index,
        name=name,
        kind=op.kind(),
        stage=None if op.stage is None else op.stage.value.data,
        block=None if op.block is None else (op.block.block.data, op.block.index.data),
        allotment=allotment,
        copies=op.slot.copies(),
        start=op.slot.start.data,
        time=entry.time,
        params=entry.params,
        output=entry.output,
        workspace=entry.workspace,
        results=tuple(_bytes(r) for r in op.results),
        times=tuple((k, e.time) for k, e in op.cost.table().items()),
        group=None if op.group is None else op.group.data,
        sharded=() if op.sharded is None else values(op.sharded),
        later=op.slot.starts[1:],
        version=entry.version,
    )


def _check_listed(graph: GraphOp, names: Mapping[OperatorOp, str]) -> None:
    """Raise :class:`TaktError` where a micro-batch of a step has no start, or one outside of steps has its own."""
    assert graph.schedule is not None
    step = graph.schedule.is_step
    count = graph.schedule.microbatches.data if step else 1
    listed = [(op, f"operator '{name}'", op.slot.starts) for op, name in names.items() if op.slot is not None]
    listed += [(op, "a transfer", op.starts) for op in graph.transfers()]
    for op, what, starts in listed:
        if len(starts) != count:
            wanted = f"{count}, one for each micro-batch of the step" if step else "1: the schedule is no step"
            raise TaktError(at(op, f"{what} has {len(starts)} starts, not {wanted}"))
    for op in graph.updates():
        if step and op.slot is None:
            raise TaktError(at(op, "an optimizer step of a step has no slot"))


def _updates(graph: GraphOp, names: Mapping[OperatorOp, str], network: Network) -> tuple[Update, ...]:
    position = {op: i for i, op in enumerate(names)}
    found: list[Update] = []
    for op in graph.updates():
        place, time = place_of(op), update_time(op, network)
        if place is None or time is None or op.cost is None:
            continue
        table = op.cost.table()
        found.append(
            Update(
                index=len(found),
                name=op.results[0].name_hint or f"optimizer_step.{len(found)}",
                group="" if op.group is None else op.group.data,
                gradients=tuple(position[g] for g in gradients(op)),
                place=place,
                start=None if op.slot is None else op.slot.start.data,
                time=time,
                workspace=table[len(place)].workspace,
                times=tuple((k, e.time) for k, e in table.items()),
            )
        )
    return tuple(found)


def _edges(graph: GraphOp, names: Mapping[OperatorOp, str]) -> tuple[Edge, ...]:
    position = {op: i for i, op in enumerate(names)}
    carried = graph.carried()
    edges: list[Edge] = []
    for consumer, op in enumerate(names):
        read: dict[tuple[OperatorOp, int], set[int]] = {}
        for operand in op.operands:
            value, distance = carried.get(operand, (operand, 0))
            if isinstance(value, OpResult) and isinstance(value.op, OperatorOp):
                read.setdefault((value.op, distance), set()).add(value.index)
        for (producer, distance), results in read.items():
            size = sum(_bytes(producer.results[r]) for r in results)
            edges.append(Edge(position[producer], consumer, tuple(sorted(results)), size, distance))
    return tuple(edges)


def _moves(graph: GraphOp, names: Mapping[OperatorOp, str]) -> tuple[Move, ...]:
    position = {op: i for i, op in enumerate(names)}
    carried = graph.carried()
    moves: list[Move] = []
    for op in graph.transfers():
        origin, _ = carried.get(op.moved, (op.moved, 0))
        if isinstance(origin, OpResult) and isinstance(origin.op, OperatorOp):
            start, time = op.start.value.data, op.time.value.data
            sharded, size = origin.op.is_sharded(origin.index), _bytes(origin)
            producer = position[origin.op]
            later, landings = op.starts[1:], op.landings[1:]
            where = (len(moves), producer, origin.index, op.sets(), op.link.data)
            moves.append(Move(*where, start, time, op.lands, size, sharded, later, landings))
    return tuple(moves)


def _inputs(graph: GraphOp, names: Mapping[OperatorOp, str]) -> tuple[InputView, ...]:
    readers: dict[SSAValue, list[int]] = {op.output: [] for op in graph.inputs()}
    for index, op in enumerate(names):
        for value in dict.fromkeys(op.operands):
            if value in readers:
                readers[value].append(index)
    return tuple(
        InputView(value.name_hint or f"input.{i}", _bytes(value), tuple(consumers))
        for i, (value, consumers) in enumerate(readers.items())
    )


def _outputs(graph: GraphOp, names: Mapping[OperatorOp, str]) -> tuple[OutputView, ...]:
    position = {op: i for i, op in enumerate(names)}
    found: list[OutputView] = []
    for i, value in enumerate(graph.outputs.operands):
        assert isinstance(value, OpResult)
        if isinstance(value.op, InputOp):
            found.append(OutputView(value.name_hint or f"output.{i}", None, value.index, _bytes(value)))
        else:
            producer = cast(OperatorOp, value.op)
            name = value.name_hint or f"{names[producer]}.{value.index}"
            found.append(OutputView(name, position[producer], value.index, _bytes(value)))
    return tuple(found)
