"""A schedule as fragments: stretches of one micro-batch on one mesh, and the transfers between meshes, in one order.

A *mesh* is a set of accelerators that runs something; meshes are equal or disjoint. A *fragment* runs as a whole: what
it reads is there when it begins, what it makes leaves when it ends. So a stretch of operators that a mesh runs for one
micro-batch is cut before an operator where the schedule has something earlier: an operator of another micro-batch, a
transfer that takes a result of the stretch away before the operator ends, or one that brings what the operator reads.
Then nothing is sent later than it may in the schedule, and nothing begins later, but for operators without time that
stand in the course of another. The cuts are those of the steady state, for all micro-batches. In a training schedule
no fragment has forward and backward operators. In a step the optimizer's are fragments of their own, which read the
weight gradients of all micro-batches.

**Order.** The key of an operator is its time, then whether it takes any, then its micro-batch, then its place in the
graph; that of a fragment is its first operator's. Transfers have such keys too, and come first among what begins at one
moment. Everything reads only what has a smaller key: so the list of all fragments and transfers, sorted by key, is an
order in which values are defined before they are read, and in which meshes that work through their parts never wait for
each other in a circle.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from typing import Literal, NamedTuple

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue

from compiler.targets.pipelines import ALL_OF_A_RANK, ANY_STAGE, batch_of, refuse, with_plan
from compiler.targets.text import ranges
from compiler.targets.training_stages import halves
from compiler.view import Accelerators, Move, Task, view_of
from dialects.operators import OperatorOp
from dialects.structure import GraphOp, find_graph


class Read(NamedTuple):
    """An operand: input ``subject``, state ``subject``, or result ``result`` of task ``subject``."""

    kind: Literal["input", "state", "value"]
    subject: int
    result: int = 0


class State(NamedTuple):
    """Micro-batch ``i`` finds in it what ``i - distance`` left there: result ``result`` of task ``producer``."""

    name: str
    distance: int
    producer: int
    result: int


class Body(NamedTuple):
    """What a fragment runs: tasks in order, what they read from outside, and the results that others read."""

    mesh: Accelerators
    stage: int
    """Number of the fragment within a micro-batch; the same on all copies."""
    tasks: tuple[int, ...]
    reads: tuple[Read, ...]
    results: tuple[Read, ...]


class Fragment(NamedTuple):
    """A body for one micro-batch."""

    body: Body
    microbatch: int


class Closing(NamedTuple):
    """Step number ``update`` of the optimizer on ``mesh``, and the weight gradients of all micro-batches it reads."""

    update: int
    mesh: Accelerators
    sources: tuple[Value, ...]


class Argument(NamedTuple):
    """An input or the initial value of a state, for the micro-batch that reads it on this mesh."""

    read: Read
    microbatch: int
    mesh: Accelerators


class Value(NamedTuple):
    """A result of a task for one micro-batch, on the mesh that made it or on one that received it."""

    producer: int
    result: int
    microbatch: int
    mesh: Accelerators


class Result(NamedTuple):
    """Output ``subject`` of a micro-batch, or what it would find in state ``subject``, and where that is."""

    kind: Literal["output", "state"]
    subject: int
    microbatch: int
    source: Argument | Value


Key = tuple[int, ...]


class Fragments:
    """The fragments of a scheduled module for a number of micro-batches (default: three times those in flight).

    Raises :class:`TaktError` where accelerator sets overlap, or there is no micro-batch.
    """

    def __init__(self, module: ModuleOp, microbatches: int | None = None):
        graph = find_graph(module)
        self.view = view_of(module)
        assert graph is not None
        self.microbatches = batch_of(self.view, microbatches)
        self.graph: GraphOp = graph
        self.operators: tuple[OperatorOp, ...] = tuple(graph.operators())
        self.meshes: tuple[Accelerators, ...] = tuple(sorted({c for t in self.view.tasks for c in t.copies}))
        self.halves = halves(self.view)
        self._check_meshes()
        self._leaving: dict[tuple[int, int], list[Move]] = {}
        for move in self.view.moves:
            self._leaving.setdefault((move.producer, move.result), []).append(move)

    def _check_meshes(self) -> None:
        owner: dict[int, tuple[Task, Accelerators]] = {}
        for task in self.view.tasks:
            for place in task.copies:
                for p in place:
                    other, there = owner.setdefault(p, (task, place))
                    if there != place:
                        message = f"'{task.name}' runs on accelerators {ranges(place)}, and '{other.name}' on"
                        message += f" {ranges(there)}: meshes of mpmd are equal or have no accelerator in common"
                        raise refuse(self.operators, task, message, with_plan(self.view, ANY_STAGE, ALL_OF_A_RANK))

    # --- what is read --------------------------------------------------------------------------

    @cached_property
    def _numbers(self) -> dict[SSAValue, Read]:
        found: dict[SSAValue, Read] = {op.output: Read("input", n) for n, op in enumerate(self.graph.inputs())}
        found |= {op.output: Read("state", n) for n, op in enumerate(self.graph.states())}
        found |= {r: Read("value", v, r.index) for v, op in enumerate(self.operators) for r in op.results}
        return found

    @cached_property
    def reads(self) -> tuple[tuple[Read, ...], ...]:
        """The operands of each task, as they were before anything was moved."""
        carried = self.graph.carried()

        def read(operand: SSAValue) -> Read:
            return self._numbers[operand if operand in self._numbers else carried[operand][0]]

        return tuple(tuple(map(read, op.inputs)) for op in self.operators)

    @cached_property
    def states(self) -> tuple[State, ...]:
        """The states of the graph, in its order."""
        carried = self.graph.carried()
        found: list[State] = []
        for op in self.graph.states():
            left, distance = carried[op.output]
            read = self._numbers[left]
            found.append(State(op.state.data, distance, read.subject, read.result))
        return tuple(found)

    def source(self, read: Read, microbatch: int, mesh: Accelerators) -> Argument | Value:
        """What ``microbatch`` reads on a mesh."""
        distance = self.states[read.subject].distance if read.kind == "state" else 0
        if read.kind == "input" or microbatch < distance:
            return Argument(read, microbatch, mesh)
        return self._value(read, microbatch, mesh)

    def _value(self, read: Read, microbatch: int, mesh: Accelerators) -> Value:
        """What is no input, as if there were micro-batches before the first."""
        if read.kind == "value":
            return Value(read.subject, read.result, microbatch, mesh)
        state = self.states[read.subject]
        return Value(state.producer, state.result, microbatch - state.distance, mesh)

    def home(self, value: Value) -> Accelerators:
        """The mesh that makes a value."""
        return self.view.tasks[value.producer].set_of(value.microbatch)

    @cached_property
    def _readers(self) -> dict[Read, list[tuple[int, int]]]:
        """Results of tasks → the tasks that read them, and at which distance."""
        found: dict[Read, list[tuple[int, int]]] = {}
        for v, each in enumerate(self.reads):
            for read in dict.fromkeys(each):
                if read.kind == "state":
                    state = self.states[read.subject]
                    found.setdefault(Read("value", state.producer, state.result), []).append((v, state.distance))
                else:
                    found.setdefault(read, []).append((v, 0))
        return found

    def is_read(self, read: Read) -> bool:
        """Whether anything reads a result, or it outlives its micro-batch."""
        return read in self._readers or read in self._kept

    # --- times ---------------------------------------------------------------------------------

    def _parts(self, ns: Fraction) -> int:
        """A time in parts of a nanosecond that make all times whole."""
        return int(ns * self.view.microbatches)

    def _begin(self, what: int | Move, microbatch: int) -> int:
        return self._parts(self.view.begin(self.view.tasks[what] if isinstance(what, int) else what, microbatch))

    def _end(self, task: int, microbatch: int) -> int:
        return self._begin(task, microbatch) + self.view.tasks[task].time * self.view.microbatches

    def _key(self, task: int, microbatch: int) -> Key:
        return self._begin(task, microbatch), self._rank(task), microbatch, task, 0

    def _rank(self, task: int) -> int:
        """What takes no time comes before what does: it has ended by then."""
        return 2 if self.view.tasks[task].time else 1

    def move(self, value: Value) -> Move | None:
        """The reservation that brings a value to its mesh, the earliest if several do; None where there is none."""
        moves = self._leaving.get((value.producer, value.result), ())
        there = (m for m in moves if m.target_of(value.microbatch) == value.mesh)
        return min(there, key=lambda m: m.landing, default=None)

    def _moved(self, value: Value) -> tuple[Key, int]:
        """Key of the transfer that brings a value to its mesh, and when it is there."""
        move, i = self.move(value), value.microbatch
        moment = ready = self._end(value.producer, i)
        if move is not None:
            moment = self._parts(self.view.landing(move, i))
            ready = moment + move.time * self.view.microbatches
        # What its producer takes no time for cannot come before it.
        late = int(moment == self._begin(value.producer, i))
        return (moment, late, i, value.producer, 1 + value.result, value.mesh[0]), ready

    # --- bodies --------------------------------------------------------------------------------

    @cached_property
    def bodies(self) -> tuple[tuple[Body, ...], ...]:
        """Of each micro-batch, until the copies repeat, its bodies by time."""
        turns = [self._stretches(turn) for turn in range(self.view.rounds)]

        def place(stretch: tuple[int, ...]) -> tuple[object, ...]:
            first = self.view.tasks[stretch[0]]
            return first.stage or 0, first.start, stretch

        number = {s: n for n, s in enumerate(sorted({s for turn in turns for s in turn}, key=place))}
        return tuple(tuple(self._body(s, number[s], i) for s in turn) for i, turn in enumerate(turns))

    def _body(self, stretch: tuple[int, ...], stage: int, turn: int) -> Body:
        made = [Read("value", v, r) for v in stretch for r in range(len(self.operators[v].results))]
        own, members = set(made), set(stretch)
        reads = dict.fromkeys(read for v in stretch for read in self.reads[v] if read not in own)
        read = {r for r in made if any(v not in members for v, _ in self._readers.get(r, ()))}
        results = tuple(r for r in made if r in read or r in self._kept)
        return Body(self.view.tasks[stretch[0]].set_of(turn), stage, stretch, tuple(reads), results)

    @cached_property
    def _kept(self) -> set[Read]:
        """Results that outlive their micro-batch."""
        kept = {Read("value", s.producer, s.result) for s in self.states}
        kept |= {Read("value", v, 0) for u in self.view.updates if u.start is not None for v in u.gradients}
        return kept | {Read("value", o.producer, o.result) for o in self.view.outputs if o.producer is not None}

    def _stretches(self, turn: int) -> list[tuple[int, ...]]:
        """The tasks of each fragment of micro-batch ``turn``."""
        current: dict[Accelerators, list[int]] = {}
        found: list[list[int]] = []
        for v in sorted(range(len(self.view.tasks)), key=lambda v: self._key(v, turn)):
            mesh = self.view.tasks[v].set_of(turn)
            if mesh not in current or self._cut(current[mesh], v, turn, mesh):
                current[mesh] = []
                found.append(current[mesh])
            current[mesh].append(v)
        return [tuple(stretch) for stretch in found]

    def _cut(self, stretch: list[int], v: int, turn: int, mesh: Accelerators) -> bool:
        """Whether something lies between the last task of a stretch and ``v``."""
        if (stretch[-1], v, turn) not in self._followers or (self.halves[stretch[-1]] == "F") != (
            self.halves[v] == "F"
        ):
            return True
        begin, end = self._key(stretch[0], turn), self._end(v, turn)
        for read in self.reads[v]:
            if read.kind != "input" and self.home(value := self._value(read, turn, mesh)) != mesh:
                key, ready = self._moved(value)
                if ready > begin[0] or key > begin:
                    return True
        return any(moment < end for u in stretch for moment in self._departures(u, turn))

    @cached_property
    def _followers(self) -> set[tuple[int, int, int]]:
        """``u, v, turn``: a mesh that ran ``u`` for a micro-batch of that turn then runs ``v`` for the same."""
        rounds = self.view.rounds
        cyclic: dict[Accelerators, list[tuple[int, int, int, int, int, int]]] = {}
        for turn in range(rounds):
            for task in self.view.tasks:
                lag, phase = divmod(self._begin(task.index, turn), rounds * self.view.pattern)
                # In one window the micro-batch is the greater, the smaller its lag.
                entry = phase, self._rank(task.index), turn - rounds * lag, task.index, turn, lag
                cyclic.setdefault(task.set_of(turn), []).append(entry)
        found: set[tuple[int, int, int]] = set()
        for entries in map(sorted, cyclic.values()):
            for place, (*_, v, turn, lag) in enumerate(entries):
                *_, u, before, passed = entries[place - 1]
                if before == turn and lag == passed + (place == 0):
                    found.add((u, v, turn))
        return found

    def _departures(self, u: int, turn: int) -> list[int]:
        """When the results of a task leave for other meshes."""
        home = self.view.tasks[u].set_of(turn)
        found: list[int] = []
        for r in range(len(self.operators[u].results)):
            for v, distance in self._readers.get(Read("value", u, r), ()):
                there = self.view.tasks[v].set_of(turn + distance)
                if there != home:
                    move = self.move(Value(u, r, turn, there))
                    found.append(self._end(u, turn) if move is None else self._begin(move, turn))
        return found

    # --- all of it -----------------------------------------------------------------------------

    @cached_property
    def results(self) -> tuple[Result, ...]:
        """What is left in the end: the outputs of every micro-batch, then what later ones would find in the states."""
        found: list[Result] = []
        for i in range(self.microbatches):
            found += [Result("output", n, i, self._output(n, i)) for n in range(len(self.view.outputs))]
        for n, state in enumerate(self.states):
            read = Read("state", n)
            readers = [v for v, each in enumerate(self.reads) if read in each]
            for i in range(self.microbatches, self.microbatches + state.distance):
                for mesh in dict.fromkeys(self.view.tasks[v].set_of(i) for v in readers):
                    found.append(Result("state", n, i, self.source(read, i, mesh)))
        return tuple(found)

    def _output(self, number: int, microbatch: int) -> Argument | Value:
        """An output where it was computed; an input that is passed through, where it is read first."""
        output = self.view.outputs[number]
        if output.producer is not None:
            mesh = self.view.tasks[output.producer].set_of(microbatch)
            return Value(output.producer, output.result, microbatch, mesh)
        read = self._numbers[self.graph.outputs.operands[number]]
        readers = self._readers.get(read)
        mesh = self.view.tasks[readers[0][0]].set_of(microbatch) if readers else self.meshes[0]
        return Argument(read, microbatch, mesh)

    @cached_property
    def _sources(self) -> dict[Argument | Value, None]:
        """Everything that is read on any mesh, or left."""
        found = dict.fromkeys(
            self.source(read, i, body.mesh)
            for i in range(self.microbatches)
            for body in self.bodies[i % self.view.rounds]
            for read in body.reads
        )
        found |= dict.fromkeys(source for closing in self.closings for source in closing.sources)
        return found | dict.fromkeys(result.source for result in self.results)

    @cached_property
    def closings(self) -> tuple[Closing, ...]:
        """The steps of the optimizer, if the schedule has any."""
        updates = [u for u in self.view.updates if u.start is not None]
        return tuple(
            Closing(
                u.index, u.place, tuple(Value(v, 0, i, u.place) for v in u.gradients for i in range(self.microbatches))
            )
            for u in updates
        )

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """What is given in the beginning: the inputs of every micro-batch, then what the first find in the states."""

        def order(a: Argument) -> tuple[object, ...]:
            late = a.read.kind == "state"
            return late, *((a.read.subject, a.microbatch) if late else (a.microbatch, a.read.subject)), a.mesh

        return tuple(sorted((a for a in self._sources if isinstance(a, Argument)), key=order))

    @cached_property
    def steps(self) -> tuple[Fragment | Closing | Value, ...]:
        """All fragments and transfers in their order; a transfer is the value on the mesh that receives it."""
        keyed: list[tuple[Key, Fragment | Closing | Value]] = []
        for closing in self.closings:
            start = self.view.updates[closing.update].start
            assert start is not None
            keyed.append(((start * self.view.microbatches, 3, self.microbatches, closing.update, 0), closing))
        for i in range(self.microbatches):
            keyed += [(self._key(b.tasks[0], i), Fragment(b, i)) for b in self.bodies[i % self.view.rounds]]
        for value in self._sources:
            if isinstance(value, Value) and self.home(value) != value.mesh:
                keyed.append((self._moved(value)[0], value))
        return tuple(step for _, step in sorted(keyed, key=lambda entry: entry[0]))
