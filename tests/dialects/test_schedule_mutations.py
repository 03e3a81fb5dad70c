"""The checker of level 4 against an oracle that unrolls many periods, and against mutated schedules.

The oracle below is written from the definitions, in the plainest way there is: list every run of every
operator over a long stretch of time and compare all pairs; add up every byte at every nanosecond.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import lcm

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from dialects.levels import check_level
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform


@dataclass(frozen=True)
class Op:
    time: int
    reads: tuple[int, ...] = ()
    sets: tuple[tuple[int, ...], ...] = ((0,),)
    start: int = 0
    params: int = 0
    output: int = 0
    workspace: int = 0
    value: int = 0
    """Bytes of the result, whole."""
    takes_input: bool = False

    @property
    def end(self) -> int:
        return self.start + self.time


@dataclass(frozen=True)
class Case:
    ops: tuple[Op, ...]
    period: int
    memory: int = 10**6
    input_size: int = 9

    ACCELERATORS = 6

    def module(self, sketch: Callable) -> ModuleOp:
        s = sketch(accelerators=self.ACCELERATORS, group=self.ACCELERATORS, memory=self.memory)
        s.stage(range(self.ACCELERATORS))
        x = s.input("x", self.input_size)
        values = []
        for i, op in enumerate(self.ops):
            operands = [values[j] for j in op.reads] + ([x] if op.takes_input else [])
            # Every width is admissible, at the same cost: a mutation of the set alone stays admissible.
            table = {k: (op.time, op.params, op.output, op.workspace) for k in range(1, self.ACCELERATORS + 1)}
            values.append(
                s.op(f"v{i}", *operands, table=table, results=[op.value], stage=0, sets=op.sets, start=op.start)
            )
        return s.module("scheduled", values[-1], pattern=self.period)

    def change(self, index: int, **fields) -> Case:
        ops = list(self.ops)
        ops[index] = replace(ops[index], **fields)
        return replace(self, ops=tuple(ops))


# --- the oracle ------------------------------------------------------------------------------


def oracle_rules(case: Case) -> set[str]:
    """Names of the broken rules among those on times."""
    broken: set[str] = set()
    starts = [op.start for op in case.ops]
    if min(starts) != 0:
        broken.add("starts")
    if any(op.start < case.ops[j].end for op in case.ops for j in op.reads):
        broken.add("precedence")
    if any(op.time > len(op.sets) * case.period for op in case.ops):
        broken.add("fits-period")
    repetition = lcm(*(len(op.sets) for op in case.ops))
    horizon = max(starts) // case.period + 2 * repetition + 2
    runs = [
        (op.start + i * case.period, op.end + i * case.period, op.sets[i % len(op.sets)], (number, i))
        for number, op in enumerate(case.ops)
        if 0 < op.time <= len(op.sets) * case.period
        for i in range(-horizon, horizon)
    ]
    for a, b, there, who in runs:
        if who[1] < 0 or who[1] >= repetition:
            continue
        for c, d, other_set, other in runs:
            if who != other and a < d and c < b and set(there) & set(other_set):
                broken.add("exclusive")
    return broken


def oracle_peak(case: Case, accelerator: int) -> tuple[int, int]:
    """Parameters, and the largest sum of bytes at any nanosecond of one repetition in the steady state."""
    params = sum(op.params for op in case.ops if any(accelerator in members for members in op.sets))
    repetition = lcm(*(len(op.sets) for op in case.ops))
    longest = max(op.end for op in case.ops)
    first = longest + case.period * repetition
    last = first + case.period * repetition
    bytes_at: Counter[int] = Counter()

    def hold(begin: int, end: int, size: int) -> None:
        for moment in range(max(begin, first), min(end, last)):
            bytes_at[moment] += size

    for i in range(last // case.period + 1):
        shift = i * case.period
        homes = [op.sets[i % len(op.sets)] for op in case.ops]
        for number, op in enumerate(case.ops):
            consumers = [j for j, other in enumerate(case.ops) if number in other.reads]
            if accelerator in homes[number]:
                hold(op.start + shift, op.end + shift, op.workspace)
                last_use = max([op.end] + [case.ops[j].end for j in consumers if homes[j] == homes[number]])
                hold(op.start + shift, last_use + shift, op.output)
            for members in {homes[j] for j in consumers} - {homes[number]}:
                if accelerator in members:
                    until = max(case.ops[j].end for j in consumers if homes[j] == members)
                    hold(op.end + shift, until + shift, op.value)
        readers = [j for j, op in enumerate(case.ops) if op.takes_input]
        for members in {homes[j] for j in readers}:
            if accelerator in members:
                spans = [(case.ops[j].start, case.ops[j].end) for j in readers if homes[j] == members]
                begin, end = min(s[0] for s in spans), max(s[1] for s in spans)
                hold(begin + shift, end + shift, case.input_size)
    return params, max(bytes_at.values(), default=0)


# --- cases -----------------------------------------------------------------------------------

members = st.lists(st.integers(0, Case.ACCELERATORS - 1), min_size=1, max_size=3, unique=True).map(
    lambda m: tuple(sorted(m))
)


@st.composite
def operators(draw: st.DrawFn, index: int, copies: int) -> Op:
    reads = draw(st.lists(st.integers(0, index - 1), max_size=2, unique=True)) if index else []
    width = draw(st.integers(1, max(1, Case.ACCELERATORS // copies // 2)))
    chosen = draw(st.permutations(range(Case.ACCELERATORS)))
    return Op(
        time=draw(st.integers(0, 8)),
        reads=tuple(reads),
        sets=tuple(tuple(sorted(chosen[c * width : (c + 1) * width])) for c in range(copies)),
        params=draw(st.integers(0, 50)),
        output=draw(st.integers(0, 20)),
        workspace=draw(st.integers(0, 20)),
        value=draw(st.integers(0, 20)),
        takes_input=draw(st.booleans()),
    )


def scheduled(ops: list[Op]) -> list[Op]:
    """Start everything as soon as what it reads is there, whatever else runs."""
    done: list[Op] = []
    for op in ops:
        done.append(replace(op, start=max([0, *(done[j].end for j in op.reads)])))
    return done


@st.composite
def any_cases(draw: st.DrawFn) -> Case:
    """Schedules that keep precedence and may break everything else."""
    count = draw(st.integers(1, 6))
    ops = [draw(operators(i, draw(st.sampled_from([1, 1, 1, 2, 3])))) for i in range(count)]
    period = draw(st.integers(1, 24))
    done = scheduled(ops)
    delays = draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))
    moved: list[Op] = []
    for op, delay in zip(done, delays, strict=True):
        moved.append(replace(op, start=max([op.start, *(moved[j].end for j in op.reads)]) + delay))
    return Case(tuple(moved), period)


@st.composite
def valid_cases(draw: st.DrawFn) -> Case:
    """Valid schedules: operators one after the other in the period, then whole periods added for precedence."""
    count = draw(st.integers(2, 6))
    ops = [draw(operators(i, 1)) for i in range(count)]
    ops = [replace(op, time=max(1, op.time)) for op in ops]
    period = sum(op.time for op in ops) + draw(st.integers(0, 3))
    order = draw(st.permutations(range(count)))
    offset, clock = {}, 0
    for index in order:
        offset[index] = clock
        clock += ops[index].time
    done: list[Op] = []
    for index, op in enumerate(ops):
        ready = max([0, *(done[j].end for j in op.reads)])
        rounds = max(0, -(-(ready - offset[index]) // period))
        done.append(replace(op, start=offset[index] + rounds * period))
    first = min(op.start for op in done)
    return Case(tuple(replace(op, start=op.start - first) for op in done), period)


TIME_RULES = {"starts", "precedence", "fits-period", "exclusive"}


def verdict(case: Case, sketch: Callable) -> set[str]:
    return {d.rule for d in check_level(case.module(sketch)) if d.rule is not None}


# --- checker and oracle agree ----------------------------------------------------------------


@settings(max_examples=250, deadline=None)
@given(case=any_cases())
def test_time_rules_agree_with_unrolling(case: Case, sketch):
    assert verdict(case, sketch) & TIME_RULES == oracle_rules(case)


@settings(max_examples=200, deadline=None)
@given(case=any_cases())
def test_peak_memory_agrees_with_unrolling(case: Case, sketch):
    module = case.module(sketch)
    found = peak_memory(find_graph(module), find_platform(module))
    assert found == {p: oracle_peak(case, p) for p in range(Case.ACCELERATORS)}


@settings(max_examples=100, deadline=None)
@given(case=valid_cases())
def test_memory_rule_is_exact_to_the_byte(case: Case, sketch):
    needed = max(sum(oracle_peak(case, p)) for p in range(Case.ACCELERATORS))
    if needed > 1:
        assert verdict(replace(case, memory=needed), sketch) == set()
        assert verdict(replace(case, memory=needed - 1), sketch) == {"memory"}


# --- mutations of valid schedules ------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(case=valid_cases())
def test_valid_schedules_are_accepted(case: Case, sketch):
    assert check_level(case.module(sketch)) == []


@settings(max_examples=300, deadline=None)
@given(case=valid_cases(), data=st.data())
def test_every_harmful_mutation_is_caught(case: Case, data: st.DataObject, sketch):
    """Shift a start, change a set, add or drop an edge, stretch an operator, change the period: same verdict."""
    index = data.draw(st.integers(0, len(case.ops) - 1), label="operator")
    op = case.ops[index]
    kind = data.draw(st.sampled_from(["start", "set", "edge", "drop", "time", "period", "copies"]), label="kind")
    if kind == "start":
        mutant = case.change(index, start=op.start + data.draw(st.integers(-12, 12)))
    elif kind == "set":
        mutant = case.change(index, sets=(data.draw(members),))
    elif kind == "edge" and index > 0:
        mutant = case.change(index, reads=tuple({*op.reads, data.draw(st.integers(0, index - 1))}))
    elif kind == "drop":
        mutant = case.change(index, reads=op.reads[1:])
    elif kind == "time":
        mutant = case.change(index, time=op.time + data.draw(st.integers(1, 10)))
    elif kind == "period":
        mutant = replace(case, period=data.draw(st.integers(1, case.period)))
    else:
        mutant = case.change(index, sets=(op.sets[0], op.sets[0]))
    broken = verdict(mutant, sketch)
    assert broken & TIME_RULES == oracle_rules(mutant)
    assert ("sets-fixed" in broken) == (len(mutant.ops[index].sets) > 1)


@settings(max_examples=100, deadline=None)
@given(case=valid_cases(), data=st.data())
def test_a_dropped_edge_frees_the_start_and_a_kept_one_binds_it(case: Case, data: st.DataObject, sketch):
    """The checker reads dependences off the SSA graph: the same early start is legal only without the edge."""
    readers = [i for i, op in enumerate(case.ops) if op.reads]
    if not readers:
        return
    index = data.draw(st.sampled_from(readers))
    early = case.change(index, start=case.ops[case.ops[index].reads[0]].end - 1)
    assert "precedence" in verdict(early, sketch)
    freed = early.change(index, reads=())
    assert ("precedence" in verdict(freed, sketch)) == ("precedence" in oracle_rules(freed))


TWO = Case((Op(time=4, sets=((0, 1),), value=3), Op(time=4, reads=(0,), sets=((1, 2),), start=4)), period=8)
"""Two operators that share accelerator 1 and fill it."""


@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        (TWO.change(1, start=3), "precedence"),
        (TWO.change(1, start=5), "exclusive"),
        (TWO.change(1, start=11), "exclusive"),
        (TWO.change(1, start=13), "exclusive"),
        (TWO.change(0, start=1), "starts"),
        (TWO.change(0, start=-1), "starts"),
        (replace(TWO, period=7), "exclusive"),
        (replace(TWO, period=3), "fits-period"),
        (replace(TWO, memory=2), "memory"),
        (TWO.change(0, sets=((0, 6),)), "sets-fixed"),
    ],
)
def test_mutations_by_hand(mutant: Case, rule: str, sketch):
    assert check_level(TWO.module(sketch)) == []
    assert rule in verdict(mutant, sketch)


@pytest.mark.parametrize("mutant", [TWO.change(1, start=12), TWO.change(1, sets=((2, 3),), start=5)])
def test_harmless_mutations_are_accepted(mutant: Case, sketch):
    assert verdict(mutant, sketch) == set()
