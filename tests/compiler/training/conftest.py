"""Random training graphs on random schedules and steps that break no rule."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import IntAttr, IntegerAttr, ModuleOp, StringAttr, i64
from xdsl.ir import OpResult

from dialects.attributes import CostAttr, CostEntry, ScheduleAttr, SlotAttr
from dialects.communication import ReserveOp
from dialects.gradients import ACCUMULATED, OptimizerStepOp, WeightGradientOp
from dialects.network import Network, Resource
from dialects.operators import OperatorOp
from dialects.placement import bytes_of
from dialects.structure import StageOp, find_graph, find_platform
from dialects.updates import exchange_time, gradients
from frontend import Source, load
from passes.annotate_costs import AnnotateCostsPass
from passes.expand_training import ExpandTrainingPass

Place = tuple[int, ...]

# --- random models on random machines --------------------------------------------------------

LINKS = (
    "",
    "link all = 4 { latency = 40 ns  bandwidth = 1 GB/s  topology = ring }",
    "link node = 2 { latency = 40 ns  bandwidth = 4 GB/s }\n link cluster { latency = 90 ns  bandwidth = 1 GB/s }",
    "link cluster { latency = 90 ns  bandwidth = 2 GB/s  duplex = half  links = 2  sharing = shared }",
)


def model_text(choose: random.Random, most: int) -> str:
    """A few operators whose gradients keep different values of the forward pass, with a loss or without."""
    lines, numbers, opaque = list[str](), ["x"], list[str]()
    for v in range(choose.randint(0, 4)):
        read, other = choose.choice(numbers), choose.choice(numbers + opaque)
        times = ", ".join(
            f"{k}: {choose.randint(0, 9) * 50}ns" for k in range(1, most + 1) if k == 1 or choose.random() < 0.5
        )
        call = choose.choice(
            [
                f"linear({read}, features = 8)",
                f"gelu({read})",
                f"layer_norm({read})",
                f"mul({read}, x)",
                f"op({other}) time {{{times}}} params {choose.randint(0, 3) * 32} B output 64 B memory 24 B",
            ]
        )
        lines.append(f"v{v} = {call}")
        (opaque if call.startswith("op") else numbers).append(f"v{v}")
    lines.append(f"y = linear({numbers[-1]}, features = 8)")
    lines.append("z = mse_loss(y, x)" if choose.random() < 0.5 else "z = gelu(y)")
    outputs = [f"output {name}" for name in ("z", *opaque)]
    return "\n ".join(["model m {", "input x: tensor<4 x 8, bf16>", *lines, *outputs, "}"])


def platform_text(choose: random.Random, links: str, count: int) -> str:
    mode = choose.choice(("overlapped", "overlapped", "blocking", "buffered"))
    return (
        "accelerator a { memory = 1 MiB  bandwidth = 1 GB/s  launch = 100 ns  peak bf16 = 10 GFLOP/s }\n"
        f"platform p {{ accelerators = {count} of a\n transfers = {mode if links else 'overlapped'}\n {links}\n}}"
    )


class Machinery:
    """A training graph with its costs, and a place for each of its operators: allotments differ."""

    def __init__(self, choose: random.Random):
        links = choose.choice(LINKS)
        count = 4 if "= 4" in links else choose.randint(1, 4)
        text = f"{model_text(choose, count)}\n{platform_text(choose, links, count)}"
        self.module = load(Source("m.takt", text))
        ExpandTrainingPass(optimizer="none").apply(Context(), self.module)
        AnnotateCostsPass().apply(Context(), self.module)
        graph, platform = find_graph(self.module), find_platform(self.module)
        assert graph is not None
        assert platform is not None
        self.graph, self.platform, self.network = graph, platform, Network.of(platform)
        self.operators = list(graph.operators())
        self.places: dict[OperatorOp, Place] = {}
        for members in self.groups():
            common = set.intersection(*(set(entries(op)) for op in members))
            allotment = choose.choice(sorted(k for k in common if k <= platform.count))
            place = tuple(sorted(choose.sample(range(platform.count), allotment)))
            self.places.update(dict.fromkeys(members, place))

    def groups(self) -> list[list[OperatorOp]]:
        found: dict[object, list[OperatorOp]] = {}
        for op in self.operators:
            found.setdefault(op if op.group is None else op.group.data, []).append(op)
        return list(found.values())

    def add_updates(self, choose: random.Random) -> list[OptimizerStepOp]:
        """A step of the optimizer for some groups with gradients of weights; it may read those of copies elsewhere."""
        updates: list[OptimizerStepOp] = []
        own = [[op for op in members if isinstance(op, WeightGradientOp)] for members in self.groups()]
        trained = [found for found in own if found]
        for mine in trained:
            if choose.random() < 0.8:
                copies = choose.choice(trained) if choose.random() < 0.3 else []
                read = dict.fromkeys([*mine, *copies])
                place = self.places[mine[0]]
                entry = CostEntry(choose.randint(0, 400), 0, 0, choose.randint(0, 500))
                update = OptimizerStepOp.create(
                    operands=[op.results[0] for op in read],
                    result_types=[ACCUMULATED],
                    properties={
                        "params": IntegerAttr(choose.randint(0, 64), i64),
                        "group": mine[0].properties["group"],
                        "cost": CostAttr.from_table({len(place): entry}),
                    },
                )
                self.before_output(update)
                updates.append(update)
                self.places[update] = place
        return updates

    def before_output(self, op: Any) -> None:
        self.graph.body.block.insert_op_before(op, self.graph.outputs)

    def time(self, op: OperatorOp) -> int:
        time = entries(op)[len(self.places[op])].time
        if isinstance(op, OptimizerStepOp):
            copies = [self.places[g] for g in gradients(op) if g.group != op.group]
            time += exchange_time(self.network, op.params.value.data, self.places[op], copies)
        return time

    def accelerators(self, op: OperatorOp) -> list[Resource]:
        return [Resource("accelerator", -1, p, p) for p in self.places[op]] if self.time(op) else []

    def ways(self, op: OperatorOp) -> dict[tuple[OpResult, Place], Any]:
        """What has to move of the results of an operator, and where to."""
        found: dict[tuple[OpResult, Place], Any] = {}
        for result in op.results:
            for use in result.uses:
                if use.operation in self.places and not isinstance(use.operation, OptimizerStepOp):
                    there = self.places[use.operation]
                    way = self.network.way(bytes_of(result), op.is_sharded(result.index), self.places[op], there)
                    if way.moves:
                        found[result, there] = way
        return found


def entries(op: OperatorOp) -> dict[int, CostEntry]:
    assert op.cost is not None
    return dict(op.cost.table())


# --- schedules -------------------------------------------------------------------------------


class NoRoom(Exception):
    """Nothing is free long enough."""


class Timeline:
    """What is occupied when; with ``lap``, every ``lap`` ns again."""

    def __init__(self, lap: int | None):
        self.lap = lap
        self.busy: dict[Resource, list[tuple[int, int]]] = {}

    def place(self, resources: Iterable[Resource], ready: int, time: int) -> int:
        """Occupy all of them for ``time`` as early as possible from ``ready`` on; returns when that begins."""
        held = list(resources)
        taken = [interval for r in held for interval in self.busy.get(r, ())]
        lap = self.lap
        moments = [e if lap is None else ready + (e - ready) % lap for _, e in taken]
        for begin in sorted({ready, *(moment for moment in moments if moment >= ready)}):
            if not any(self.overlap(begin, begin + time, b, e) for b, e in taken):
                for r in held:
                    self.busy.setdefault(r, []).append((begin, begin + time))
                return begin
        raise NoRoom

    def overlap(self, begin: int, end: int, b: int, e: int) -> bool:
        if self.lap is None:
            return begin < e and b < end
        return (begin - b) % self.lap < e - b or (b - begin) % self.lap < end - begin

    def spans(self) -> list[int]:
        return [max(e for _, e in taken) - min(b for b, _ in taken) for taken in self.busy.values()]


class Plan:
    """Operators of ``count`` micro-batches in a random order that their operands allow, each as early as it can be."""

    def __init__(self, machinery: Machinery, choose: random.Random, count: int, lap: int | None):
        self.machinery, self.count, self.timeline = machinery, count, Timeline(lap)
        self.starts: dict[OperatorOp, list[int]] = {op: [0] * count for op in machinery.operators}
        self.moves: dict[tuple[OpResult, Place], tuple[list[int], list[int]]] = {}
        self.times: dict[tuple[OpResult, Place], int] = {}
        self.there: dict[tuple[OpResult, Place, int], int] = {}
        left = [(op, i) for op in machinery.operators for i in range(count)]
        done: set[tuple[OperatorOp, int]] = set()
        while left:
            ready = [(op, i) for op, i in left if all((u, i) in done for u in producers(op))]
            op, i = choose.choice(ready)
            self.run(op, i)
            done.add((op, i))
            left.remove((op, i))

    def run(self, op: OperatorOp, i: int) -> None:
        machinery, place = self.machinery, self.machinery.places[op]
        reads = [value for value in op.operands if isinstance(value.owner, OperatorOp)]
        ready = max((self.there[value, place, i] for value in reads), default=0)  # pyright: ignore
        start = self.timeline.place(machinery.accelerators(op), ready, machinery.time(op))
        self.starts[op][i], end = start, start + machinery.time(op)
        ways = machinery.ways(op)
        for result in op.results:
            for other in {machinery.places[c] for c in machinery.operators}:
                if (result, other) not in ways:
                    self.there[result, other, i] = end
        for result in op.results:
            going = {there: way for (value, there), way in ways.items() if value is result}
            self.move(result, i, end, going)

    def move(self, result: OpResult, i: int, end: int, going: dict[Place, Any]) -> None:
        """Move a result to all its sets: through a buffer, all leave at once."""
        buffered = self.machinery.network.mode == "buffered"
        longest = max((way.time for way in going.values()), default=0)
        senders = {r for way in going.values() for r in way.sender}
        left = self.timeline.place(senders, end, longest) if buffered and going else end
        for there, way in going.items():
            time = longest if buffered else way.time
            if buffered:
                begin, landing = left, self.timeline.place(way.receiver, left + time, time)
            else:
                begin = landing = self.timeline.place(way.sender | way.receiver, end, time)
            listed = self.moves.setdefault((result, there), ([0] * self.count, [0] * self.count))
            listed[0][i], listed[1][i] = begin, landing
            self.times[result, there] = time
            self.there[result, there, i] = landing + time

    def end(self, op: OperatorOp, i: int) -> int:
        return self.starts[op][i] + self.machinery.time(op)


def producers(op: OperatorOp) -> set[OperatorOp]:
    return {value.owner for value in op.operands if isinstance(value.owner, OperatorOp)}


def make(seed: int, step: bool) -> ModuleOp:
    """A random training graph on a random schedule that breaks no rule."""
    choose = random.Random(seed)
    machinery = Machinery(choose)
    count = choose.randint(1, 4) if step else 1
    updates = machinery.add_updates(choose) if step and choose.random() < 0.7 else []
    if step and choose.random() < 0.6:
        plan = Plan(machinery, choose, count, None)
        begun, least = placed(plan, updates)
        return write(plan, max(1, least, *plan.timeline.spans()) + choose.choice((0, 0, 7, 1000)), step, begun)
    # Around a circle: micro-batches reach into later patterns, or steps.
    load = [sum(machinery.time(op) for op in machinery.operators if p in machinery.places[op]) for p in range(4)]
    pattern = choose.randint(max(1, count * max(load)), max(1, 3 * count * max(load) // 2))
    while True:
        try:
            plan = Plan(machinery, choose, count, pattern)
            begun, least = placed(plan, updates)
            if least <= pattern:
                return write(plan, pattern, step, begun)
        except NoRoom:
            pass
        pattern += pattern // 8 + 1


def placed(plan: Plan, updates: Iterable[OptimizerStepOp]) -> tuple[dict[OptimizerStepOp, int], int]:
    """When updates begin, as early as they can, and the least time of a step for which that is early enough."""
    machinery, begun, least = plan.machinery, dict[OptimizerStepOp, int](), 0
    for update in updates:
        ready = max(plan.end(op, i) for op in producers(update) for i in range(plan.count))
        begun[update] = plan.timeline.place(machinery.accelerators(update), ready, machinery.time(update))
        first = min(min(plan.starts[op]) for op in machinery.operators if op.group == update.group)
        least = max(least, begun[update] + machinery.time(update) - first)
    return begun, least


def write(plan: Plan, pattern: int, step: bool, updates: dict[OptimizerStepOp, int]) -> ModuleOp:
    """The schedule in the IR."""
    machinery, graph = plan.machinery, plan.machinery.graph
    block = graph.body.block
    first = next(iter(block.ops))
    block.insert_op_before(StageOp.make(0, range(machinery.platform.count)), first)
    for op, starts in plan.starts.items():
        op.stage = IntegerAttr(0, i64)
        op.slot = SlotAttr.make([machinery.places[op]], starts)
    for update, start in updates.items():
        update.slot = SlotAttr.make([machinery.places[update]], start)
    for (result, there), (starts, landings) in plan.moves.items():
        assert isinstance(result.op, OperatorOp)
        way = machinery.ways(result.op)[result, there]
        link = machinery.network.links[way.level].name
        machinery.before_output(ReserveOp.make(result, [there], link, starts, plan.times[result, there], landings))
    text = [StringAttr(word) for word in ("none", "stages", "random")]
    graph.schedule = ScheduleAttr(IntAttr(pattern), IntAttr(plan.count), IntAttr(0), *text, IntAttr(0), step=step)
    graph.level = StringAttr("scheduled")
    return machinery.module


@pytest.fixture(scope="session")
def scheduled() -> Callable[[int, bool], ModuleOp]:
    """``scheduled(seed, step)`` → a scheduled module, the same for the same numbers."""
    return make
