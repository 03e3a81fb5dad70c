"""Small scheduled modules, written down operator by operator, and runs of their programs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from xdsl.dialects.builtin import IntAttr, IntegerAttr, ModuleOp, StringAttr, TensorType, i8, i64
from xdsl.ir import SSAValue

from compiler import compile_model
from compiler.runtime.job import EVENT, Events, Job, Rows, Settings
from compiler.runtime.prepare import job_of
from compiler.runtime.recorded import Run
from dialects.attributes import BlockAttr, CostAttr, CostEntry, ScheduleAttr, SlotAttr, ints
from dialects.communication import ReserveOp
from dialects.links import LinkAttr
from dialects.operators import OpaqueOp
from dialects.programs import COMPUTE, RECV, SEND, UPDATE, Instruction
from dialects.structure import GraphOp, InputOp, NextOp, OutputOp, StageOp, StateOp, make_platform
from frontend.source import Source
from passes.lower_to_programs import lower_to_programs


@dataclass
class Operator:
    """One operator: what it reads (names of inputs or operators, ``a:1`` for the second result), when and where."""

    name: str
    reads: Sequence[str]
    time: int
    sets: Sequence[Sequence[int]]
    start: int
    results: Sequence[int] = (0,)
    params: int = 0
    output: int = 0
    workspace: int = 0
    stage: int | None = None
    block: tuple[str, int] | None = None
    group: str | None = None
    sharded: Sequence[int] = ()


@dataclass
class Build:
    """A scheduled module: ``period`` ns for ``pattern_of`` micro-batches."""

    operators: Sequence[Operator]
    pattern: int
    accelerators: int
    memory: int = 2**40
    pattern_of: int = 1
    bound: int = 1
    bound_by: str = "area"
    inputs: dict[str, int] = field(default_factory=dict[str, int])
    outputs: Sequence[str] = ()
    stages: Sequence[Sequence[int]] = ()
    states: dict[str, tuple[str, int]] = field(default_factory=dict[str, tuple[str, int]])
    """Name of a state → the result that is left in it, and its distance."""
    links: Sequence[LinkAttr] = ()
    """Without links, values move for free."""
    transfers: str = "overlapped"
    moves: Sequence[tuple[Any, ...]] = ()
    """Result and the other arguments of :meth:`ReserveOp.make`."""

    def module(self) -> ModuleOp:
        values: dict[str, SSAValue] = {}
        body: list[Any] = [StageOp.make(i, granted) for i, granted in enumerate(self.stages)]
        for name, size in self.inputs.items():
            op = InputOp.create(result_types=[TensorType(i8, [size])])
            op.output.name_hint = name
            values[name] = op.output
            body.append(op)
        sizes = {f"{o.name}:{i}" if i else o.name: size for o in self.operators for i, size in enumerate(o.results)}
        for name, (left, distance) in self.states.items():
            state = StateOp.make(name, distance, TensorType(i8, [sizes[left]]))
            values[name] = state.output
            body.append(state)
        for spec in self.operators:
            op = _operator(spec, values)
            for i, result in enumerate(op.results):
                result.name_hint = spec.name if i == 0 else f"{spec.name}.r{i}"
                values[f"{spec.name}:{i}" if i else spec.name] = result
            body.append(op)
        body += [ReserveOp.make(values[name], *rest) for name, *rest in self.moves]
        body += [NextOp.make(name, values[left]) for name, (left, _) in self.states.items()]
        body.append(OutputOp.make([values[name] for name in self.outputs]))
        graph = GraphOp.make("test", body, "scheduled")
        graph.schedule = ScheduleAttr(
            IntAttr(self.pattern),
            IntAttr(self.pattern_of),
            IntAttr(self.bound),
            StringAttr(self.bound_by),
            StringAttr("stages"),
            StringAttr("by-hand"),
            IntAttr(0),
        )
        platform = make_platform(
            "board",
            accelerator="chip",
            accelerators=self.accelerators,
            memory=self.memory,
            bandwidth=10**9,
            launch=0,
            peak={"bf16": 10**12},
            links=self.links,
            transfers=self.transfers,
        )
        return ModuleOp([platform, graph])


def _operator(spec: Operator, values: dict[str, SSAValue]) -> OpaqueOp:
    allotment = len(spec.sets[0])
    entry = CostEntry(spec.time, spec.params, spec.output, spec.workspace)
    op = OpaqueOp.make(
        [values[name] for name in spec.reads],
        {},
        [TensorType(i8, [size]) for size in spec.results],
        spec.params,
        group=spec.group,
        block=None if spec.block is None else BlockAttr(StringAttr(spec.block[0]), IntAttr(spec.block[1])),
        cost=CostAttr.from_table({allotment: entry}),
    )
    if spec.stage is not None:
        op.stage = IntegerAttr(spec.stage, i64)
    if spec.sharded:
        op.sharded = ints(spec.sharded)
    op.slot = SlotAttr.make(spec.sets, spec.start)
    return op


@pytest.fixture(scope="session")
def operator() -> type[Operator]:
    return Operator


@pytest.fixture(scope="session")
def build() -> Callable[..., ModuleOp]:
    """``build(operators, pattern=..., accelerators=...)`` → a scheduled module; see :class:`Build`."""

    def make(*args: Any, **options: Any) -> ModuleOp:
        return Build(*args, **options).module()

    return make


# --- runs ------------------------------------------------------------------------------------


class Player:
    """Works through programs as accelerators without any delay do, and writes down what processes would report.

    Operators begin as scheduled, or as soon as they can; on the accelerators of ``slow`` they take that many times as
    long. Messages take the time of their transfer.
    """

    def __init__(self, job: Job, programs: Mapping[int, Rows], slow: Mapping[int, int], scheduled: bool):
        self.job, self.slow, self.scheduled = job, slow, scheduled
        self.lists = {p: [Instruction._make(row) for row in rows.tolist()] for p, rows in programs.items()}
        self.now = dict.fromkeys(self.lists, 0)
        self.events: dict[int, list[tuple[int, int, int, int]]] = {p: [] for p in self.lists}
        self.sent: dict[tuple[int, ...], int] = {}
        self.there: dict[tuple[int, ...], int] = {}
        self.ended: dict[tuple[int, int], int] = {}
        self.moves = {(t.subject, t.result, t.destination): t.time for t in job.moves}

    def play(self) -> dict[int, Events]:
        progress = True
        while progress:
            progress = False
            for p in self.lists:
                while self.at(p) is not None and self.step(p):
                    progress = True
        assert all(self.at(p) is None for p in self.lists), "the programs wait for each other"
        return {p: np.array(events, dtype=EVENT) for p, events in self.events.items()}

    def at(self, p: int) -> Instruction | None:
        done = len(self.events[p])
        return self.lists[p][done] if done < len(self.lists[p]) else None

    def report(self, p: int, start: int, end: int) -> None:
        self.events[p].append((len(self.events[p]), self.now[p], start, end))

    def step(self, p: int) -> bool:
        x = self.at(p)
        assert x is not None
        if x.kind in (COMPUTE, UPDATE):
            return self.compute(x) if x.kind == COMPUTE else self.update(x)
        message = (*x.buffer, x.microbatch, x.begin, x.end)
        if x.kind == RECV:
            if (x.peer, p, *message) not in self.sent:
                return False
            end = self.sent[x.peer, p, *message] + self.moves.get(x.buffer, 0)
            held = (p, *x.buffer, x.microbatch)
            self.there[held] = max(self.there.get(held, 0), end)
            self.report(p, end, end)
            return True
        if x.kind == SEND:
            self.sent[p, x.peer, *message] = self.now[p]
        self.report(p, self.now[p], self.now[p])
        return True

    def compute(self, x: Instruction) -> bool:
        operator, i = self.job.operators[x.subject], x.microbatch
        place = operator.on(i)
        if any(self.at(p) != x for p in place):
            return False
        keys = [(p, r.subject, r.result, r.destination, i - r.distance) for p in place for r in operator.reads]
        start = max(*(self.now[p] for p in place), *(self.there.get(key, 0) for key in keys), 0)
        if self.scheduled:
            regular = operator.start + i * self.job.pattern // self.job.per_pattern
            start = max(start, int(self.job.begin(operator, i)) if self.job.step else regular)
        end = start + operator.time * max(self.slow.get(p, 1) for p in place)
        for p in place:
            self.report(p, start, end)
            self.now[p] = end
        self.ended[x.subject, i] = end
        return True

    def update(self, x: Instruction) -> bool:
        update = self.job.updates[x.subject]
        step = range(x.microbatch + 1 - self.job.per_pattern, x.microbatch + 1)
        read = [self.ended.get((v, i)) for v in update.gradients for i in step]
        if None in read or any(self.at(p) != x for p in update.on):
            return False
        start = max(*read, *(self.now[p] for p in update.on))
        if self.scheduled:
            start = max(start, update.start + x.microbatch // self.job.per_pattern * self.job.pattern)
        for p in update.on:
            self.report(p, start, start + update.time)
            self.now[p] = start + update.time
        return True


@pytest.fixture(scope="session")
def player() -> type[Player]:
    return Player


@pytest.fixture(scope="session")
def play() -> Callable[..., Run]:
    """``play(module, slow={2: 3}, scheduled=False, **settings)`` → a run of its programs; see :class:`Player`."""

    def make(
        module: ModuleOp, *, slow: Mapping[int, int] | None = None, scheduled: bool = True, **settings: Any
    ) -> Run:
        job, programs = job_of(module, Settings(**settings))
        return Run(job, programs, Player(job, programs, slow or {}, scheduled).play())

    return make


# --- traces ----------------------------------------------------------------------------------


def _ns(us: float) -> int:
    found = round(us * 1000)
    assert abs(us * 1000 - found) < 1e-3
    return found


def _check_trace(events: list[dict[str, Any]]) -> None:
    """What the format asks for: in time order, slices nest, every track has a name, arrows go from slice to slice."""
    data = [e for e in events if e["ph"] != "M"]
    assert [e["ts"] for e in data] == sorted(e["ts"] for e in data)
    assert all(e["ts"] >= 0 and e.get("dur", 0) >= 0 for e in data)
    named = [(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"]
    assert sorted(named) == sorted((e["pid"], e["tid"]) for e in events if e["name"] == "thread_sort_index")
    assert len({tid for _, tid in named}) == len(named)
    assert {(e["pid"], e["tid"]) for e in data} <= set(named)
    slices: dict[int, list[tuple[int, int]]] = {}
    open_slices: dict[int, list[int]] = {}
    for e in (e for e in data if e["ph"] == "X"):
        stack = open_slices.setdefault(e["tid"], [])
        begin, end = _ns(e["ts"]), _ns(e["ts"]) + _ns(e["dur"])
        while stack and stack[-1] <= begin:
            stack.pop()
        assert not stack or end <= stack[-1], e
        assert len(stack) == (1 if e["cat"] == "operator" else 0), e
        stack.append(end)
        slices.setdefault(e["tid"], []).append((begin, end))
    starts = {e["id"]: e for e in data if e["ph"] == "s"}
    ends = {e["id"]: e for e in data if e["ph"] == "f"}
    assert len(starts) + len(ends) == sum(e["ph"] in "sf" for e in data)
    assert starts.keys() == ends.keys()
    for key, start in starts.items():
        assert start["ts"] <= ends[key]["ts"]
        assert (start["name"], start["cat"], "e") == (ends[key]["name"], ends[key]["cat"], ends[key]["bp"])
        for e in (start, ends[key]):
            assert any(low <= _ns(e["ts"]) < high for low, high in slices[e["tid"]])


@pytest.fixture(scope="session")
def trace_rules() -> Callable[[list[dict[str, Any]]], None]:
    """Asserts that the events of a trace keep the rules of the format."""
    return _check_trace


# --- runs on processes and threads -----------------------------------------------------------

_FEW = """
accelerator small {{ memory = 1 GiB  bandwidth = 10 GB/s  launch = 1 us  peak bf16 = 1 TFLOP/s }}
platform few {{
  accelerators = {accelerators} of small
  transfers = {transfers}
  link node {{ latency = 100 us  bandwidth = 10 GB/s }}
}}
"""


@pytest.fixture(scope="session")
def prepare() -> Callable[..., tuple[Job, dict[int, Rows]]]:
    """``prepare(model, accelerators, microbatches)`` → its job and the programs, on a small platform."""

    def make(model: str, accelerators: int, microbatches: int, transfers: str = "overlapped", **settings: Any):
        text = model + _FEW.format(accelerators=accelerators, transfers=transfers)
        module = compile_model(Source("model.takt", text))
        lower_to_programs(module, microbatches)
        return job_of(module, Settings(**settings))

    return make


@pytest.fixture(scope="session")
def check_events() -> Callable[..., None]:
    """``check_events(job, programs, events)``: what processes report makes sense."""
    return _check_events


def _check_events(job: Job, programs: Mapping[int, Rows], events: Mapping[int, Any], slack: int = 0) -> None:
    """Nothing on an accelerator overlaps, and no operator begins before what it reads has ended where it comes from."""
    ended: dict[tuple[int, int, int], int] = {}
    for p, rows in programs.items():
        mine = events[p][rows[:, 0] == COMPUTE]
        assert (events[p]["arrive"] <= events[p]["start"]).all()
        assert (events[p]["start"] <= events[p]["end"]).all()
        assert (mine["start"][1:] >= mine["end"][:-1]).all()
        assert (events[p]["index"] == np.arange(len(rows))).all()
        assert (events[p]["end"] > 0).all()
        computed = rows[rows[:, 0] == COMPUTE].tolist()
        ended |= {(p, row[1], row[4]): end for row, end in zip(computed, mine["end"].tolist(), strict=True)}
    for p, rows in programs.items():
        senders: dict[tuple[int, ...], list[int]] = {}
        for x in map(Instruction._make, rows.tolist()):
            if x.kind == RECV:
                senders.setdefault((*x.buffer, x.microbatch), []).append(x.peer)
        for x, event in zip(map(Instruction._make, rows.tolist()), events[p], strict=True):
            for read in job.operators[x.subject].reads if x.kind == COMPUTE else ():
                i = x.microbatch - read.distance
                if read.subject >= 0 and i >= 0:
                    key = (read.subject, read.result, read.destination, i)
                    for q in senders.get(key, [p]):
                        assert event["start"] >= ended[q, read.subject, i] - slack
