"""Every rule of levels 0, 2 and 3: a module that keeps it and one that breaks it."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import IntegerAttr, ModuleOp, StringAttr, TensorType, bf16, i8, i64
from xdsl.ir import Block, Region

from dialects.attributes import CostAttr, CostEntry, SlotAttr, ints
from dialects.diagnostics import TaktError
from dialects.levels import RULES, check_level, verify_level
from dialects.operators import GeluOp, MulOp, OpaqueOp
from dialects.rules import MOST_REPORTED
from dialects.structure import GraphOp, InputOp, OutputOp, StageOp, find_graph


def broken(module: ModuleOp, level: str | None = None) -> set[str | None]:
    return {d.rule for d in check_level(module, level)}


def messages(module: ModuleOp) -> str:
    return "\n".join(d.message for d in check_level(module))


@pytest.fixture
def staged(sketch):
    """x -> a -> b -> c on two stages of four accelerators; c is shared with the first stage."""

    def build(level: str = "staged", **changes):
        s = sketch()
        s.stage(*changes.get("blocks", ([0, 1, 2, 3], [4, 5, 6, 7])))
        x = s.input("x")
        a = s.op("a", x, stage=changes.get("a", 0), table=changes.get("table"))
        b = s.op("b", a, stage=changes.get("b", 0))
        c = s.op("c", b, stage=1, shared=changes.get("shared", 0))
        return s.module(level, c, platform=changes.get("platform", True))

    return build


def test_modules_that_keep_every_rule(staged, sketch):
    assert check_level(staged()) == []
    for platform in (True, False):
        s = sketch()
        a = s.op("a", s.input("x"))
        assert check_level(s.module("model", a, platform=platform)) == []
    verify_level(staged())


# --- level 0 ---------------------------------------------------------------------------------


def test_well_formed_names_every_broken_operation():
    x = InputOp.create(result_types=[TensorType(bf16, [4])])
    wrong = [GeluOp.make([x.output], {}, [TensorType(bf16, [n])], 0) for n in (5, 6)]
    module = ModuleOp([GraphOp.make("g", [x, *wrong, OutputOp.make([])])])
    found = check_level(module)
    assert [d.rule for d in found] == ["well-formed", "well-formed"]
    assert "gives tensor<4, bf16>, but the result is tensor<5, bf16>" in found[0].message
    assert "tensor<6, bf16>" in found[1].message


@pytest.mark.parametrize("graphs", [0, 2])
def test_one_graph(graphs: int, sketch):
    made = []
    for number in range(graphs):
        s = sketch()
        s.op("a")
        made.append(s.module("model", platform=False))
        find_graph(made[-1]).properties["sym_name"] = StringAttr(f"g{number}")
    ops = [op for module in made for op in module.body.ops]
    for op in ops:
        op.detach()
    assert broken(ModuleOp(ops)) == {"one-graph"}


def test_one_graph_and_nothing_else(staged):
    module = staged()
    module.body.block.add_op(OpaqueOp.make([], {}, [TensorType(bf16, [1])], 0))
    assert "one-graph" in broken(module)
    assert "takt.op" in messages(module)


def test_graph_body(sketch):
    empty = sketch().module("model")
    assert broken(empty) == {"graph-body"}
    assert "no operator" in messages(empty)
    s = sketch()
    s.op("a")
    foreign = s.module("model")
    graph = find_graph(foreign)
    graph.body.block.insert_op_before(ModuleOp([]), graph.outputs)
    assert broken(foreign) == {"graph-body"}
    assert "builtin.module" in messages(foreign)
    block = Block(arg_types=[TensorType(i8, [1])])
    a = OpaqueOp.make(block.args, {}, [TensorType(i8, [1])], 0, cost=CostAttr.from_table({1: CostEntry(1)}))
    block.add_ops([a, OutputOp.make([])])
    graph = GraphOp.create(
        properties={"sym_name": StringAttr("g"), "level": StringAttr("model")}, regions=[Region(block)]
    )
    assert broken(ModuleOp([graph])) == {"graph-body", "dominance"}
    assert "block of a graph has no arguments" in messages(graph.parent_op())


@pytest.mark.parametrize("position", [0, 1])
def test_output_comes_last(position: int, sketch):
    s = sketch()
    s.op("a")
    s.ops.insert(position, OutputOp.make([]))
    assert broken(s.module("model")) == {"well-formed"}


def test_graph_without_block_is_reported():
    graph = GraphOp.create(
        properties={"sym_name": StringAttr("g"), "level": StringAttr("model")}, regions=[Region([Block(), Block()])]
    )
    assert broken(ModuleOp([graph])) == {"well-formed"}


def test_unknown_level_of_a_graph(sketch):
    s = sketch()
    s.op("a")
    module = s.module("model")
    find_graph(module).properties["level"] = StringAttr("later")
    assert broken(module) == {"well-formed"}
    assert "unknown level 'later'" in messages(module)


def test_dominance_in_a_block(staged):
    module = staged()
    graph = find_graph(module)
    a, b, _ = graph.operators()
    a.detach()
    graph.body.block.insert_op_after(a, b)
    assert broken(module) == {"dominance"}
    assert "'b' uses 'a' before it is defined" in messages(module)


def test_no_value_from_outside(sketch):
    s = sketch()
    outside = InputOp.create(result_types=[TensorType(bf16, [1])])
    outside.output.name_hint = "far"
    s.op("a", outside.output)
    module = s.module("model")
    assert broken(module) == {"well-formed"}, "a graph is isolated from what is around it"


def test_opaque_table(sketch):
    s = sketch()
    s.op("a")
    module = s.module("model")
    del next(find_graph(module).operators()).properties["cost"]
    assert broken(module) == {"opaque-table"}


@pytest.mark.parametrize("level", ["model", "moldable", "staged"])
def test_nothing_later(level: str, staged):
    module = staged("staged")
    graph = find_graph(module)
    graph.properties["level"] = StringAttr(level)
    if level == "staged":
        module = _with_slot(staged("staged"))
    assert broken(module) == {"nothing-later"}
    # A later level may be held to the rules of an earlier one without being told what it has too much.
    assert check_level(_with_level(staged("staged"), "staged"), "model") == []


def test_layouts_belong_to_costs(sketch):
    s = sketch()
    s.op("a")
    module = s.module("model")
    next(find_graph(module).operators()).properties["sharded"] = ints([0])
    assert broken(module) == {"nothing-later"}
    assert broken(_with_level(module, "moldable")) == set()


def _with_level(module: ModuleOp, level: str) -> ModuleOp:
    find_graph(module).properties["level"] = StringAttr(level)
    return module


def _with_slot(module: ModuleOp) -> ModuleOp:
    next(find_graph(module).operators()).properties["slot"] = SlotAttr.make([[0]], 0)
    return module


def test_level_reached(sketch):
    s = sketch()
    s.op("a")
    module = s.module("model")
    assert broken(module, "scheduled") == {"level-reached"}
    with pytest.raises(ValueError, match="unknown level 'late'"):
        check_level(module, "late")


# --- level 2 ---------------------------------------------------------------------------------


def test_platform_present(staged):
    assert broken(staged(platform=False)) == {"platform-present"}


def test_cost_present(sketch):
    s = sketch()
    s.stage([0])
    x = s.input("x")
    s.op("a", x, stage=0)
    inferred = MulOp.make([x, x], {}, [x.type], 0)
    inferred.properties["stage"] = IntegerAttr(0, i64)
    s.ops.append(inferred)
    module = s.module("staged")
    assert broken(module) == {"cost-present"}
    assert "'mul.1' has no cost table" in messages(module), "an operator without a name is named by kind and position"


def test_allotments_fit(staged):
    assert broken(staged(table={1: 5, 8: 1})) == set()
    module = staged(table={1: 5, 9: 1})
    assert broken(module) == {"allotments-fit"}
    assert "'a' has a cost for 9 accelerators, but the platform has 8" in messages(module)


# --- level 3 ---------------------------------------------------------------------------------


def test_stages_first(staged):
    module = staged()
    graph = find_graph(module)
    stage = next(graph.stages())
    stage.detach()
    graph.body.block.insert_op_before(stage, next(graph.operators()))
    assert broken(module) == {"stages-first", "stages-numbered"}


def test_stages_numbered(staged, sketch):
    module = staged()
    graph = find_graph(module)
    first, second = graph.stages()
    second.detach()
    graph.body.block.insert_op_before(second, first)
    assert broken(module) == {"stages-numbered"}
    s = sketch()
    s.op("a", stage=0)
    none = s.module("staged")
    assert broken(none) == {"stages-numbered", "stage-present"}


def test_blocks_inside(staged):
    module = staged(blocks=([0, 1, 2, 3], [8, 9]))
    assert broken(module) == {"blocks-inside"}
    assert "stage 1 is granted [8:10], but the platform has 8 accelerators" in messages(module)


def test_blocks_disjoint(staged):
    assert broken(staged(blocks=([0, 1, 2, 3], [0, 1, 2, 3]))) == set(), "equal blocks are fine"
    module = staged(blocks=([0, 1, 2], [2, 3]))
    assert broken(module) == {"blocks-disjoint"}
    assert "stages 0 and 1 share accelerators [2:3] but differ: [0:3] and [2:4]" in messages(module)


def test_blocks_grouped(staged):
    assert broken(staged(blocks=([0, 1], [2, 3, 4, 5, 6, 7]))) == set(), "a wider block may span groups"
    module = staged(blocks=([0, 1, 2], [3, 4]))
    assert broken(module) == {"blocks-grouped"}
    assert "block [3:5] of stage 1" in messages(module)


def test_blocks_not_empty(staged):
    module = staged()
    stage = next(find_graph(module).stages())
    stage.properties["granted"] = StageOp.make(0, []).granted
    assert broken(module) == {"well-formed"}


def test_stage_present(staged):
    assert broken(staged(a=None)) == {"stage-present"}
    assert broken(staged(a=7)) == {"stage-present"}
    assert broken(staged(a=2**62)) == {"stage-present"}


def test_shared_neighbour(staged):
    assert broken(staged(shared=1)) == {"shared-neighbour"}
    assert broken(staged(shared=3)) == {"shared-neighbour"}
    assert broken(staged(shared=2)) == {"shared-neighbour"}, "the neighbour must exist"


def test_stages_convex(sketch):
    def diamond(left: int, last: int):
        s = sketch()
        s.stage([0], [1], [2])
        a = s.op("a", stage=0)
        b = s.op("b", a, stage=left)
        c = s.op("c", b, stage=left)
        s.op("d", a, c, stage=last)
        return s.module("staged")

    assert broken(diamond(1, 1)) == set()
    assert broken(diamond(1, 2)) == set()
    assert broken(diamond(0, 1)) == set()
    module = diamond(1, 0)
    assert broken(module) == {"stages-convex"}
    assert "leaves stage 0 after 'a' and comes back in 'd', through 'c' of stage 1" in messages(module)


def test_two_stages_may_feed_each_other_when_no_path_returns(sketch):
    s = sketch()
    s.stage([0], [1])
    s.op("y", s.op("x", stage=0), stage=1)
    s.op("v", s.op("u", stage=1), stage=0)
    assert check_level(s.module("staged")) == []


def test_allotment_exists(staged):
    assert broken(staged(table={4: 1, 8: 1})) == set()
    module = staged(table={8: 1})
    assert broken(module) == {"allotment-exists"}
    assert "'a' needs at least 8 accelerators, but its stage is granted 4: [0:4]" in messages(module)


def test_a_shared_operator_may_use_the_union(sketch):
    s = sketch()
    s.stage([0, 1], [2, 3])
    s.op("a", stage=0, shared=1, table={4: 1})
    assert check_level(s.module("staged")) == []


# --- the verifier ----------------------------------------------------------------------------


def test_rules_have_distinct_names_and_sentences():
    for rules in RULES.values():
        assert len({r.name for r in rules}) == len(rules)
        assert all(r.statement.endswith(".") for r in rules)


def test_reports_are_capped_and_in_program_order(sketch):
    s = sketch()
    s.stage([0])
    for i in range(30):
        s.op(f"v{i}", stage=None if i % 2 else 9)
    module = s.module("staged")
    found = check_level(module)
    assert len(found) == MOST_REPORTED + 1
    assert [d.message.split("'")[1] for d in found[:-1]] == [f"v{i}" for i in range(MOST_REPORTED)]
    assert found[-1].severity == "note"
    with pytest.raises(TaktError) as error:
        verify_level(module)
    assert len(error.value.diagnostics) == MOST_REPORTED + 1


def test_several_rules_are_reported_in_one_run(staged):
    module = staged(a=None, shared=3, table={1: 5, 9: 1})
    assert broken(module) == {"allotments-fit", "stage-present", "shared-neighbour"}
