"""Random schedules, and an oracle that runs their programs.

The oracle is an interpreter of programs, written from the definitions in the plainest way there is: buffers hold the
name of what is in them byte by byte, accelerators take turns, and both ends of a message wait for each other, as do
the accelerators of an operator and those of an optimizer step, for which gradients of others are read where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil, lcm

import pytest
from hypothesis import strategies as st
from xdsl.dialects.builtin import IntAttr, IntegerAttr, ModuleOp, StringAttr, TensorType, i8, i64

from dialects.attributes import CostAttr, CostEntry, ScheduleAttr, SlotAttr, ints
from dialects.communication import ReserveOp
from dialects.gradients import ACCUMULATED, OptimizerStepOp
from dialects.links import LinkAttr
from dialects.operators import OpaqueOp
from dialects.programs import (
    ALL_GATHER,
    COMPUTE,
    COPY,
    FREE,
    RECV,
    SEND,
    UPDATE,
    Buffer,
    Instruction,
    ProgramOp,
)
from dialects.structure import GraphOp, InputOp, NextOp, OutputOp, StageOp, StateOp, make_platform
from passes.instance import network_of

ACCELERATORS = 5


# --- random schedules ------------------------------------------------------------------------


@dataclass
class Op:
    """An operator of one result or two; it reads results by (operator, result, distance), and the input or not."""

    sets: list[tuple[int, ...]]
    time: int
    sizes: list[int]
    reads: list[tuple[int, int, int]] = field(default_factory=list)
    takes_input: bool = False
    sharded: list[int] = field(default_factory=list)
    start: int = 0
    later: list[int] = field(default_factory=list)
    """In a step, the starts of micro-batches 1, 2, ..."""
    group: str | None = None

    @property
    def starts(self) -> list[int]:
        return [self.start, *self.later]

    @property
    def end(self) -> int:
        return self.start + self.time

    def on(self, i: int) -> tuple[int, ...]:
        return self.sets[i % len(self.sets)]


@dataclass
class Transfer:
    """A value on its way to where some operators read it."""

    op: int
    result: int
    targets: tuple[tuple[int, ...], ...]
    time: int = 0
    link: int = 0
    starts: list[int] = field(default_factory=list)
    landings: list[int] = field(default_factory=list)


@dataclass
class Update:
    """An optimizer step for a group, which reads what operators have added up."""

    group: str
    gradients: list[int]
    time: int
    start: int = 0


@dataclass
class Case:
    """A schedule: everything at a place of its own in the period, so that nothing overlaps."""

    ops: list[Op]
    transfers: list[Transfer]
    period: int
    pattern_of: int
    levels: tuple[tuple[int, int], ...]
    mode: str
    outputs: list[tuple[int, int]]
    together: int = 0
    """Micro-batches of a step of ``period`` ns; 0: it is none."""
    updates: list[Update] = field(default_factory=list)

    @property
    def step(self) -> int:
        return self.together or lcm(*(len(op.sets) for op in self.ops))

    def moment(self, starts: Sequence[int], i: int) -> int:
        """When micro-batch ``i`` starts something."""
        return starts[i % len(starts)] + i // len(starts) * self.period

    def place(self, update: Update) -> tuple[int, ...]:
        """Where an optimizer step is done: on the set of its own gradient, the first."""
        return self.ops[update.gradients[0]].sets[0]

    def links(self) -> list[LinkAttr]:
        named = zip(("node", "cluster"), self.levels, strict=False)
        return [LinkAttr(StringAttr(name), IntAttr(size), IntAttr(t), IntAttr(10**9)) for name, (size, t) in named]

    def platform(self):
        return make_platform(
            "p",
            accelerator="a",
            accelerators=ACCELERATORS,
            memory=10**9,
            bandwidth=1,
            launch=0,
            peak={},
            links=self.links(),
            transfers=self.mode,
        )

    def module(self) -> ModuleOp:
        x = InputOp.create(result_types=[TensorType(i8, [7])])
        x.output.name_hint = "x"
        states = {}
        body = [StageOp.make(0, range(ACCELERATORS)), x]
        for op in self.ops:
            for u, r, d in op.reads:
                if d and (u, r, d) not in states:
                    name = f"s{len(states)}"
                    states[u, r, d] = StateOp.make(name, d, TensorType(i8, [self.ops[u].sizes[r]]))
                    states[u, r, d].output.name_hint = name
                    body.append(states[u, r, d])
        made: list[OpaqueOp] = []
        for v, op in enumerate(self.ops):
            operands = [states[key].output if key[2] else made[key[0]].results[key[1]] for key in op.reads]
            operands += [x.output] if op.takes_input else []
            types = [TensorType(i8, [size]) for size in op.sizes]
            cost = CostAttr.from_table({len(op.sets[0]): CostEntry(op.time)})
            made.append(OpaqueOp.make(operands, {}, types, 0, cost=cost, group=op.group))
            made[v].stage = IntegerAttr(0, i64)
            made[v].slot = SlotAttr.make(op.sets, op.starts)
            if op.sharded:
                made[v].sharded = ints(op.sharded)
            for r, result in enumerate(made[v].results):
                result.name_hint = f"v{v}" if not r else f"v{v}.r{r}"
            body.append(made[v])
            for t in self.transfers:
                if t.op == v:
                    value, link = made[v].results[t.result], ["node", "cluster"][t.link]
                    body.append(ReserveOp.make(value, t.targets, link, t.starts, t.time, t.landings))
        for n, update in enumerate(self.updates):
            home = self.ops[update.gradients[0]].sets[0]
            read = [next(r for r in made[v].results if r.type == ACCUMULATED) for v in update.gradients]
            cost = CostAttr.from_table({len(home): CostEntry(update.time)})
            body.append(OptimizerStepOp.make(read, {}, [ACCUMULATED], 0, group=update.group, cost=cost))
            body[-1].slot = SlotAttr.make([home], update.start)
            body[-1].stage = IntegerAttr(0, i64)
            body[-1].results[0].name_hint = f"u{n}"
        body += [NextOp.make(state.state.data, made[u].results[r]) for (u, r, _), state in states.items()]
        body.append(OutputOp.make([made[v].results[r] for v, r in self.outputs]))
        graph = GraphOp.make("g", body, "scheduled")
        words = (StringAttr("area"), StringAttr("stages"), StringAttr("hand"))
        pattern, count = IntAttr(self.period * self.pattern_of), IntAttr(self.together or self.pattern_of)
        step = bool(self.together)
        graph.schedule = ScheduleAttr(pattern, count, IntAttr(0), *words, IntAttr(0), step=step)
        return ModuleOp([self.platform(), graph])


@st.composite
def cases(draw: st.DrawFn, step: bool = False) -> Case:
    count = draw(st.integers(1, 5))
    levels = draw(st.sampled_from([(), ((5, 1),), ((5, 0),), ((3, 1), (6, 4))]))
    mode = draw(st.sampled_from(["overlapped", "blocking", "buffered"])) if levels else "overlapped"
    ops = [draw(operators(v, not step)) for v in range(count)]
    for _ in range(draw(st.integers(0, 2))):
        u, v = draw(st.integers(0, count - 1)), draw(st.integers(0, count - 1))
        ops[v].reads.append((u, draw(st.integers(0, len(ops[u].sizes) - 1)), draw(st.integers(1, 3))))
    case = Case(ops, [], 0, draw(st.sampled_from([1, 1, 2])), levels, mode, [])
    case.outputs = [(count - 1, 0), *draw(st.lists(st.sampled_from([(v, 0) for v in range(count)]), max_size=1))]
    if levels:
        case.transfers = needed(case)
    if step:
        case.pattern_of, case.together = 1, draw(st.integers(1, 3))
        case.updates = draw(updates(case))
    place(case, draw)
    case.updates = [update for update in case.updates if in_time(case, update)]
    return case


@st.composite
def operators(draw: st.DrawFn, v: int, copied: bool) -> Op:
    copies = draw(st.sampled_from([1, 1, 1, 1, 2, 3])) if copied else 1
    width = draw(st.integers(1, ACCELERATORS // copies if copies < 3 else 1))
    chosen = draw(st.permutations(range(ACCELERATORS)))
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=2))
    reads = []
    for u in draw(st.lists(st.integers(0, v - 1), max_size=2)) if v else []:
        reads.append((u, 0, 0))
    return Op(
        [tuple(sorted(chosen[c * width : (c + 1) * width])) for c in range(copies)],
        draw(st.integers(0, 4)),
        sizes,
        reads,
        draw(st.booleans()),
        draw(st.sampled_from([[], [], [0]])),
    )


@st.composite
def updates(draw: st.DrawFn, case: Case) -> list[Update]:
    """Optimizer steps of groups of one operator or two on one set, some with gradients of another group."""
    found: list[Update] = []
    for v, op in enumerate(case.ops):
        if op.group is None and draw(st.booleans()):
            op.group = f"g{v}"
            alike = [w for w, other in enumerate(case.ops) if w > v and other.sets == op.sets and other.group is None]
            if alike and draw(st.booleans()):
                case.ops[alike[0]].group = op.group
            gradient = max(w for w, other in enumerate(case.ops) if other.group == op.group)
            found.append(Update(op.group, [gradient], draw(st.integers(0, 2))))
    if len(found) > 1 and draw(st.booleans()):
        found[0].gradients.append(found[1].gradients[0])
        found[1].gradients.append(found[0].gradients[0])
    for op in case.ops:
        op.sizes += [0] if op.group is not None and 0 not in op.sizes else []
    return found


def in_time(case: Case, update: Update) -> bool:
    """Whether an optimizer step lies between its gradients and the next step."""
    ends = [start + case.ops[v].time for v in update.gradients for start in case.ops[v].starts]
    of = [op for op in case.ops if op.group == update.group]
    return max(ends) <= update.start and update.start + update.time <= case.period + min(
        s for o in of for s in o.starts
    )


def needed(case: Case) -> list[Transfer]:
    """A transfer for every value and other place where it is read, with the time that it takes."""
    network = network_of(case.platform())
    found: dict[tuple, Transfer] = {}
    for op in case.ops:
        for u, r, d in op.reads:
            home, size = case.ops[u].sets, case.ops[u].sizes[r]
            there = tuple(op.on(i + d) for i in range(len(op.sets)))
            if not size or there == tuple(home):
                continue
            turns = range(lcm(len(home), len(there)))
            pairs = [(home[i % len(home)], there[i % len(there)]) for i in turns]
            prices = [network.price_of(size, r in case.ops[u].sharded, a, b) for a, b in pairs]
            time, link = max(p.time for p in prices), max(p.level for p in prices)
            found[u, r, there] = Transfer(u, r, there, time, link)
    for t in found.values() if case.mode == "buffered" else ():  # one copy out serves all
        t.time = max(o.time for o in found.values() if (o.op, o.result) == (t.op, t.result))
    return list(found.values())


def place(case: Case, draw: st.DrawFn) -> None:
    """One after the other on the circle, in any order; then as soon as what is read is there."""
    turns = range(case.together or 1)
    lengths: dict[tuple, int] = {("op", v, j): op.time for v, op in enumerate(case.ops) for j in turns}
    lengths |= {("update", n): update.time for n, update in enumerate(case.updates)}
    for j in turns:
        for n, t in enumerate(case.transfers):
            lengths["out", (t.op, t.result) if case.mode == "buffered" else n, j] = t.time
            if case.mode == "buffered":
                lengths["in", n, j] = t.time
    offset, clock = {}, 0
    for key in draw(st.permutations(list(lengths))):
        offset[key] = clock
        clock += lengths[key]
    case.period = max(1, clock + draw(st.integers(0, 2)))

    def after(key: tuple, moment: int) -> int:
        return offset[key] + max(0, ceil((moment - offset[key]) / case.period)) * case.period

    for v, op in enumerate(case.ops):
        first = [max([0, *(ready(case, op, key, j) for key in op.reads if not key[2])]) for j in turns]
        op.start, *op.later = (after(("op", v, j), first[j]) for j in turns)
        for n, t in enumerate(case.transfers):
            if t.op == v:
                out = (t.op, t.result) if case.mode == "buffered" else n
                t.starts = [after(("out", out, j), op.starts[j] + op.time) for j in turns]
                t.landings = list(t.starts)
                if case.mode == "buffered":
                    t.landings = [after(("in", n, j), t.starts[j] + t.time) for j in turns]
    for op in case.ops:  # far enough back for the value to be there, without another turn of copies
        for number, (u, r, d) in enumerate(op.reads):
            while d and any(case.moment(op.starts, j + d) < ready(case, op, (u, r, d), j) for j in turns):
                d += len(op.sets)
            op.reads[number] = (u, r, d)
    for n, update in enumerate(case.updates):
        of = [case.ops[v] for v in update.gradients]
        update.start = after(("update", n), max(start + op.time for op in of for start in op.starts))
    first = min(start for op in case.ops for start in op.starts)
    for op in case.ops:
        op.start, *op.later = (start - first for start in op.starts)
    for t in case.transfers:
        t.starts, t.landings = [start - first for start in t.starts], [start - first for start in t.landings]
    for update in case.updates:
        update.start -= first


def ready(case: Case, op: Op, key: tuple[int, int, int], j: int) -> int:
    """When micro-batch ``j`` of a value is where an operator reads it."""
    u, r, d = key
    there = tuple(op.on(i + d) for i in range(len(op.sets)))
    arrivals = [t.landings[j] + t.time for t in case.transfers if (t.op, t.result, t.targets) == (u, r, there)]
    return max([case.ops[u].starts[j] + case.ops[u].time, *arrivals])


# --- the oracle ------------------------------------------------------------------------------


@dataclass
class Oracle:
    """Runs programs; ``wrong`` says what went wrong."""

    case: Case
    programs: dict[int, list[Instruction]]
    groups: dict[int, list[tuple[int, ...]]]
    microbatches: int
    memory: dict = field(default_factory=dict)
    """(accelerator, buffer, micro-batch) → byte → what is there."""
    wrong: list[str] = field(default_factory=list)

    def run(self) -> Oracle:
        at = dict.fromkeys(self.programs, 0)
        self.begun: dict[int, set[int]] = {p: set() for p in (*self.programs, -1)}
        self.ran: dict[int, dict[int, int]] = {p: {} for p in self.begun}
        total = {p: {} for p in self.begun}
        for p, listed in self.programs.items():
            for x in listed:
                if x.kind == COMPUTE:
                    for q in (p, -1):
                        total[q][x.microbatch] = total[q].get(x.microbatch, 0) + 1
        self.total = total
        while True:
            heads = {p: listed[at[p]] for p, listed in self.programs.items() if at[p] < len(listed)}
            if not heads:
                break
            parties = self.quiet(heads) or self.earliest(heads)
            if not parties:
                self.wrong.append("deadlock")
                return self
            for p in parties:
                at[p] += 1
        self.finish()
        return self

    def quiet(self, heads: dict[int, Instruction]) -> list[int]:
        """Do something other than computing, if there is something."""
        for p, x in heads.items():
            if x.kind == FREE:
                self.free(p, x)
                return [p]
            if x.kind == COPY:
                self.move(p, p, x, x)
                return [p]
            if x.kind == SEND and x.peer in heads:
                y = heads[x.peer]
                if y.kind == RECV and y.peer == p:
                    self.move(p, x.peer, x, y)
                    return [p, x.peer]
            if x.kind == ALL_GATHER:
                group = self.groups[p][x.peer]
                there = [q for q in group if q in heads and heads[q].kind == ALL_GATHER]
                if p in group and all(q in there and self.groups[q][heads[q].peer] == group for q in group):
                    self.gather(group, [heads[q] for q in group])
                    return list(group)
            if x.kind == UPDATE:
                group = self.case.place(self.case.updates[x.subject])
                together = p in group and all(q in heads and heads[q][:5] == x[:5] for q in group)
                if together and self.added_up(x.subject, x.microbatch):
                    for q in group:
                        self.update(q, x.subject, x.microbatch)
                    return list(group)
        return []

    def earliest(self, heads: dict[int, Instruction]) -> list[int]:
        def stands(q: int, x: Instruction) -> bool:
            return q in heads and heads[q][:5] == x[:5]

        def gang(p: int, x: Instruction) -> tuple[int, ...]:
            members = self.case.ops[x.subject].on(x.microbatch)
            return members if p in members else (p,)

        found = [
            (self.case.moment(self.case.ops[x.subject].starts, x.microbatch), x.microbatch, x.subject, p)
            for p, x in heads.items()
            if x.kind == COMPUTE and all(stands(q, x) for q in gang(p, x))
        ]
        if not found:
            return []
        _, i, v, p = min(found)
        together = gang(p, heads[p])
        for member in together:
            self.compute(member, v, i)
            for q in (member, -1):
                self.begun[q].add(i)
                if len(self.begun[q]) > self.bound(q):
                    self.wrong.append("in flight")
                self.ran[q][i] = self.ran[q].get(i, 0) + 1
                if self.ran[q][i] == self.total[q][i]:
                    self.begun[q].discard(i)
        return list(together)

    def bound(self, p: int) -> int:
        ops = self.case.ops
        if self.case.together > 1:
            return self.scheduled(p)
        if p < 0:
            return max(1, ceil((max(op.end for op in ops) - min(op.start for op in ops)) / self.case.period))
        starts = [op.start for op in ops if any(p in s for s in op.sets)]
        return max(1, ceil((max(starts) - min(starts)) / self.case.period))

    def scheduled(self, p: int) -> int:
        """Micro-batches begun and not finished on an accelerator, or anywhere, if everything runs as scheduled."""
        case, count = self.case, self.case.together * (3 + max(op.end for op in self.case.ops) // self.case.period)
        count += case.together * max(max(op.starts) for op in case.ops) // case.period
        here = [v for v, op in enumerate(case.ops) if p < 0 or p in op.sets[0]]
        order = sorted((case.moment(case.ops[v].starts, i), i, v) for v in here for i in range(count))
        left, most = {i: len(here) for i in range(count)}, 0
        for _, i, _ in order:
            most = max(most, sum(0 < n < len(here) or j == i for j, n in left.items()))
            left[i] -= 1
        return most

    def update(self, p: int, n: int, i: int) -> None:
        if (i + 1) % self.case.together or ("updated", p, n, i) in self.memory:
            self.wrong.append("updates when it should not")
        self.memory["updated", p, n, i] = {}

    def added_up(self, n: int, i: int) -> bool:
        """Whether all gradients are there that an optimizer step reads."""
        step = range(i + 1 - self.case.together, i + 1)
        read = [(v, p) for v in self.case.updates[n].gradients for p in self.case.ops[v].sets[0]]
        return all(("ran", p, v, j) in self.memory for v, p in read for j in step)

    def check_updated(self, p: int, v: int, i: int) -> None:
        """What came before in its step must be done."""
        last = i // self.case.together * self.case.together - 1
        for n, update in enumerate(self.case.updates):
            part = p in self.case.place(update) and self.case.ops[v].group == update.group
            if part and last >= 0 and ("updated", p, n, last) not in self.memory:
                self.wrong.append("runs before the step before has ended")

    def compute(self, p: int, v: int, i: int) -> None:
        op = self.case.ops[v]
        if self.case.together:
            self.check_updated(p, v, i)
        if p not in op.on(i) or ("ran", p, v, i) in self.memory:
            self.wrong.append("runs where or when it should not")
            return
        self.memory["ran", p, v, i] = {}
        if op.takes_input:
            if ("gone", p, i) in self.memory:
                self.wrong.append("input was freed")
            self.memory["input", p, i] = {}
        for u, r, d in op.reads:
            if i >= d:
                self.check_read(p, op, u, r, d, i - d)
        for r, size in enumerate(op.sizes):
            if (p, Buffer(v, r, 0), i) in self.memory:
                self.wrong.append("written twice")
            self.memory[p, Buffer(v, r, 0), i] = {byte: (v, r, i) for byte in range(size)}

    def check_read(self, p: int, op: Op, u: int, r: int, d: int, i: int) -> None:
        there = tuple(op.on(j + d) for j in range(len(op.sets)))
        home = self.case.ops[u]
        number = 0
        if op.on(i + d) != home.on(i):
            number = 1 + self.places(u, r).index(there)
        held = self.memory.get((p, Buffer(u, r, number), i))
        wanted = set(self.part(u, r, op.on(i + d), p))
        if held is None or (number and not wanted <= held.keys()) or any(w != (u, r, i) for w in held.values()):
            self.wrong.append("reads what is not there")

    def places(self, u: int, r: int) -> list[tuple]:
        """Where else a value is read, in the order of first readers."""
        found: dict[tuple, None] = {}
        for op in self.case.ops:
            for read in op.reads:
                there = tuple(op.on(j + read[2]) for j in range(len(op.sets)))
                if read[:2] == (u, r) and there != tuple(self.case.ops[u].sets):
                    found[there] = None
        return list(found)

    def part(self, u: int, r: int, members: tuple[int, ...], p: int) -> range:
        size = self.case.ops[u].sizes[r]
        if r not in self.case.ops[u].sharded:
            return range(size)
        place = members.index(p)
        return range(size * place // len(members), size * (place + 1) // len(members))

    def move(self, a: int, b: int, x: Instruction, y: Instruction) -> None:
        own = self.memory.get((a, x.buffer._replace(destination=0), x.microbatch))
        if x[1:5] != y[1:5] or x[6:] != y[6:]:
            self.wrong.append("what is sent is not what is received")
        members = self.case.ops[x.subject].on(x.microbatch)
        if own is None or a not in members:
            self.wrong.append("sends what is not there")
            return
        share = self.part(x.subject, x.result, members, a)
        if any(byte not in share for byte in range(x.begin, x.end)):
            self.wrong.append("sends what it has no share in")
        into = self.memory.setdefault((b, y.buffer, y.microbatch), {})
        for byte in (*range(y.begin, y.end), *([("empty", a)] if y.begin == y.end else [])):
            if byte in into:
                self.wrong.append("arrives twice")
            into[byte] = (x.subject, x.result, x.microbatch)

    def gather(self, group: tuple[int, ...], calls: list[Instruction]) -> None:
        x = calls[0]
        if any(y[1:5] != x[1:5] or y[6:] != x[6:] for y in calls):
            self.wrong.append("members gather different things")
        pieces = [self.memory.get((q, y.buffer, y.microbatch)) for q, y in zip(group, calls, strict=True)]
        if any(piece is None for piece in pieces):
            self.wrong.append("nothing to gather")
            return
        whole = {byte: what for piece in pieces for byte, what in piece.items()}
        if not whole.keys() >= set(range(x.begin, x.end)):
            self.wrong.append("pieces do not make up the whole")
        for q, y in zip(group, calls, strict=True):
            self.memory[q, y.buffer, y.microbatch] = dict(whole)

    def free(self, p: int, x: Instruction) -> None:
        if x.subject < 0:
            if ("input", p, x.microbatch) not in self.memory or ("gone", p, x.microbatch) in self.memory:
                self.wrong.append("no such input")
            self.memory["gone", p, x.microbatch] = {}
        elif (p, x.buffer, x.microbatch) not in self.memory:
            self.wrong.append("frees what is not there")
        else:
            del self.memory[p, x.buffer, x.microbatch]
            if (x.subject, x.result) in self.case.outputs and not x.destination:
                self.wrong.append("frees an output")

    def finish(self) -> None:
        for key in list(self.memory):
            if key[0] == "input" and ("gone", *key[1:]) not in self.memory:
                self.wrong.append("input is left")
            elif isinstance(key[1], Buffer) and (key[1].destination or key[1][:2] not in self.case.outputs):
                self.wrong.append("left at the end")
        for n, update in enumerate(self.case.updates):
            for i in range(self.case.together - 1, self.microbatches, self.case.together):
                if any(("updated", p, n, i) not in self.memory for p in self.case.place(update)):
                    self.wrong.append("never updates")
        for v, op in enumerate(self.case.ops):
            for i in range(self.microbatches):
                if any(("ran", p, v, i) not in self.memory for p in op.on(i)):
                    self.wrong.append("never runs")


def programs_of(module: ModuleOp) -> list[ProgramOp]:
    return [op for op in module.body.ops if isinstance(op, ProgramOp)]


def oracle(case: Case, module: ModuleOp, trips: int) -> list[str]:
    """What goes wrong in a run of ``trips`` trips."""
    programs, groups = {}, {}
    for op in programs_of(module):
        p, base, step = op.accelerator.value.data, op.base.value.data, op.step.value.data
        last = base + step * trips - 1
        listed = list(op.instructions("prologue"))
        for trip in range(trips):
            listed += [x._replace(microbatch=x.microbatch + trip * step) for x in op.instructions("kernel")]
        programs[p] = listed + [x._replace(microbatch=last - x.microbatch) for x in op.instructions("epilogue")]
        groups[p] = [tuple(group.get_values()) for group in op.groups.data]
    return Oracle(case, programs, groups, last + 1).run().wrong


# --- fixtures --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def random_cases() -> Callable[[], st.SearchStrategy[Case]]:
    """Strategy of schedules, or with ``step=True`` of steps; the module of one is ``case.module()``."""
    return cases


@pytest.fixture(scope="session")
def chain_of() -> Callable[..., Case]:
    """``chain_of(sets, time, period)``: operators that each read all before, on these sets, as soon as they may."""

    def make(sets: Sequence[Sequence[tuple[int, ...]]], time: int, period: int) -> Case:
        ops = [Op(list(s), time, [4], [(u, 0, 0) for u in range(v)], start=v * time) for v, s in enumerate(sets)]
        return Case(ops, [], period, 1, (), "overlapped", [(len(ops) - 1, 0)])

    return make


@pytest.fixture(scope="session")
def step_of_two() -> Callable[..., Case]:
    """``step_of_two(tied)``: two operators of 3 ns on accelerators 0 and 1 in a step of 2, then optimizer steps.

    These read the gradients of both groups where they are tied.
    """

    def make(tied: bool = False) -> Case:
        ops = [Op([(v,)], 3, [4, 0], [(0, 0, 0)] if v else [], start=3 * v, later=[3 * v + 3]) for v in range(2)]
        for v, op in enumerate(ops):
            op.group = f"g{v}"
        updates = [Update(f"g{v}", [v, 1 - v] if tied else [v], 2, 9 if tied else 6 + 3 * v) for v in range(2)]
        return Case(ops, [], 11, 1, (), "overlapped", [(1, 0)], 2, updates)

    return make


@pytest.fixture(scope="session")
def harm() -> Callable[[Case, ModuleOp, int], list[str]]:
    """``harm(case, module, trips)``: what goes wrong when the programs of a module run."""
    return oracle
