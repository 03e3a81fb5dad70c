"""Groups in the language: what they become in the IR, and a model with tied weights compiled to a schedule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from compiler.pipeline import Options, new_context, run_pipeline
from compiler.simulate import time_triggered
from compiler.targets.json import emit, schema
from compiler.view import view_of
from dialects.diagnostics import TaktError
from dialects.levels import check_level
from dialects.operators import OperatorOp
from frontend import Source, load, parse
from frontend.dump import show_ast

Operators = Callable[..., dict[str, OperatorOp]]


def model(body: str) -> str:
    return "model m {\n input x: tensor<4 x 8, bf16>\n" + body + "\n}\n"


def groups(operators: dict[str, OperatorOp]) -> dict[str, str | None]:
    return {name: None if op.group is None else op.group.data for name, op in operators.items()}


def test_operators_of_all_kinds_name_a_group(operators_of: Operators) -> None:
    found = operators_of(
        model(
            ' a = op(x) time [9us] params 4 KiB group "tied" output 8 B\n'
            ' b = linear(x, features = 8) group "tied"\n c = linear(x, features = 8) group "own" time [5us]\n'
            " d = gelu(c)\n output d"
        )
    )
    assert groups(found) == {"a": "tied", "b": "tied", "c": "own", "d": None}
    assert found["a"].params.value.data == 4096
    assert found["b"].cost is None
    assert list(found["a"].properties) == ["params", "group", "cost"]


def test_names_are_constants_and_may_count(operators_of: Operators) -> None:
    found = operators_of(
        "block head(x: tensor<n x d, t>; weights) -> y { y = linear(x, features = d) group weights }\n"
        + model(
            ' const kind = "layer"\n repeat 2 as i carry x {\n x = linear(x, features = 8) group [kind, i]\n }\n'
            ' repeat 2 carry x { x = gelu(x) group "all" }\n y = head(x, weights = "layer.1")\n output y'
        )
    )
    assert list(groups(found).values()) == ["layer.0", "layer.1", "all", "all", "layer.1"]


def test_group_is_a_name_where_no_clause_starts(operators_of: Operators) -> None:
    found = operators_of(model(" group = gelu(x)\n params, group2 = split(group, parts = 2, axis = 0)\n output group"))
    assert set(found) == {"group", "params"}
    found = operators_of(model(' y = op(x) time [1us] params 4 B group "g"\n group = gelu(x)\n output y, group'))
    assert groups(found) == {"y": "g", "group": None}


def test_the_syntax_tree_shows_groups() -> None:
    text = show_ast(parse(Source("f", model(' y = gelu(x) group "g"\n output y'))))
    assert 'Clause "group" @3:14' in text


# --- an encoder with tied weights --------------------------------------------------------------------

ENCODER = """
import "takt/transformer.takt"
model encoder {
  input tokens: tensor<2 x 16, i32>
  x = embedding(tokens, vocab = 512, dim = 64) TIED
  repeat 2 carry x {
    h = linear(x, features = 256)
    a = gelu(h)
    y = linear(a, features = 64, split = "row")
    x = residual(x, y)
  }
  logits = linear(x, features = 512) TIED
  output logits
}
"""


def compiled(text: str, platform: Path, level: str = "scheduled", **options: object):
    module = load(Source("f.takt", text), platform=Source.read(platform))
    return run_pipeline(new_context(), module, to=level, options=Options(**options))  # pyright: ignore[reportArgumentType]


def test_a_tied_encoder_compiles_and_runs(examples: Path) -> None:
    board = examples / "tiny_board.takt"
    plain = view_of(compiled(ENCODER.replace("TIED", ""), board))
    module = compiled(ENCODER.replace("TIED", 'group "tied"'), board)
    assert check_level(module, "scheduled") == []
    view = view_of(module)
    first, last = view.tasks[0], view.tasks[-1]
    assert (first.group, last.group) == ("tied", "tied")
    assert first.copies == last.copies
    document = json.loads(emit(module))
    jsonschema.Draft202012Validator(schema()).validate(document)
    assert [o["name"] for o in document["operators"] if o.get("group") == "tied"] == [first.name, last.name]
    assert len(view.stages) > 2
    assert (first.stage, last.stage) == (0, len(view.stages) - 1)
    assert view.stages[0].granted == view.stages[-1].granted
    assert time_triggered(view).steady
    table = 512 * 64 * 2
    stored = sum(view.parameters.values())
    assert first.params == last.params == -(-table // first.allotment)
    assert stored == sum(t.params * t.allotment for t in view.tasks) - first.params * first.allotment
    assert sum(plain.parameters.values()) >= stored + table


def test_operators_without_a_common_allotment_are_refused_with_costs(examples: Path) -> None:
    # The allotments of an embedding follow from the platform, so the mistake shows when costs are known.
    text = ENCODER.replace("TIED", 'group "tied"').replace("512) group", "512) time {3: 1us} group")
    with pytest.raises(TaktError) as failure:
        compiled(text, examples / "tiny_board.takt", "moldable")
    [diagnostic] = failure.value.diagnostics
    assert diagnostic.rule == "group-allotment"
    assert diagnostic.location is not None
    assert (diagnostic.location.file, diagnostic.location.line) == ("f.takt", 12)
    assert "'logits' has costs for 3 accelerators, but the operators before it in group 'tied'" in diagnostic.message


@pytest.mark.parametrize("plan", ["shared", "pushed"])
def test_plans_that_share_boundaries_fall_back_to_stages(plan: str, examples: Path) -> None:
    module = compiled(ENCODER.replace("TIED", 'group "tied"'), examples / "tiny_board.takt", plan=plan)
    assert check_level(module, "scheduled") == []
