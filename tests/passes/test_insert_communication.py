"""Reservations become operations: their kinds, who reads them, and the rules of the level that has them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp, StringAttr
from xdsl.parser import Parser

from dialects.communication import BroadcastOp, GatherOp, ReshardOp, ScatterOp, SendRecvOp, TransferOp
from dialects.diagnostics import TaktError
from dialects.levels import check_level
from dialects.structure import find_graph
from dialects.takt import Takt
from passes.insert_communication import InsertCommunicationPass, insert_communication, kind_of, same_turns

PLATFORM = """
takt.platform @p {accelerator = "a", accelerators = 8 : i64, memory = 10000 : i64, bandwidth = 1 : i64,
  launch = 0 : i64, peak = {}, compute_efficiency = 1.0 : f64, memory_efficiency = 1.0 : f64, saturation = 0 : i64,
  links = [#takt.link<"all" 8, latency 1, bandwidth 1000000000>]}
"""


def parse(body: str, *, links: bool = True, level: str = "scheduled", buffered: bool = False) -> ModuleOp:
    """A module with a graph of this body at a level."""
    context = Context()
    context.load_dialect(Builtin)
    context.load_dialect(Takt)
    platform = PLATFORM if links else PLATFORM.split("links =")[0] + "links = []}"
    if buffered:
        platform = platform.replace("links =", 'transfers = "buffered", links =')
    schedule = '<100 for 1, bound 0 by "area", plan "stages", engine "hand", seed 0>'
    text = f"{platform} takt.graph @g {level} {schedule} {{ takt.stage 0 on [0:8]\n{body} }}"
    return Parser(context, text, "test.mlir").parse_module()


def op(name: str, reads: str, sets: str, start: int, *, size: int = 8, extra: str = "") -> str:
    """A line of an operator that takes 10 ns, on sets of one to four accelerators."""
    inputs = ", ".join(["tensor<8xi8>"] * len(reads.split(",")) if reads else [])
    width = sum(int(b) - int(a) for a, b in (r.split(":") for r in sets.split("]")[0][1:].split(", ")))
    return (
        f"%{name} = takt.op({reads}) cost <[{width}] time [10]> {extra} stage 0 slot <{width} on {sets} at {start}>"
        f" : ({inputs}) -> tensor<{size}xi8>\n"
    )


def rules(module: ModuleOp) -> list[str | None]:
    return [d.rule for d in check_level(module)]


def insert(module: ModuleOp) -> list[TransferOp]:
    InsertCommunicationPass().apply(Context(), module)
    graph = find_graph(module)
    return [t for t in graph.transfers() if isinstance(t, TransferOp)]


# --- kinds -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sharded", "source", "target", "kind"),
    [
        ("", "[0:1]", "[4:5]", SendRecvOp),
        ("sharded [0]", "[0:1]", "[4:5]", SendRecvOp),
        ("", "[0:2]", "[4:5]", SendRecvOp),
        ("", "[0:1]", "[4:6]", BroadcastOp),
        ("", "[0:2]", "[4:8]", BroadcastOp),
        ("sharded [0]", "[0:1]", "[4:6]", ScatterOp),
        ("sharded [0]", "[0:2]", "[4:5]", GatherOp),
        ("sharded [0]", "[0:2]", "[4:8]", ReshardOp),
    ],
)
def test_kind_follows_from_sizes_and_sharding(sharded: str, source: str, target: str, kind: type[TransferOp]):
    body = f'takt.reserve %a to {target} over "all" at 10 for 50 : tensor<8xi8>\n'
    body = op("a", "", source, 0, extra=sharded) + body + op("b", "%a", target, 60)
    module = parse(body + "takt.output %b : tensor<8xi8>")
    (transfer,) = insert(module)
    assert type(transfer) is kind
    assert rules(module) == []
    # Any other kind breaks the rule.
    for other in (SendRecvOp, BroadcastOp, ScatterOp, GatherOp, ReshardOp):
        if other is not kind:
            wrong = other.make(transfer.moved, transfer.sets(), "all", 10, 50)
            transfer.parent_block().insert_op_after(wrong, transfer)
            transfer.arrived.replace_all_uses_with(wrong.arrived)
            transfer.detach()
            assert rules(module) == ["transfer-kind"]
            transfer = wrong


def test_kinds_cover_all_sizes():
    found = {kind_of(sharded, s, d) for sharded in (False, True) for s in (1, 2) for d in (1, 2)}
    assert found == {SendRecvOp, BroadcastOp, ScatterOp, GatherOp, ReshardOp}


# --- who reads what --------------------------------------------------------------------------


def test_a_transfer_is_the_reservation_made_explicit():
    body = 'takt.reserve %a to [1:2] over "all" at 12 for 20 landing 40 {n = 1 : i64} : tensor<8xi8>\n'
    body = op("a", "", "[0:1]", 0) + body + op("b", "%a", "[1:2]", 60) + op("c", "%a", "[0:1]", 40)
    module = parse(body + "takt.output %a : tensor<8xi8>", buffered=True)
    (transfer,) = insert(module)
    assert (transfer.sets(), transfer.link.data, transfer.start.value.data) == (((1,),), "all", 12)
    assert (transfer.time.value.data, transfer.lands, transfer.ready) == (20, 40, 60)
    assert transfer.arrived.name_hint == "a.to.1"
    assert "n" in transfer.attributes
    a, b, c = find_graph(module).operators()
    assert list(b.inputs) == [transfer.arrived]
    assert list(c.inputs) == list(find_graph(module).outputs.operands) == [a.outputs[0]]
    assert rules(module) == []


def test_destinations_of_copies_are_told_apart_turn_by_turn():
    body = op("a", "", "[0:1]", 0) + 'takt.reserve %a to [1:2], [2:3] over "all" at 10 for 9 : tensor<8xi8>\n'
    body += 'takt.reserve %a to [2:3], [1:2] over "all" at 20 for 9 : tensor<8xi8>\n'
    body += op("b", "%a", "[2:3], [1:2]", 60) + op("c", "%a", "[1:2], [2:3]", 30)
    module = parse(body + "takt.output %c : tensor<8xi8>")
    first, second = insert(module)
    _, b, c = find_graph(module).operators()
    assert b.inputs[0] is second.arrived
    assert c.inputs[0] is first.arrived
    assert {first.arrived.name_hint, second.arrived.name_hint} == {"a.to.1", "a.to.2"}
    assert rules(module) == []


def test_two_states_of_one_value_share_what_arrives():
    body = "%s = takt.state @s distance 1 : tensor<8xi8>\n%t = takt.state @t distance 2 : tensor<8xi8>\n"
    body += op("a", "%s", "[0:1]", 0) + 'takt.reserve %a to [1:2] over "all" at 10 for 9 : tensor<8xi8>\n'
    body += op("b", "%s, %t", "[1:2]", 30) + op("c", "%s", "[1:2]", 40)
    body += "takt.next @s, %a : tensor<8xi8>\ntakt.next @t, %a : tensor<8xi8>\n"
    module = parse(body + "takt.output %c : tensor<8xi8>")
    (transfer,) = insert(module)
    graph = find_graph(module)
    assert {(s.state.data, s.distance.value.data) for s in graph.states()} == {
        ("s", 1),
        ("t", 2),
        ("s.to.1", 1),
        ("t.to.1", 2),
    }
    a, b, c = graph.operators()
    assert a.inputs[0].name_hint == "s"
    assert [v.name_hint for v in b.inputs] == ["s.to.1", "t.to.1"]
    assert c.inputs[0] is b.inputs[0]
    assert {n.state.data for n in graph.nexts() if n.left is transfer.arrived} == {"s.to.1", "t.to.1"}
    assert rules(module) == []


def test_turns_of_a_distance():
    assert same_turns(((1,), (2,)), ((2,), (1,)), 1)
    assert not same_turns(((1,), (2,)), ((2,), (1,)))
    assert same_turns(((1,), (1,)), ((1,),))


def test_names_are_unique_and_survive_printing():
    body = op("a", "", "[0:1]", 0) + op("a.to.1", "", "[0:1]", 10)
    body += 'takt.reserve %a to [1:2] over "all" at 10 for 9 : tensor<8xi8>\n'
    module = parse(body + op("b", "%a", "[1:2]", 30) + "takt.output %b : tensor<8xi8>")
    (transfer,) = insert(module)
    assert transfer.arrived.name_hint == "a.to.1.v2"
    assert rules(module) == []


def test_without_reservations_only_the_level_changes():
    body = op("a", "", "[0:1]", 0) + op("b", "%a", "[1:2]", 30) + "takt.output %b : tensor<8xi8>"
    module, before = parse(body, links=False), str(parse(body, links=False))
    assert insert(module) == []
    assert str(module) == before.replace("@g scheduled", "@g communicating")
    assert rules(module) == []


# --- the rules of the level ------------------------------------------------------------------


CROSSING = op("a", "", "[0:1]", 0) + op("b", "%a", "[1:2]", 30) + "takt.output %b : tensor<8xi8>"
USELESS = (
    op("a", "", "[0:1]", 0)
    + '%m = takt.send_recv %a to [1:2] over "all" at 10 for 9 : tensor<8xi8>\n'
    + op("b", "%a", "[0:1]", 30)
    + "takt.output %b : tensor<8xi8>"
)
RESERVED = op("a", "", "[0:1]", 0) + 'takt.reserve %a to [1:2] over "all" at 10 for 9 : tensor<8xi8>\n'
RESERVED += op("b", "%a", "[1:2]", 30) + "takt.output %b : tensor<8xi8>"
OTHER_TURN = (
    op("a", "", "[0:1]", 0)
    + '%m = takt.send_recv %a to [1:2], [2:3] over "all" at 10 for 9 : tensor<8xi8>\n'
    + op("b", "%m", "[1:2], [3:4]", 30)
    + "takt.output %b : tensor<8xi8>"
)
OF_INPUT = (
    "%x = takt.input : tensor<8xi8>\n"
    + '%m = takt.send_recv %x to [1:2] over "all" at 10 for 9 : tensor<8xi8>\n'
    + op("b", "%m", "[1:2]", 0)
    + "takt.output %b : tensor<8xi8>"
)


@pytest.mark.parametrize(
    ("body", "broken", "message"),
    [
        (CROSSING, "own-set", "'b' reads 'a' of micro-batch 0 on [1:2], but it is on [0:1]"),
        (USELESS, "arrival-read", "no operator reads 'm'"),
        (RESERVED, "no-reservation", "a transfer is reserved only"),
        (OTHER_TURN, "own-set", "'b' reads 'm' of micro-batch 1 on [3:4], but it is on [2:3]"),
        (OF_INPUT, "transfer-kind", "takt.send_recv moves 'x', which no operator computes"),
    ],
)
def test_each_rule_names_what_breaks_it(body: str, broken: str, message: str):
    found = check_level(parse(body, level="communicating"))
    assert (broken, message) in [(d.rule, d.message) for d in found]


@pytest.mark.parametrize("level", ["model", "moldable", "staged", "scheduled"])
def test_transfers_are_of_a_later_level(level: str):
    found = [d for d in check_level(parse(USELESS, level=level)) if d.rule == "nothing-later"]
    assert [d.message for d in found if "takt.send_recv" in d.message]


# --- what the pass refuses -------------------------------------------------------------------


def test_a_reservation_of_an_input_is_refused():
    body = '%x = takt.input : tensor<8xi8>\ntakt.reserve %x to [1:2] over "all" at 0 for 9 : tensor<8xi8>\n'
    module = parse(body + op("b", "%x", "[1:2]", 0) + "takt.output %b : tensor<8xi8>")
    with pytest.raises(TaktError, match="no result of a scheduled operator"):
        insert_communication(find_graph(module))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.body.block.erase_op(find_graph(m)), "the module has no takt.graph"),
        (lambda m: find_graph(m).properties.pop("schedule"), "the graph has no schedule"),
        (lambda m: next(find_graph(m).operators()).properties.pop("slot"), "'op' has no slot"),
        (lambda m: find_graph(m).properties.update(level=StringAttr("staged")), "this one is at level 'staged'"),
    ],
)
def test_what_is_not_scheduled_is_refused(change: Callable[[ModuleOp], object], message: str):
    module = parse(CROSSING)
    change(module)
    with pytest.raises(TaktError, match=message):
        InsertCommunicationPass().apply(Context(), module)
