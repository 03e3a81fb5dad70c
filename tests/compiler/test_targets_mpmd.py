"""MPMD text: read and verified by jaxlib's own dialect, evaluated, replayed, and lowered to IFRT, in our order.

What the text should say is computed here from the graph and the view of the schedule, with no code of the emitter.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdsl.dialects.builtin import IntAttr, ModuleOp, StringAttr
from xdsl.ir import SSAValue

from compiler.ir_input import parse_ir
from compiler.output import print_ir
from compiler.pipeline import Options, new_context, run_pipeline
from compiler.targets.mpmd import emit
from compiler.view import Accelerators, ScheduleView, view_of
from dialects.diagnostics import TaktError
from dialects.gradients import OptimizerStepOp
from dialects.links import LinkAttr
from dialects.operators import OperatorOp
from dialects.structure import InputOp, NextOp, OutputOp, StateOp, find_graph
from frontend import Source, load

EXAMPLES = Path(__file__).parent.parent.parent / "examples"

# --- schedules -----------------------------------------------------------------------------------

BOARD = """import "takt/accelerators.takt"
platform board {
  accelerators = 8 of pebble
  link board { latency = 5 us  bandwidth = 1 GB/s }
}
"""

UNEQUAL = """model unequal {
  input x: tensor<64, i8>
  input y: tensor<8, i8>
  a = op(x) time {2: 40us} params 4 KiB output 1 KiB
  b = op(a) time {2: 30us} output 1 KiB
  s = op(b, y) time {1: 60us} output 1 KiB
  d = op(s, a, y) time {1: 50us} output 1 KiB
  e = op(d, x) time {4: 100us} output 4 KiB
  output d, e, y
}
"""
"""Allotments of 2, 1 and 4; a is read two operators later, x and y on two meshes, y leaves as it came."""

STATES = """model states {
  input x: tensor<64, i8>
  state near: tensor<100, i8> distance 1
  state far: tensor<200, i8> distance 3
  a = op(x, near) time {1: 40us} output 100 B
  b = op(a, far, near) time {2: 70us} output 300 B
  c = op(b) time {1: 50us} output 200 B
  next near = a
  next far = c
  output c
}
"""
"""A state read where it is made and elsewhere, and one that closes a circle of three meshes."""

CHUNKS = """model chunks {
  input x: tensor<64, i8>
  a = op(x) time {1: 40us} output 64 B
  b = op(a) time {1: 50us} output 64 B
  c = op(b) time {1: 40us} output 64 B
  d = op(c, a) time {1: 60us} output 64 B
  e = op(d) time {1: 40us} output 64 B
  f = op(e) time {1: 40us} output 64 B
  g = op(f, c) time {1: 50us} output 64 B
  h = op(g) time {1: 40us} output 64 B
  output h
}
"""

TRAINED = """model trained {
  input x: tensor<8 x 16, f32>
  input y: tensor<8 x 16, f32>
  a = linear(x, features = 32)
  b = gelu(a)
  c = linear(b, features = 16)
  g = gelu(c)
  d = add(g, x)
  e = linear(d, features = 16)
  l = mse_loss(e, y)
  output l
}
"""

COPIES = """model copies {
  input x: tensor<64, i8>
  state s: tensor<64, i8> distance 1
  a = op(x, s) time {1: 20us} output 64 B
  b = op(a) time {2: 70001ns} output 64 B
  c = op(b, x) time {1: 20us} output 64 B
  next s = a
  output b, c
}
"""


def of_text(text: str, level: str = "scheduled", **options: Any) -> ModuleOp:
    return run_pipeline(new_context(), load(Source("m.takt", text)), to=level, options=Options(**options))


def buffered(text: str) -> str:
    return BOARD.replace("8 of pebble", "8 of pebble  transfers = buffered") + text


def four(text: str) -> str:
    return BOARD.replace("8 of", "4 of") + text


def of_example(name: str, level: str = "scheduled", **parameters: int) -> ModuleOp:
    """An example on six accelerators, a stage on each."""
    source, board = (Source.read(str(EXAMPLES / f"{n}.takt")) for n in (name, "tiny_board"))
    module = load(source, platform=board, overrides={k: str(v) for k, v in parameters.items()})
    return run_pipeline(new_context(), module, to=level, options=Options(stages=6))


SCHEDULES: dict[str, tuple[Callable[[], ModuleOp], int]] = {
    "unequal": (lambda: of_text(BOARD + UNEQUAL, stages=3), 5),
    "buffered": (lambda: of_text(buffered(CHUNKS), stages=4), 9),
    "no-links": (lambda: of_text(re.sub("link.*", "", BOARD) + UNEQUAL, stages=3), 4),
    "states": (lambda: of_text(BOARD + STATES, stages=3), 7),
    "fewer-than-a-distance": (lambda: of_text(BOARD + STATES, stages=3), 2),
    "communicating": (lambda: of_text(BOARD + STATES, "communicating", stages=3), 7),
    "interleaved": (lambda: of_text(four(CHUNKS), plan="interleaved", chunks=2), 9),
    "v": (lambda: of_text(four(CHUNKS), plan="v", chunks=2), 9),
    "copies": (lambda: of_text(four(COPIES).replace("4 of", "6 of"), plan="replicated", copies=2), 7),
    "training": (lambda: of_text(four(TRAINED), stages=4, allotments="stage", training="adam"), 5),
    "encoder_decoder": (lambda: of_example("encoder_decoder", encoder_layers=1, decoder_layers=1), 8),
    "llama3_8b_decode": (lambda: of_example("llama3_8b_decode", layers=2, groups=4), 9),
}


@cache
def scheduled(name: str) -> ModuleOp:
    return SCHEDULES[name][0]()


every_schedule = pytest.mark.parametrize("name", SCHEDULES)


# --- what the text should say --------------------------------------------------------------------

Term = int
"""A symbolic value: equal ones have equal numbers."""


class Terms:
    """What is applied to what; a table keeps terms small that share a lot."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[Any, ...], Term] = {}

    def __call__(self, *what: Any) -> Term:
        return self.numbers.setdefault(what, len(self.numbers))


def evaluate(module: ModuleOp, microbatches: int, terms: Terms) -> list[tuple[str, int, Term]]:
    """Outputs by name and micro-batch, then what further ones find in the states that operators read."""
    graph, view = find_graph(module), view_of(module)
    assert graph is not None
    left: dict[str, list[Term]] = {op.state.data: [] for op in graph.states()}
    results: list[tuple[str, int, Term]] = []

    def found(op: StateOp, i: int) -> Term:
        d = op.distance.value.data
        return terms("state", op.state.data, i) if i < d else left[op.state.data][i - d]

    for i in range(microbatches):
        env: dict[SSAValue, Term] = {}
        numbers = iter(range(len(view.tasks)))
        for op in graph.body.block.ops:
            match op:
                case InputOp():
                    env[op.output] = terms("input", op.output.name_hint, i)
                case StateOp():
                    env[op.output] = found(op, i)
                case NextOp():
                    left[op.state.data].append(env[op.left])
                case OutputOp():
                    results += [(o.name, i, env[v]) for o, v in zip(view.outputs, op.operands, strict=True)]
                case OptimizerStepOp():
                    pass
                case OperatorOp():
                    name, read = view.tasks[next(numbers)].name, tuple(env[v] for v in op.operands)
                    env |= {r: terms(name, r.index, *read) for r in op.results}
                case _ if hasattr(op, "arrived"):
                    env[op.arrived] = env[op.moved]
                case _:
                    pass
    for op in graph.states():
        meshes = {view.tasks[v].copies for v, o in enumerate(graph.operators()) if op.output in o.operands}
        for i in range(microbatches, microbatches + op.distance.value.data):
            results += [(op.state.data, i, found(op, i))] * len({c[i % len(c)] for c in meshes})
    return results


def order_on(view: ScheduleView, mesh: Accelerators, microbatches: int) -> list[tuple[int, str]]:
    """What a mesh runs, as scheduled: micro-batch and operator."""
    all_of_it = [(t.start + i * view.period, t.time > 0, i, t.index) for t in view.tasks for i in range(microbatches)]
    return [(i, view.tasks[v].name) for *_, i, v in sorted(all_of_it) if view.tasks[v].set_of(i) == mesh]


def mesh_of(name: str) -> Accelerators:
    """Accelerators of a mesh by its name."""
    ranges = [part.split(":") for part in name.removeprefix("acc").split(",")]
    return tuple(p for low, high in ranges for p in range(int(low), int(high)))


# --- reading the text with jaxlib ----------------------------------------------------------------


@pytest.fixture(scope="module")
def context() -> Any:
    """A context of jaxlib that knows the dialect and those it builds on."""
    ir = pytest.importorskip("jaxlib.mlir.ir")
    extension = pytest.importorskip("jaxlib.mlir._mlir_libs._jax_mlir_ext")
    dialects = [pytest.importorskip(f"jaxlib.mlir.dialects.{name}") for name in ("mpmd", "sdy", "stablehlo")]
    context, registry = ir.Context(), ir.DialectRegistry()
    extension.register_dialects(registry)
    context.append_dialect_registry(registry)
    context.load_all_available_dialects()
    for dialect in dialects:
        dialect.register_dialect(context)
    return context


def parsed(context: Any, text: str) -> Any:
    """The module, verified."""
    from jaxlib.mlir import ir

    with context:
        module = ir.Module.parse(text)
        assert module.operation.verify()
    return module


@dataclass
class Step:
    """A fragment or a transfer: meshes that take part, operands and results as values of jaxlib."""

    kind: str
    meshes: tuple[str, ...]
    op: Any
    microbatch: int = -1
    operators: tuple[str, ...] = ()
    terms: list[Term] = field(default_factory=list)


def text_of(attribute: Any) -> str:
    return str(attribute).strip('"')


def mesh_in(type_: Any) -> str:
    found = re.match(r'!mpmd.mesh_tensor<"([^"]*)"', str(type_))
    assert found is not None
    return found[1]


def steps_of(main: Any) -> list[Step]:
    """The program, but for its end."""
    found: list[Step] = []
    for op in list(main.regions[0].blocks[0].operations)[:-1]:
        if op.operation.name == "mpmd.transfer":
            ends = mesh_in(op.operands[0].type), mesh_in(op.results[0].type)
            found.append(Step("transfer", ends, op))
        else:
            assert op.operation.name == "mpmd.fragment"
            mesh, counter = text_of(op.attributes["mesh_name"]), int(str(op.attributes["call_counter"]).split()[0])
            names = tuple(text_of(o.attributes["takt.name"]) for o in list(op.regions[0].blocks[0].operations)[:-1])
            found.append(Step("fragment", (mesh,), op, counter, names))
    return found


def main_of(module: Any) -> Any:
    return next(op for op in module.body.operations if text_of(op.attributes["sym_name"]) == "main")


def labels(main: Any, which: str) -> Iterator[tuple[str, str, int]]:
    """Kind, name and micro-batch of each argument or result."""
    for attributes in main.attributes[which]:
        given = {a.name: a.attr for a in attributes}
        kind = next(k for k in ("input", "state", "output") if f"takt.{k}" in given)
        yield kind, text_of(given[f"takt.{kind}"]), int(str(given["takt.microbatch"]).split()[0])


def rendezvous(main: Any, steps: list[Step], terms: Terms) -> list[Term]:
    """Every mesh works through its own list, both ends of a transfer wait for each other; returns what is returned."""
    lists: dict[str, deque[Step]] = {}
    for step in steps:
        for mesh in step.meshes:
            lists.setdefault(mesh, deque()).append(step)
    env = dict(zip(main.regions[0].blocks[0].arguments, [terms(*x) for x in labels(main, "arg_attrs")], strict=True))
    moved = True
    while moved:
        moved = False
        for mine in lists.values():
            while mine and all(lists[m][0] is mine[0] for m in mine[0].meshes):
                step = mine[0]
                for m in step.meshes:
                    lists[m].popleft()
                # A KeyError here would be a value that was not there when its turn came.
                read = [env[v] for v in step.op.operands]
                env |= zip(step.op.results, run(step, read, terms), strict=True)
                moved = True
    assert not any(lists.values()), "meshes wait for each other in a circle"
    return [env[v] for v in list(main.regions[0].blocks[0].operations)[-1].operands]


def run(step: Step, read: list[Term], terms: Terms) -> list[Term]:
    if step.kind == "transfer":
        return read
    block = step.op.regions[0].blocks[0]
    env = dict(zip(block.arguments, read, strict=True))
    *calls, end = block.operations
    for call in calls:
        given = tuple(env[v] for v in call.operands)
        env |= {r: terms(text_of(call.attributes["takt.name"]), n, *given) for n, r in enumerate(call.results)}
    return [env[v] for v in end.operands]


def moment(step: Step) -> int:
    """When a fragment begins, or a transfer lands that is reserved; in whole ns."""
    given = step.op.attributes
    name = next((n for n in ("takt.landing", "takt.start") if n in given), None)
    return -1 if name is None else int(str(given[name]).split()[0])


def check_cuts(view: ScheduleView, fragments: list[Step]) -> None:
    """What a fragment reads is there when it begins, what it makes leaves when it ends; nothing else cuts it."""
    task = {t.name: t for t in view.tasks}
    period = view.period

    def start(fragment: Step, number: int = 0) -> Any:
        return task[fragment.operators[number]].start + fragment.microbatch * period

    def end(fragment: Step, number: int = 0) -> Any:
        return task[fragment.operators[number]].end + fragment.microbatch * period

    def arrivals(fragment: Step) -> Iterator[Any]:
        for edge in view.edges:
            if view.tasks[edge.consumer].name in fragment.operators:
                i, producer = fragment.microbatch - edge.distance, view.tasks[edge.producer]
                if producer.set_of(i) != mesh_of(fragment.meshes[0]):
                    for r in edge.results:
                        move = view.carriers[edge].get(r)
                        yield (producer.end if move is None else move.ready) + i * period

    def departures(fragment: Step) -> Iterator[Any]:
        for edge in view.edges:
            producer = view.tasks[edge.producer]
            if producer.name in fragment.operators:
                i = fragment.microbatch
                if view.tasks[edge.consumer].set_of(i + edge.distance) != mesh_of(fragment.meshes[0]):
                    for r in edge.results:
                        move = view.carriers[edge].get(r)
                        yield (producer.end if move is None else move.start) + i * period

    before: dict[str, Step] = {}
    for f in fragments:
        assert all(t <= start(f) for t in arrivals(f))
        assert all(t >= end(f, -1) for t in departures(f))
        last = before.get(f.meshes[0])
        if last is not None and last.microbatch == f.microbatch:
            later = any(t < end(f) for t in departures(last)) or any(t > start(last) for t in arrivals(f))
            later = later or ("_gradient" in task[f.operators[0]].kind) > ("_gradient" in task[last.operators[0]].kind)
            assert later or any(
                start(last) < t.start + i * period < start(f)
                for t in view.tasks
                for i in range(-view.in_flight - 9, 99)
                if i != f.microbatch and t.set_of(i) == mesh_of(f.meshes[0])
            )
        before[f.meshes[0]] = f


@pytest.mark.mlir
@every_schedule
def test_jaxlib_reads_what_the_schedule_says(context: Any, name: str):
    check_text(context, scheduled(name), SCHEDULES[name][1])


def check_text(context: Any, module: ModuleOp, microbatches: int) -> None:
    view, terms = view_of(module), Terms()
    read = parsed(context, emit(module, microbatches=microbatches))
    main = main_of(read)
    steps = steps_of(main)
    # A rendezvous replay ends, and everything that leaves is what the graph computes.
    left = rendezvous(main, steps, terms)
    said = [(n, i, term) for (_, n, i), term in zip(labels(main, "res_attrs"), left, strict=True)]
    assert said == evaluate(module, microbatches, terms)
    # Each mesh runs its operators in the order of the schedule.
    meshes = {c for t in view.tasks for c in t.copies}
    assert {mesh_of(m) for step in steps for m in step.meshes} == meshes
    for mesh in meshes:
        here = [s for s in steps if s.kind == "fragment" and mesh_of(s.meshes[0]) == mesh]
        assert [(s.microbatch, op) for s in here for op in s.operators] == order_on(view, mesh, microbatches)
    check_cuts(view, [s for s in steps if s.kind == "fragment"])
    # All of it is in the order of the schedule, transfers through a buffer where they land.
    moments = [m for s in steps if (m := moment(s)) >= 0]
    assert moments == sorted(moments)
    # What MPMD calls a stage is unique on a mesh for a micro-batch: its compiler asks for that.
    keys = [(s.meshes, str(s.op.attributes["stage_id"]), s.microbatch) for s in steps if s.kind == "fragment"]
    assert len(set(keys)) == len(keys)


@pytest.mark.mlir
@pytest.mark.parametrize("start", [10, 15, 30, 45])
def test_other_micro_batches_cut_a_fragment(context: Any, operator: Any, build: Any, start: int):
    # Micro-batches begin every 20 ns; b is the next that the mesh runs after a, unless it starts a period later.
    a = operator("a", ["x"], 5, [[0]], 7, results=[8])
    b = operator("b", ["a"], 5, [[0]], 7 + start, results=[8])
    c = operator("c", ["b"], 9, [[1]], 12 + start, results=[0])
    module = build([a, b, c], pattern=20, accelerators=2, inputs={"x": 8}, outputs=["c"])
    check_text(context, module, 6)
    assert emit(module, microbatches=6).count("mpmd.fragment<") == (12 if start < 20 else 18)


@pytest.mark.mlir
@pytest.mark.parametrize(("leaves", "fragments"), [(17, 3), (20, 2)])
def test_a_value_that_leaves_in_the_course_of_an_operator_cuts_before_it(
    context: Any, operator: Any, build: Any, leaves: int, fragments: int
):
    # The link has time for a only when b has begun: a leaves then, and not when b has ended at 20.
    a = operator("a", ["x"], 10, [[0]], 0, results=[8])
    operators = [a, operator("b", ["a"], 10, [[0]], 10), operator("c", ["a"], 5, [[1]], leaves + 2)]
    links = [LinkAttr(StringAttr("all"), IntAttr(2), IntAttr(0), IntAttr(4 * 10**9))]
    rest: dict[str, Any] = {"inputs": {"x": 8}, "links": links, "moves": [("a", [[1]], "all", leaves, 2)]}
    module = build(operators, pattern=20, accelerators=2, outputs=["c"], **rest)
    check_text(context, module, 4)
    assert emit(module, microbatches=1).count("mpmd.fragment<") == fragments


@pytest.mark.mlir
def test_what_takes_no_time_comes_first_of_what_begins_at_one_moment(context: Any, operator: Any, build: Any):
    # b begins at 0, too: it does not wait for a.
    operators = [
        operator("a", ["x"], 30, [[0]], 0, results=[8]),
        operator("z", ["x"], 0, [[0]], 0, results=[8]),
        operator("b", ["z"], 30, [[1]], 0, results=[8]),
    ]
    module = build(operators, pattern=30, accelerators=2, inputs={"x": 8}, outputs=["a", "b"])
    check_text(context, module, 3)
    read = parsed(context, emit(module, microbatches=1))
    names = [x.operators for x in steps_of(main_of(read)) if x.kind == "fragment"]
    assert names == [("z",), ("a",), ("b",)]


@pytest.mark.mlir
def test_half_nanoseconds_and_transfers_that_land_later(context: Any, operator: Any, build: Any):
    # Micro-batches begin every 17.5 ns, b takes 30 on two copies; a leaves at 10 ns, and lands at 30.
    operators = [
        operator("a", ["x"], 10, [[0]], 0, results=[8]),
        operator("d", ["x"], 2, [[0]], 14),
        operator("b", ["a"], 30, [[1], [2]], 32, results=[8]),
    ]
    module = build(
        operators,
        pattern=35,
        pattern_of=2,
        accelerators=4,
        inputs={"x": 8},
        outputs=["b"],
        links=[LinkAttr(StringAttr("all"), IntAttr(4), IntAttr(2), IntAttr(10**12))],
        transfers="buffered",
        moves=[("a", [[1], [2]], "all", 10, 2, 30)],
    )
    check_text(context, module, 6)
    assert "takt.start = 27 : i64, takt.time = 2 : i64, takt.landing = 47" in emit(module, microbatches=2)


@pytest.mark.mlir
@every_schedule
def test_calls_share_functions(context: Any, name: str):
    module = scheduled(name)
    calls = emit(module, microbatches=6, form="calls")
    parsed(context, calls)
    functions = re.findall(r"func.func private @(\S+?)\(", calls)
    called = re.findall(r"mpmd.fragment_call<.*?> @(\S+?)\(", calls)
    assert set(called) == set(functions)
    assert len(called) == emit(module, microbatches=6).count("mpmd.fragment<")
    # One a body: the operators of a function, on its mesh, are those of no other.
    bodies = [re.findall(r'takt.name = "(.*?)"', part) for part in calls.split("func.func private")[1:]]
    rounds = view_of(module).rounds
    assert len({tuple(b) for b in bodies}) * rounds >= len(bodies) == len(functions)


# --- mutants -------------------------------------------------------------------------------------

MUTANTS: dict[str, tuple[str, str, str, str]] = {
    "mesh of a fragment": ("fragments", r'fragment<mesh="acc2:3"', 'fragment<mesh="acc0:2"', "mesh name of the"),
    "no such mesh": ("fragments", r'<"acc2:3": <\["accelerator"=1\]>>, ', "", "mesh with name"),
    "missing transfer": ("fragments", r"%b_0.to.2(?=[,)])", "%b_0", "expects different type"),
    "transfer of another shape": ("fragments", r"(= mpmd.transfer .*-> .*tensor<)1024", r"\g<1>512", "different"),
    "transfer that comes too late": (
        "fragments",
        r"( *%a_0.to.2 = .*\n)([\s\S]*?)(?= *%d_0.to.3)",
        r"\2\1",
        "dominate",
    ),
    "result of another operator": ("fragments", r"mpmd.return %e : tensor<4096xi8>", "mpmd.return", "number of"),
    "size of a mesh": (
        "calls",
        r'mesh_shape = #sdy.mesh<\["accelerator"=2',
        'mesh_shape = #sdy.mesh<["accelerator"=3',
        "mesh",
    ),
    "no such function": ("calls", r"private @stage.0", "private @stage.9", "valid function"),
}


@pytest.mark.mlir
@pytest.mark.parametrize("mutant", MUTANTS)
def test_jaxlib_refuses_mutants(context: Any, mutant: str):
    from jaxlib.mlir import ir

    form, old, new, says = MUTANTS[mutant]
    text = emit(scheduled("unequal"), microbatches=2, form=form)  # pyright: ignore[reportArgumentType]
    parsed(context, text)
    changed = re.sub(old, new, text, count=1)
    assert changed != text
    with pytest.raises(ir.MLIRError, match=says):
        parsed(context, changed)


# --- IFRT ----------------------------------------------------------------------------------------

LOWER = """
import sys
import jax
from jaxlib.mlir import ir
from jaxlib.mlir._mlir_libs import _jax_mlir_ext
from jaxlib.mlir.dialects import mpmd, sdy, stablehlo

# In a process of its own: the module of the lowering looks for its siblings where they are not (jaxlib 0.10).
for name, module in list(sys.modules.items()):
    if name == "jaxlib" or name.startswith("jaxlib."):
        sys.modules["jax." + name] = module
from jaxlib import _sdy_mpmd

context, registry = ir.Context(), ir.DialectRegistry()
_jax_mlir_ext.register_dialects(registry)
context.append_dialect_registry(registry)
context.load_all_available_dialects()
for dialect in (mpmd, sdy, stablehlo):
    dialect.register_dialect(context)
with context:
    for text in sys.stdin.read().split("// -----"):
        module = ir.Module.parse(text)
        _sdy_mpmd.lower_to_ifrt(module)
        print(module, "// -----", sep="\\n")
"""

CALL = re.compile(r"%(\w+)(?::\d+)?, %(\w+) = ifrt.Call @(\S+)::@main\((.*?)\)(?: after %(\w+))? on devices \[(.*?)\]")
COPY = re.compile(r"%(\w+)(?::\d+)?, %\w+ = ifrt.(?:Reshard|CopyArrays)\((.*?)\)")


@pytest.mark.mlir
def test_lowered_to_ifrt_control_dependences_are_our_order():
    pytest.importorskip("jaxlib")
    pytest.importorskip("jax")
    names = ("v", "unequal", "interleaved")
    text = "// -----\n".join(emit(scheduled(name), microbatches=6, form="calls") for name in names)
    done = subprocess.run([sys.executable, "-c", LOWER], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name, lowered in zip(names, done.stdout.split("// -----")[:-1], strict=True):
        check_control_dependences(view_of(scheduled(name)), lowered, 6)


def check_control_dependences(view: ScheduleView, lowered: str, microbatches: int) -> None:
    main, *bodies = lowered.split("\n  module @")
    operators = {b.split(" ", 1)[0]: re.findall(r'takt.name = "(.*?)"', b) for b in bodies}
    # The micro-batch of every value: that of what it is computed from.
    of = {f"arg{n}": int(i) for n, i in re.findall(r"%arg(\d+): [^{]*{[^}]*takt.microbatch = (\d+)", main)}
    after: dict[str, dict[str | None, tuple[str, str, int]]] = {}
    for line in main.splitlines():
        if copy := COPY.search(line):
            # Transfers between two meshes may be joined.
            for n, value in enumerate(re.findall(r"%([\w#]+)", copy[2])):
                of[f"{copy[1]}#{n}"] = of[value]
                of.setdefault(copy[1], of[value])
        elif call := CALL.search(line):
            value, control, body, read, before, devices = call.groups()
            (i,) = {of[v] for v in re.findall(r"%([\w#]+)", read)}
            of |= dict.fromkeys([value, *(f"{value}#{n}" for n in range(9))], i)
            assert before not in after.setdefault(devices, {})
            after[devices][before] = control, body, i
    # Devices are numbered through the meshes in their order, and each mesh has one chain of calls.
    meshes = sorted({c for t in view.tasks for c in t.copies})
    accelerators = [p for mesh in meshes for p in mesh]
    assert {tuple(accelerators[int(d)] for d in devices.split(", ")) for devices in after} == set(meshes)
    for devices, follows in after.items():
        order: list[tuple[int, str]] = []
        control: str | None = None
        while control in follows:
            control, body, i = follows.pop(control)
            order += [(i, name) for name in operators[body]]
        assert not follows
        mesh = tuple(accelerators[int(d)] for d in devices.split(", "))
        assert order == order_on(view, mesh, microbatches)


# --- the text ------------------------------------------------------------------------------------


def test_the_example_of_the_page_is_what_is_written():
    model, page = ((EXAMPLES.parent / "docs" / name).read_text(encoding="utf-8") for name in ("ir.md", "outputs.md"))
    module = of_text(re.findall(r"```takt\n(.*?)```", model, re.DOTALL)[0], stages=2)
    text = emit(module, microbatches=1)
    assert re.findall(r"```mlir\n(module @mlp.*?)```", page, re.DOTALL) == [text]
    (graph,) = re.findall(r"```mlir\n(takt.graph @mlp scheduled.*?)```", model, re.DOTALL)
    assert graph in re.sub("^  ", "", print_ir(module), flags=re.MULTILINE)


def test_micro_batches_fill_run_steadily_and_drain():
    module = scheduled("unequal")
    text = emit(module)
    assert max(int(i) for i in re.findall(r"call_counter = (\d+)", text)) == 3 * view_of(module).in_flight - 1
    assert emit(module) == text


def test_each_reserved_transfer_is_one_for_each_micro_batch():
    module = scheduled("encoder_decoder")
    view, text = view_of(module), emit(module, microbatches=3)
    assert text.count("mpmd.transfer") == 3 * len(view.moves)
    for move in view.moves:
        for i in range(3):
            start = move.start + i * view.pattern // view.microbatches
            assert f"takt.start = {start} : i64, takt.time = {move.time} : i64}} %" in text


# --- refusals ------------------------------------------------------------------------------------


def test_overlapping_sets_name_the_operator_and_the_nearest_option(operator: Any, build: Any):
    a = operator("a", [], 10, [[0, 1]], 0, stage=0)
    b = operator("b", ["a"], 10, [[0]], 10, stage=0)
    c = operator("c", ["b"], 10, [[2]], 20, stage=1)
    module = build([a, b, c], pattern=30, accelerators=4, stages=[[0, 1], [2, 3]])
    with pytest.raises(TaktError) as refused:
        emit(module)
    (found,) = refused.value.diagnostics
    assert "'b' runs on accelerators 0:1, and 'a' on 0:2" in found.message
    assert found.hint is not None
    assert found.hint.startswith("--allotments stage ")


@pytest.mark.parametrize("plan", ["pushed", "shared", "laminar"])
def test_plans_that_cannot_fill_stages_are_refused(operator: Any, build: Any, plan: str):
    a = operator("a", [], 10, [[0, 1]], 0, stage=0)
    b = operator("b", ["a"], 10, [[1]], 10, stage=0)
    c = operator("c", ["b"], 10, [[2]], 20, stage=1)
    module = build([a, b, c], pattern=30, accelerators=4, stages=[[0, 1], [2]])
    text = str(module).replace('plan "stages"', f'plan "{plan}"')
    with pytest.raises(TaktError) as refused:
        emit(parse_ir(new_context(), text, "m.mlir"))
    (found,) = refused.value.diagnostics
    assert "'b' runs on accelerators 1:2, and 'a' on 0:2" in found.message
    assert found.hint is not None
    assert found.hint.startswith("--plan stages --allotments stage gives")


def test_copies_that_overlap_each_other_are_refused(operator: Any, build: Any):
    a = operator("a", [], 10, [[0, 1], [1, 2]], 0)
    with pytest.raises(TaktError, match="'a' runs on accelerators 1:3, and 'a' on 0:2"):
        emit(build([a], pattern=30, pattern_of=2, accelerators=4))


def test_the_tool_says_where_and_exits_with_1(taktc: Any, examples: Path):
    result = taktc(examples / "research_dag.takt", "--platform", examples / "tiny_board.takt", "--emit", "mpmd")
    assert (result.code, result.out) == (1, "")
    assert "research_dag.takt:22:3: error: 'f' runs on accelerators" in result.err


def test_numbers_of_micro_batches_that_make_no_sense_are_refused():
    with pytest.raises(TaktError, match="at least 1"):
        emit(scheduled("unequal"), microbatches=0)
    with pytest.raises(TaktError, match="more than 1,000,000") as refused:
        emit(scheduled("unequal"), microbatches=10**9)
    assert "form=calls" in (refused.value.diagnostics[0].hint or "")


@pytest.mark.mlir
def test_names_of_all_alphabets(context: Any, operator: Any, build: Any):
    names = ["größe", "gr-ße", "größe.0", "x_1"]
    operators = [operator(n, names[v - 1 : v] if v else [], 10, [[v]], 10 * v) for v, n in enumerate(names)]
    text = emit(build(operators, pattern=10, accelerators=4, outputs=names), microbatches=2)
    assert r'takt.name = "gr\C3\B6\C3\9Fe"' in text
    parsed(context, text)


# --- training ------------------------------------------------------------------------------------


def test_backward_fragments_are_transposed_once():
    """A fragment is all forward or all backward, and says so by its transpose count and its half."""
    text = emit(scheduled("training"), microbatches=2)
    fragments = re.findall(r"mpmd\.fragment<.*?\n    \} :", text, re.DOTALL)
    assert len(fragments) >= 6
    halves: set[str] = set()
    for fragment in fragments:
        kinds = set(re.findall(r"custom_call @takt\.(\w+)", fragment))
        backward = kinds & {"input_gradient", "weight_gradient"}
        assert not backward or kinds <= {"input_gradient", "weight_gradient", "add"}
        half = re.search(r'takt\.half = "(.)"', fragment)
        assert half is not None
        assert bool(backward) == ("(1)]" in fragment.split("{")[0]) == (half[1] != "F")
        halves.add(half[1])
    assert {"F", "B"} <= halves
    assert "@takt.weight_gradient" in text
    assert 'backend_config = {of = "linear", features = 16 : i64' in text


def step_of(order: str) -> ModuleOp:
    options = {"training": "adam", "microbatches": 3, "stages": 4, "order": order}
    return of_text(four(TRAINED), **options)


@pytest.mark.mlir
@pytest.mark.parametrize("form", ["fragments", "calls"])
@pytest.mark.parametrize("order", ["1f1b", "zb-h1"])
def test_a_step_is_read_by_jaxlib(context: Any, order: str, form: Any) -> None:
    """All micro-batches of the step, then what the optimizer does; fragments of a mesh begin as scheduled, in order."""
    module = step_of(order)
    view, text = view_of(module), emit(module, form=form)
    read = parsed(context, text)
    steps = [op for op in read.body.operations[0].regions[0].blocks[0] if "mpmd.fragment" in op.operation.name]
    assert len([op for op in steps if "call_counter" not in op.attributes]) == len(view.updates) == 3
    begins: dict[str, list[int]] = {}
    for op in steps:
        begins.setdefault(text_of(op.attributes["mesh_name"]), []).append(
            int(str(op.attributes["takt.start"]).split()[0])
        )
    assert all(starts == sorted(starts) for starts in begins.values())
    counters = [int(str(op.attributes["call_counter"]).split()[0]) for op in steps if "call_counter" in op.attributes]
    assert set(counters) == {0, 1, 2}
    first = {t.name: [int(view.begin(t, i)) for i in range(3)] for t in view.tasks}
    assert all(any(start in of for of in first.values()) for starts in begins.values() for start in starts[:-3])
