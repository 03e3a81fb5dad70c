"""IR text: printed, read and printed again it is the same, in both forms; malformed text gets a place."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import FileLineColLoc, IntAttr, IntegerAttr, ModuleOp, StringAttr, TensorType, bf16, i8, i64
from xdsl.ir import Operation, SSAValue
from xdsl.utils.exceptions import ParseError, VerifyException

from dialects.attributes import BlockAttr, CostAttr, CostEntry, ScheduleAttr, SlotAttr, ints
from dialects.levels import check_level
from dialects.links import TOPOLOGIES, LinkAttr
from dialects.measured import COLLECTIVES, MeasuredAttr
from dialects.operators import OPERATORS, AddOp, GeluOp, LinearOp, OpaqueOp, OperatorOp, SplitOp
from dialects.structure import LEVELS, TRANSFERS, GraphOp, InputOp, OutputOp, StageOp, find_graph, make_platform

PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking a module of hundreds of choices takes minutes; what is drawn is small enough to read."""

HERE = Path(__file__).parent


# --- files -----------------------------------------------------------------------------------


def test_every_operation_prints_as_it_was_read(text):
    source = "".join(
        line for line in (HERE / "ops.mlir").read_text().splitlines(keepends=True) if not line.startswith("//")
    )
    module = text.parse(source)
    module.verify()
    assert text.show(module) == source
    generic = text.show(module, generic=True)
    assert text.show(text.parse(generic)) == source
    assert text.show(text.parse(generic), generic=True) == generic
    seen = {type(op) for op in find_graph(module).operators()}
    assert seen == set(OPERATORS)


CASES = (HERE / "ops_invalid.mlir").read_text().split("\n\n", 1)[1].split("// -----\n")


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.strip().rsplit(": ", 1)[-1][:40])
def test_malformed_text_gets_a_place_and_a_reason(case: str, text):
    body, expected = case.rsplit("// error: ", 1)
    line, column, message = (part.strip() for part in expected.split(":", 2))
    if body.startswith("module:"):
        source, lines_before = body.removeprefix("module: "), 0
    else:
        source, lines_before = "takt.graph @g model {\n" + body + "takt.output }", 1
    with pytest.raises(ParseError) as error:
        text.parse(source)
    assert message in error.value.msg
    place = error.value.span
    before = source[: place.start]
    assert (before.count("\n") + 1 - lines_before, place.start - before.rfind("\n")) == (int(line), int(column))


def test_defaults_are_left_out_and_come_back(text):
    source = text.parse(
        "takt.graph @g model { %x = takt.input : tensor<4xbf16>\n"
        '%y = takt.linear(%x) {features = 4, split = "column", bias = false} : (tensor<4xbf16>) -> tensor<4xbf16>\n'
        "takt.output }"
    )
    (op,) = find_graph(source).operators()
    assert op.arguments() == {"features": 4, "bias": False, "split": "column"}
    assert "{features = 4} :" in text.show(source)


# --- random modules --------------------------------------------------------------------------

names = st.from_regex(r"[a-z][a-z0-9.]{0,8}", fullmatch=True).filter(lambda n: not n.endswith("."))
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=6)
plain = st.text(st.characters(codec="ascii", exclude_categories=("Cc",)), max_size=6)
"""For xDSL's own string attribute, which it does not read back beyond ASCII."""
small = st.integers(0, 2**40)


@st.composite
def costs(draw: st.DrawFn) -> CostAttr:
    allotments = draw(st.lists(st.integers(1, 64), min_size=1, max_size=4, unique=True))
    return CostAttr.from_table({k: CostEntry(draw(small), draw(small), draw(small), draw(small)) for k in allotments})


@st.composite
def operators(draw: st.DrawFn, available: list[SSAValue], level: int) -> OperatorOp:
    kind = draw(st.sampled_from(["op", "linear", "add", "gelu", "split"]))
    x = draw(st.sampled_from(available))
    block = draw(st.none() | st.builds(BlockAttr, words.map(StringAttr), st.integers(0, 99).map(IntAttr)))
    cost = draw(costs()) if level or kind == "op" else None
    group = draw(st.none() | plain.filter(bool))
    if kind == "op":
        sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3))
        reads = draw(st.lists(st.sampled_from(available), max_size=3))
        types = [TensorType(i8, [n]) for n in sizes]
        op: OperatorOp = OpaqueOp.make(reads, {}, types, draw(small), group=group, block=block, cost=cost)
    else:
        cls, arguments, count = {
            "linear": (
                LinearOp,
                {
                    "features": draw(st.integers(1, 9)),
                    "bias": draw(st.booleans()),
                    "split": draw(st.sampled_from(["row", "column"])),
                },
                1,
            ),
            "add": (AddOp, {}, 2),
            "gelu": (GeluOp, {}, 1),
            "split": (SplitOp, {"parts": 1, "axis": -1}, 1),
        }[kind]
        if kind == "gelu" and x.type.element_type == i8:
            cls = LinearOp
            arguments = {"features": 3}
        filled = {n: arguments.get(n, d) for n, (_, d, _) in cls.signature().items()}
        inferred = cls.infer([x.type] * count, filled)
        op = cls.make([x] * count, arguments, inferred.results, inferred.params, group=group, block=block, cost=cost)
    if level >= 2:
        op.properties["stage"] = IntegerAttr(draw(st.integers(0, 1)), i64)
        if draw(st.booleans()):
            op.properties["shared"] = IntegerAttr(draw(st.integers(0, 1)), i64)
    if level >= 3:
        sets = draw(st.lists(st.sets(st.integers(0, 12), min_size=1, max_size=5), min_size=1, max_size=3))
        op.properties["slot"] = SlotAttr.make([sorted(s) for s in sets], draw(st.integers(-(2**62), 2**62)))
    if draw(st.booleans()):
        op.attributes["note"] = StringAttr(draw(plain))
    return op


class Drawn:
    """A module that hypothesis can show: the repr of an xDSL operation follows every link there is."""

    def __init__(self, module: ModuleOp):
        self.module = module

    def __repr__(self) -> str:
        return "\n" + str(self.module)


@st.composite
def levels(draw: st.DrawFn) -> LinkAttr:
    """A level of 64 accelerators."""
    topology = draw(st.sampled_from(TOPOLOGIES))
    return LinkAttr(
        StringAttr(draw(words)),
        IntAttr(64),
        IntAttr(draw(small)),
        IntAttr(draw(st.integers(1, 2**62))),
        IntAttr(draw(st.sampled_from([1, 1, 4]))),
        StringAttr(topology),
        ints(draw(st.sampled_from([[64], [8, 8], [2, 1, 32]]))) if topology == "torus" else None,
        StringAttr(draw(st.sampled_from(["full", "half"]))),
        StringAttr(draw(st.sampled_from(["exclusive", "shared"]))),
    )


def tables() -> st.SearchStrategy[MeasuredAttr]:
    """Measured times of a collective."""
    table = st.dictionaries(st.integers(1, 2**62), small, min_size=2, max_size=4)
    return st.builds(MeasuredAttr.make, st.sampled_from(COLLECTIVES), st.integers(2, 64), table)


@st.composite
def modules(draw: st.DrawFn, level: int) -> Drawn:
    """Well-formed modules of a level; schedules in them are arbitrary numbers."""
    ops: list[Operation] = []
    if level >= 2:
        ops += [StageOp.make(i, sorted(draw(st.sets(st.integers(0, 20), min_size=1)))) for i in range(2)]
    available: list[SSAValue] = []
    for _ in range(draw(st.integers(1, 2))):
        source = InputOp.create(
            result_types=[TensorType(bf16, draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))]
        )
        ops.append(source)
        available.append(source.output)
    for _ in range(draw(st.integers(1, 6))):
        op = draw(operators(available, level))
        ops.append(op)
        available += op.results
    given_names = draw(st.lists(names, unique=True, min_size=len(available), max_size=len(available)))
    for value, name in zip(available, given_names, strict=True):
        if draw(st.booleans()):
            value.name_hint = name
    ops.append(OutputOp.make(draw(st.lists(st.sampled_from(available), max_size=3))))
    graph = GraphOp.make(draw(names), ops, LEVELS[level])
    if level >= 3:
        numbers = [draw(st.integers(1, 2**62)), draw(st.integers(1, 9)), draw(small)]
        labels = [StringAttr(draw(words)) for _ in range(3)]
        graph.properties["schedule"] = ScheduleAttr(*map(IntAttr, numbers), *labels, IntAttr(draw(st.integers(-9, 9))))
    platform = make_platform(
        "p",
        accelerator=draw(plain),
        accelerators=64,
        memory=draw(st.integers(1, 2**62)),
        bandwidth=draw(st.integers(1, 2**62)),
        launch=draw(small),
        peak={k: draw(st.integers(1, 2**62)) for k in draw(st.sets(st.sampled_from(["bf16", "f32", "i8"])))},
        compute_efficiency=draw(st.floats(1e-9, 1.0)),
        memory_efficiency=draw(st.floats(1e-9, 1.0)),
        links=[draw(levels())],
        transfers=draw(st.sampled_from(TRANSFERS)),
        measured=draw(st.lists(tables(), max_size=2, unique_by=lambda table: table.key)),
    )
    return Drawn(ModuleOp([platform, graph]))


@pytest.mark.parametrize("level", range(len(LEVELS)), ids=LEVELS)
@settings(max_examples=60, phases=PHASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_print_parse_print_is_the_identity(level: int, data: st.DataObject, text):
    module = data.draw(modules(level)).module
    module.verify()
    custom, generic = text.show(module), text.show(module, generic=True)
    for source in (custom, generic):
        again = text.parse(source)
        again.verify()
        assert text.show(again) == custom
        assert text.show(again, generic=True) == generic
        assert module.is_structurally_equivalent(again)


def test_locations_survive(text):
    module = text.parse((HERE / "ops.mlir").read_text())
    first = next(find_graph(module).operators())
    first.location = FileLineColLoc(StringAttr("model.takt"), IntAttr(3), IntAttr(7))
    from io import StringIO

    from xdsl.printer import Printer

    for generic in (False, True):
        out = StringIO()
        Printer(out, print_generic_format=generic, print_debuginfo=True).print_op(module)
        again = next(find_graph(text.parse(out.getvalue())).operators())
        assert again.location == first.location


# --- real MLIR -------------------------------------------------------------------------------


@pytest.mark.mlir
@pytest.mark.parametrize("level", range(len(LEVELS)), ids=LEVELS)
@settings(max_examples=25, phases=PHASES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_generic_form_goes_through_real_mlir_and_back(level: int, data: st.DataObject, text):
    ir = pytest.importorskip("jaxlib.mlir.ir")
    module = data.draw(modules(level)).module
    with ir.Context() as context:
        context.allow_unregistered_dialects = True
        theirs = ir.Module.parse(text.show(module, generic=True))
        assert theirs.operation.verify()
        back = theirs.operation.get_asm(print_generic_op_form=True)
    again = text.parse(back)
    again.verify()
    # MLIR keeps no SSA names: compare what is left without them.
    assert module.is_structurally_equivalent(again)


# --- fuzzing ---------------------------------------------------------------------------------

TOKEN = re.compile(r'\s+|[A-Za-z_%@#!][\w.]*|\d+|"[^"]*"|->|.', re.DOTALL)
JUNK = (
    "", "-1", "0", "9223372036854775808", "[", "]", "<", ">", "{", "}", "[8:4]", "[0:99999999999]", "[]", '"x"', "i64",
    "i32", "true", "-", "1.5", "@a", "%x", "%nope", "stage", "slot", "cost", "array<i32: 1>", "array<i64: 3, 1>", "é",
    "tensor<?xf32>", "index", "#takt.cost<[1] time [2, 3]>", "#takt.slot<1 on [1:1] at 0>", "0x10", "\x00",
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), generic=st.booleans())
def test_mutilated_text_never_brings_the_parser_or_the_verifier_down(seed: int, generic: bool, text):
    source = (HERE / "ops.mlir").read_text()
    if generic:
        source = text.show(text.parse(source), generic=True)
    rng = random.Random(seed)
    tokens = TOKEN.findall(source)
    for _ in range(rng.choice([1, 1, 2, 4])):
        place = rng.randrange(len(tokens))
        action = rng.randrange(4)
        if action == 0:
            tokens[place] = rng.choice(JUNK)
        elif action == 1:
            del tokens[place]
        elif action == 2:
            tokens.insert(place, tokens[rng.randrange(len(tokens))])
        else:
            other = rng.randrange(len(tokens))
            tokens[place], tokens[other] = tokens[other], tokens[place]
    try:
        module = text.parse("".join(tokens))
    except ParseError:
        return
    except (VerifyException, OverflowError) as error:
        # xDSL's own integers: out of range for their type, or a type of absurd width.
        assert re.search(r"out of range for type|too many digits", str(error))  # noqa: PT017
        return
    check_level(module)
