"""Steps of finite batches: written by hand in every mode of transfers, and for every rule what breaks it alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from xdsl.dialects.builtin import ModuleOp

from dialects.diagnostics import TaktError
from dialects.levels import check_level
from dialects.schedule_rules import in_flight, latency, loads, peak_memory
from dialects.structure import find_graph, find_platform
from passes.verify_schedule import VerifySchedulePass

T = "tensor<1x4xbf16>"
OF = f'of <"linear" {{features = 4 : i64}} ({T}) -> {T}, gradients [0] to'

Starts = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """Two stages, a on 0 and b with a small head on 1: forward, input gradient, weight gradient and optimizer step."""

    starts: Starts
    moves: Mapping[str, tuple[Any, Any]]
    """What moves: starts, and landings or None."""
    length: int
    mode: str = "overlapped"
    head: int = 2
    """Time of the head."""
    memory: int = 1000
    schedule: str = "step of 3"
    bound: int = 0
    limits: str = ""
    times: Mapping[str, int] = field(default_factory=lambda: {"a": 10, "b.I": 10})
    """Of transfers."""
    updates: Mapping[str, str] = field(default_factory=lambda: {"a": "1 on [0:1] at 110", "b": "1 on [1:2] at 110"})
    """Slots of the optimizer steps."""
    workspace: int = 7
    """Theirs."""

    def text(self) -> str:
        def op(name: str, kind: str, rest: str, stage: int, workspace: int, types: str, group: str) -> str:
            output = 0 if name.endswith("W") else 8
            cost = f"params 32 {group} cost <[1] time [10] params [40] output [{output}] workspace [{workspace}]>"
            cost = cost if group else f"cost <[1] time [{self.head}]>"
            slot = f"slot <1 on [{stage}:{stage + 1}] at {self.starts[name]}>"
            return f"%{name} = takt.{kind}{rest} {cost} stage {stage} {slot} : {types}"

        def move(name: str, there: int) -> str:
            starts, landings = self.moves[name]
            landing = "" if landings is None else f" landing {landings}"
            where = f'to [{there}:{there + 1}] over "node"'
            return f"takt.reserve %{name} {where} at {starts} for {self.times[name]}{landing} : {T}"

        def update(name: str) -> str:
            slot = f" slot <{self.updates[name]}>" if name in self.updates else ""
            cost = f'params 32 group "{name}" cost <[1] time [5] workspace [{self.workspace}]>{slot}'
            return f"%{name}.step = takt.optimizer_step(%{name}.W) {cost} : (tensor<0xi8>) -> tensor<0xi8>"

        a, b = 'group "a"', 'group "b"'
        one, two, none = f"({T}) -> {T}", f"({T}, {T}) -> tensor<0xi8>", f"({T}) -> tensor<0xi8>"
        within = f", within <{self.limits}>" if self.limits else ""
        made = f'bound {self.bound} by "ranks", plan "1F1B", engine "hand", seed 0{within}'
        lines = [
            "takt.stage 0 on [0:1]",
            "takt.stage 1 on [1:2]",
            f"%x = takt.input : {T}",
            f"%g = takt.input : {T}",
            op("a", "linear", "(%x) {features = 4}", 0, 1, one, a),
            move("a", 1),
            op("b", "linear", "(%a) {features = 4}", 1, 1, one, b),
            op("b.I", "input_gradient", f"(%g) {OF} [0]>", 1, 2, one, b),
            move("b.I", 0),
            op("b.W", "weight_gradient", f"(%g, %a) {OF} []>", 1, 3, two, b),
            op("a.I", "input_gradient", f"(%b.I) {OF} [0]>", 0, 2, one, a),
            op("a.W", "weight_gradient", f"(%b.I, %x) {OF} []>", 0, 3, two, a),
            update("a"),
            update("b"),
            op("c", "op", "(%b)", 1, 0, none, ""),
            f"takt.output %c, %a.I, %a.step : tensor<0xi8>, {T}, tensor<0xi8>",
        ]
        platform = (
            'takt.platform @p {accelerator = "a", accelerators = 2 : i64, memory = '
            f"{self.memory} : i64, bandwidth = 1 : i64, launch = 0 : i64, peak = {{}}, compute_efficiency = 1.0 : f64, "
            "memory_efficiency = 1.0 : f64, saturation = 0 : i64, "
            f'links = [#takt.link<"node" 2, latency 2, bandwidth 1000000000>], transfers = "{self.mode}"}}'
        )
        body = "\n".join(f"  {line}" for line in lines)
        head = f"takt.graph @g scheduled training <adam, mixed> <{self.length} {self.schedule}, {made}>"
        return f"{platform}\n{head} {{\n{body}\n}}\n"

    def at(self, **starts: Sequence[int] | int) -> Step:
        """The same with other starts of some operators; ``_`` stands for the dot of a name."""
        return replace(self, starts={**self.starts, **{n.replace("_", "."): v for n, v in starts.items()}})

    def moved(self, name: str, starts: Sequence[int], landings: Sequence[int] | None = None) -> Step:
        return replace(self, moves={**self.moves, name: (list(starts), landings)})

    def updated(self, **slots: str) -> Step:
        return replace(self, updates={**self.updates, **slots})

    def shifted(self, ns: int) -> Step:
        """Everything but the optimizer steps so many ns later."""
        starts = {name: [s + ns for s in listed] for name, listed in self.starts.items()}
        return replace(self, starts=starts, moves={n: ([s + ns for s in m], None) for n, (m, _) in self.moves.items()})


OVERLAPPED = Step(
    {
        "a": [0, 10, 20],
        "b": [20, 40, 60],
        "b.I": [30, 50, 70],
        "b.W": [80, 90, 100],
        "a.I": [50, 70, 90],
        "a.W": [60, 80, 100],
        "c": [115, 117, 119],  # the step is over on accelerator 0, the next one has begun there
    },
    {"a": ([10, 20, 30], None), "b.I": ([40, 60, 80], None)},
    115,
)

BLOCKING = Step(
    {
        "a": [0, 20, 40],
        "b": [20, 60, 100],
        "b.I": [40, 80, 110],
        "b.W": [130, 140, 150],
        "a.I": [60, 100, 130],
        "a.W": [80, 110, 140],
        "c": [166, 168, 170],
    },
    {"a": ([10, 30, 70], None), "b.I": ([50, 90, 120], None)},
    170,
    mode="blocking",
    updates={"a": "1 on [0:1] at 150", "b": "1 on [1:2] at 160"},
)

BUFFERED = Step(
    {
        "a": [0, 20, 40],
        "b": [30, 70, 110],
        "b.I": [40, 80, 120],
        "b.W": [140, 150, 160],
        "a.I": [70, 110, 150],
        "a.W": [80, 120, 160],
        "c": [175, 177, 179],
    },
    {"a": ([10, 30, 50], [20, 60, 100]), "b.I": ([50, 90, 130], [60, 100, 140])},
    175,
    mode="buffered",
    updates={"a": "1 on [0:1] at 170", "b": "1 on [1:2] at 170"},
)

LONG = replace(OVERLAPPED, length=200)
"""With time between steps, in which what is moved does not meet anything."""

PERIODIC = Step(
    {"a": 0, "b": 20, "b.I": 30, "b.W": 40, "a.I": 50, "a.W": 60, "c": 50},
    {"a": (10, None), "b.I": (40, None)},
    210,
    schedule="for 3",
    updates={},
)


def broken(text: Any, step: Step, change: tuple[str, str] = ("", "")) -> dict[str | None, list[str]]:
    """What the checker says, by rule; after one ``change`` of the text."""
    found: dict[str | None, list[str]] = {}
    assert change[0] in step.text()
    for diagnostic in check_level(text.parse(step.text().replace(*change, 1))):
        found.setdefault(diagnostic.rule, []).append(diagnostic.message)
    return found


def graph_of(module: ModuleOp) -> Any:
    graph = find_graph(module)
    assert graph is not None
    return graph


@pytest.mark.parametrize("step", [OVERLAPPED, BLOCKING, BUFFERED, LONG, PERIODIC])
def test_good_steps_are_accepted(text: Any, step: Step) -> None:
    assert broken(text, step) == {}


def test_what_a_step_uses(text: Any) -> None:
    module = text.parse(OVERLAPPED.text())
    graph = graph_of(module)
    # Micro-batch 0 from 0 to 117, 1 from 10 to 119, 2 from 20 to 121; at 115 all of them and the next 0.
    assert latency(graph) == 117
    assert in_flight(graph) == 4
    assert in_flight(graph_of(text.parse(LONG.text()))) == 3
    assert {r: load * 115 for r, load in loads(graph).items()} == {0: 3 * 30 + 5, 1: 3 * 32 + 5}
    # Accelerator 0 at 60: x of all three, b.I of 0 and of 1, which arrives; workspace of a.W.
    # Accelerator 1 at 80: g, a and b of all three, b.I of 2 until it has left; workspace of b.W.
    assert peak_memory(graph, find_platform(module)) == {0: (40, 24 + 16 + 3), 1: (40, 72 + 8 + 3)}


def test_a_value_in_a_buffer_is_nowhere(text: Any) -> None:
    late = replace(BUFFERED, length=400, updates={"a": "1 on [0:1] at 360", "b": "1 on [1:2] at 345"})
    late = late.at(b=[30, 70, 300], b_I=[40, 80, 310], b_W=[140, 150, 330], c=[160, 162, 352])
    late = late.at(a_I=[70, 110, 340], a_W=[80, 120, 350])
    late = late.moved("a", [10, 30, 50], [20, 60, 290]).moved("b.I", [50, 90, 320], [60, 100, 330])
    assert broken(text, late) == {}
    module = text.parse(late.text())
    # Accelerator 1 at 80: g, a and b of 0 and 1, b.I of 1, workspace. What left accelerator 0 at 50 lands at 290.
    assert peak_memory(graph_of(module), find_platform(module)) == {0: (40, 24 + 16 + 2), 1: (40, 48 + 8 + 2)}


def test_the_workspace_of_an_optimizer_step_counts_while_it_runs(text: Any) -> None:
    module = text.parse(replace(OVERLAPPED, workspace=60).text())
    # Accelerator 1 from 110 to 115: b of all three, which the head reads later.
    assert peak_memory(graph_of(module), find_platform(module)) == {0: (40, 60), 1: (40, 24 + 60)}


BREAKS: list[tuple[str, Step, str]] = [
    ("starts-listed", OVERLAPPED.at(a=[0, 10]), "'a' lists 2 starts, but the step has 3 micro-batches"),
    ("starts-listed", OVERLAPPED.at(c=115), "'c' lists 1 start, but the step has 3 micro-batches"),
    (
        "starts-listed",
        OVERLAPPED.moved("a", [10, 20, 30, 40]),
        "the transfer of 'a' to [1:2] lists 4 starts, but the step has 3 micro-batches",
    ),
    ("starts-listed", PERIODIC.at(c=[50, 60, 70]), "'c' lists 3 starts, but the schedule is no step"),
    ("bound", replace(OVERLAPPED, bound=116), "the step of 115 ns is below its own lower bound of 116 ns"),
    (
        "starts",
        replace(OVERLAPPED, length=116).at(a=[-1, 10, 20]),
        "'a' of micro-batch 0 starts at -1 ns, before 0",
    ),
    (
        "starts",
        LONG.shifted(1).updated(a="1 on [0:1] at 111", b="1 on [1:2] at 111"),
        "the first start of a step must be 0, but 'a' of micro-batch 0 starts first, at 1 ns",
    ),
    (
        "precedence",
        OVERLAPPED.at(b=[19, 40, 60]),
        "'b' of micro-batch 0 starts at 19 ns, before its operand 'a' has arrived at 20 ns (started at 0 ns)",
    ),
    (
        "precedence",
        OVERLAPPED.moved("b.I", [40, 60, 81]),
        "'a.I' of micro-batch 2 starts at 90 ns, before its operand 'b.I' has arrived at 91 ns (started at 70 ns)",
    ),
    (
        "fits-period",
        replace(OVERLAPPED, head=39),
        "'c' takes 39 ns, which the step of 115 ns has no time for in each of its 3 micro-batches",
    ),
    (
        "exclusive",
        OVERLAPPED.at(b_W=[80, 91, 100]),
        "'b.W' of micro-batch 2 (start 100 ns, that is 100 ns to 110 ns) and 'b.W' of micro-batch 1 (start 91 ns, that "
        "is 91 ns to 101 ns) overlap on accelerator [1:2] modulo the step of 115 ns",
    ),
    (
        "exclusive",
        OVERLAPPED.at(c=[115, 113, 119]),
        "'c' of micro-batch 1 (start 113 ns, that is 113 ns to 115 ns) and 'b.step' (start 110 ns, that is 110 ns to "
        "115 ns) overlap on accelerator [1:2] modulo the step of 115 ns",
    ),
    (
        "exclusive",
        OVERLAPPED.at(c=[115, 117, 134]),
        "'b' of micro-batch 0 (start 20 ns, that is 20 ns to 30 ns) and 'c' of micro-batch 2 (start 134 ns, that is "
        "19 ns to 21 ns) overlap on accelerator [1:2] modulo the step of 115 ns",
    ),
    (
        "memory",
        replace(OVERLAPPED, memory=122),
        "accelerator 1 lacks 1 B of memory: at 80 ns of the step it needs 123 B of 122 B (40 B parameters, 24 B "
        "received values, 32 B results, 3 B workspaces, 24 B inputs; most of it received value of 'a' 24 B, "
        "result of 'b' 24 B, input of 'g' 24 B)",
    ),
    (
        "limits",
        replace(OVERLAPPED, limits="in_flight 3"),
        "4 micro-batches are in flight, the schedule claims at most 3",
    ),
    ("limits", replace(OVERLAPPED, limits="latency 116"), "the latency is 117 ns, the schedule claims at most 116 ns"),
    (
        "limits",
        replace(OVERLAPPED, limits="memory 122"),
        "an accelerator of [1:2] needs 123 B of memory, the schedule claims at most 122 B",
    ),
    (
        "limits",
        replace(OVERLAPPED, limits="crossing 15"),
        "16 bytes cross between accelerator sets per micro-batch, the schedule claims at most 15",
    ),
    (
        "transfer-time",
        replace(OVERLAPPED, times={"a": 9, "b.I": 10}),
        "the transfer of 'a' to [1:2] takes 9 ns, but its way takes 10 ns",
    ),
    (
        "transfer-start",
        OVERLAPPED.moved("a", [9, 20, 30]),
        "the transfer of 'a' to [1:2] of micro-batch 0 starts at 9 ns, before 'a' ends at 10 ns",
    ),
    (
        "transfer-start",
        OVERLAPPED.moved("a", [10, 20, 30], [10, 20, 31]),
        "the transfer of 'a' to [1:2] of micro-batch 2 starts at 30 ns but lands at 31 ns: there is no buffer between",
    ),
    (
        "transfer-start",
        replace(BUFFERED, length=400).moved("b.I", [50, 90, 130], [60, 100, 139]),
        "the transfer of 'b.I' to [0:1] of micro-batch 2 lands at 139 ns, before it has left at 140 ns",
    ),
    (
        "links",
        OVERLAPPED.moved("a", [10, 25, 30]),
        "the transfer of 'a' to [1:2] of micro-batch 2 (start 30 ns, that is 30 ns to 40 ns) and the transfer of 'a' "
        "to [1:2] of micro-batch 1 (start 25 ns, that is 25 ns to 35 ns) overlap on the send port of accelerator 0 "
        "(node) and 1 more modulo the step of 115 ns",
    ),
    (
        "transfer-exclusive",
        BLOCKING.updated(b="1 on [1:2] at 176"),
        "the transfer of 'a' to [1:2] of micro-batch 0 (start 10 ns, that is 10 ns to 20 ns) and 'b.step' (start 176 "
        "ns, that is 6 ns to 11 ns) overlap on accelerator 1 modulo the step of 170 ns",
    ),
    (
        "transfer-exclusive",
        BUFFERED.moved("a", [10, 30, 50], [20, 55, 100]),
        "the transfer of 'a' to [1:2] of micro-batch 1 (start 55 ns, that is 55 ns to 65 ns) and the copy of 'b.I' "
        "into its buffer of micro-batch 0 (start 50 ns, that is 50 ns to 60 ns) overlap on accelerator 1 modulo the "
        "step of 175 ns",
    ),
    (
        "updates",
        OVERLAPPED.updated(a="1 on [0:1] at 30"),
        "'a.step' starts at 30 ns, before 'a.W' of micro-batch 2 ends at 110 ns",
    ),
    (
        "updates",
        LONG.at(a_I=[50, 70, 130]),
        "'a.step' starts at 110 ns, before 'a.I' of micro-batch 2 ends at 140 ns",
    ),
    (
        "updates",
        LONG.updated(b="1 on [1:2] at 330"),
        "'b.step' ends at 335 ns, after 'b' of micro-batch 0 of the next step starts at 220 ns",
    ),
    (
        "updates",
        LONG.updated(b="1 on [0:1] at 115"),
        "'b.step' runs on [0:1], but the operators of its group 'b' on [1:2]",
    ),
    ("updates", OVERLAPPED.updated(a="1 on [0:1] at [110, 115]"), "'a.step' lists 2 starts, but it runs once a step"),
    (
        "updates",
        OVERLAPPED.updated(a="2 on [0:1] at 110"),
        "'a.step' runs on 2 accelerators, but its cost table has times for 1 only",
    ),
    ("updates", replace(OVERLAPPED, updates={"a": "1 on [0:1] at 110"}), "'b.step' has no slot"),
    (
        "updates",
        replace(PERIODIC, updates={"a": "1 on [0:1] at 110"}),
        "'a.step' has a slot, but the schedule is no step",
    ),
]
"""A rule, a step that breaks it and no other, and what the checker says."""


@pytest.mark.parametrize(
    ("rule", "step", "message"), BREAKS, ids=lambda part: part if isinstance(part, str) and " " not in part else ""
)
def test_what_breaks_one_rule(text: Any, rule: str, step: Step, message: str) -> None:
    found = broken(text, step)
    assert list(found) == [rule]
    assert message in found[rule]


MOVE = 'takt.reserve %b.I to [0:1] over "node" at [40, 60, 80] for 10 : tensor<1x4xbf16>'
UPDATE = 'takt.optimizer_step(%b.W) params 32 group "b" cost <[1] time [5] workspace [7]>'
CHANGES: list[tuple[str, tuple[str, str], str]] = [
    ("transfers-needed", (MOVE, ""), "'a.I' reads 'b.I' on [0:1], but no transfer moves it there from [1:2]"),
    (
        "transfer-link",
        (MOVE, MOVE.replace("node", "rack")),
        'the transfer of \'b.I\' to [0:1] is over "rack", but the innermost level that joins its ends is "node"',
    ),
    (
        "optimizer-gradients",
        ("optimizer_step(%b.W)", "optimizer_step(%a.W)"),
        "'b.step' reads 'a.W' first, which is not of its group 'b'",
    ),
    (
        "optimizer-gradients",
        (f"%b.step = {UPDATE}", f"%b.step = {UPDATE.replace('b.W', 'a.step')}"),
        "'b.step' reads 'a.step', which is no gradient of weights",
    ),
]
"""A rule, a change of the good step's text that breaks it and no other, and what the checker says."""


@pytest.mark.parametrize(
    ("rule", "change", "message"), CHANGES, ids=lambda part: part if isinstance(part, str) and " " not in part else ""
)
def test_what_breaks_one_rule_of_the_graph(text: Any, rule: str, change: tuple[str, str], message: str) -> None:
    found = broken(text, LONG.updated(b="1 on [1:2] at 130"), change)
    assert list(found) == [rule]
    assert message in found[rule]


def test_no_copies_in_a_step(text: Any) -> None:
    found = broken(text, OVERLAPPED, ("slot <1 on [1:2] at [115,", "slot <1 on [1:2], [0:1] at [115,"))
    assert found["starts-listed"] == ["'c' has copies, on [1:2], [0:1]: there are none in a step"]


def test_one_optimizer_step_for_each_group(text: Any) -> None:
    again = f"%a.again = {UPDATE} : (tensor<0xi8>) -> tensor<0xi8>\n  %b.step"
    message = "'b.step' is the second optimizer step of group 'b'"
    assert broken(text, OVERLAPPED, ("%b.step", again))["optimizer-gradients"] == [message]
    alone = broken(text, OVERLAPPED, (UPDATE, UPDATE.replace(' group "b"', "")))
    assert alone == {
        "optimizer-gradients": [
            "no optimizer step reads 'b.W': its parameters would never change",
            "'b.step' is of no group: there are no parameters for it",
        ]
    }


def test_an_optimizer_step_reads_all_gradients_of_its_group(text: Any) -> None:
    both = replace(OVERLAPPED, length=400).text().replace("[0:1]", "[1:2]").replace('group "b"', 'group "a"')
    found = [d.message for d in check_level(text.parse(both)) if d.rule == "optimizer-gradients"]
    assert "'a.step' does not read 'b.W' of its group 'a'" in found


def test_the_hint_says_how_much_memory_would_do(text: Any) -> None:
    hints = [d.hint for d in check_level(text.parse(replace(OVERLAPPED, memory=82).text()))]
    assert hints == ["this schedule needs accelerators of 123 B"] * 2
    assert broken(text, replace(OVERLAPPED, memory=123)) == {}


def test_a_step_may_have_more_micro_batches_than_there_may_be_copies(text: Any) -> None:
    many = list(range(2000))
    step = (
        "takt.stage 0 on [0:1]\n%x = takt.input : tensor<4xi8>\n"
        f"%a = takt.op(%x) cost <[1] time [1]> stage 0 slot <1 on [0:1] at {many}> : (tensor<4xi8>) -> tensor<4xi8>\n"
        "takt.output %a : tensor<4xi8>"
    )
    head, _ = OVERLAPPED.text().split("\n", 1)
    made = '<2000 step of 2000, bound 2000 by "ranks", plan "list", engine "hand", seed 0>'
    assert check_level(text.parse(f"{head}\ntakt.graph @g scheduled {made} {{\n{step}\n}}")) == []


def test_explicit_transfers_keep_the_same_rules(text: Any) -> None:
    sent = OVERLAPPED.text().replace(" scheduled ", " communicating ")
    for name in ("a", "b.I"):
        sent = sent.replace(f"takt.reserve %{name} ", f"%{name}.to = takt.send_recv %{name} ")
    sent = sent.replace("linear(%a)", "linear(%a.to)").replace("(%g, %a)", "(%g, %a.to)")
    sent = sent.replace("(%b.I)", "(%b.I.to)").replace("(%b.I, %x)", "(%b.I.to, %x)")
    assert check_level(text.parse(sent)) == []
    late = sent.replace("at [40, 60, 80] for", "at [40, 60, 81] for")
    assert [d.rule for d in check_level(text.parse(late))] == ["precedence"]


def test_a_certificate_says_what_it_cannot_prove(text: Any) -> None:
    def certify(bound: int) -> None:
        module = text.parse(replace(OVERLAPPED, bound=bound).text())
        VerifySchedulePass(certificate=True).apply(text.context, module)

    certify(101)  # of accelerator 1: three times 32, and 5
    with pytest.raises(TaktError) as failure:
        certify(102)
    (found,) = failure.value.diagnostics
    assert found.rule == "certificate"
    assert found.message == (
        'the step claims a lower bound of 102 ns (102 ns) by "ranks", which cannot be proven again from the IR: the '
        "work of the busiest accelerator proves 101 ns (101 ns)"
    )
