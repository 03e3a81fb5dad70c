"""Inputs that would take forever, and mistakes that come in numbers."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from dialects.diagnostics import Diagnostic
from dialects.structure import GraphOp
from frontend.report import MAX_ERRORS

Errors = Callable[..., tuple[Diagnostic, ...]]
Graphs = Callable[..., GraphOp]

HEAD = "model m {\n  input x: tensor<4 x 8, bf16>\n"


def only(found: tuple[Diagnostic, ...]) -> tuple[str, str]:
    (diagnostic,) = found
    place = diagnostic.location
    return (f"{place.line}:{place.column}+{place.length}" if place else ""), diagnostic.message


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("const a = " + "(" * 5000 + "1" + ")" * 5000, "1:75+1", "brackets nest deeper than 64 levels"),
        ("const a = " + "[" * 100 + "]" * 100, "1:75+1", "brackets nest deeper than 64 levels"),
        ("model m {\n" + "repeat 1 {\n" * 100 + "}\n" * 100 + "}", "65:10+1", "brackets nest deeper than 64 levels"),
        ("const a = " + "-" * 5000 + "1", "1:4910+102", "arithmetic nests deeper than 100 levels"),
        ("const a = 1" + "+1" * 5000, "1:11+203", "arithmetic nests deeper than 100 levels"),
        ("const a = " + "9" * 50, "1:11+50", "a number has at most 30 digits"),
        ("const a = 0." + "1" * 50, "1:11+52", "a number has at most 30 digits"),
        ("const a = 1e999999999", "1:11+11", "an exponent lies between -30 and 30"),
        ("const a = 1e-31", "1:11+5", "an exponent lies between -30 and 30"),
        (f"const a = {'9' * 50} GiB", "1:11+50", "a number has at most 30 digits"),
    ],
)
def test_nesting_and_numbers(errors_of: Errors, text: str, place: str, message: str) -> None:
    assert only(errors_of(text + "\n")) == (place, message)


def test_many_operators(errors_of: Errors) -> None:
    body = "".join(f"    a{i} = gelu(x)\n" for i in range(20))
    start = time.perf_counter()
    found = errors_of(f"{HEAD}  repeat 90000 carry x {{\n{body}    x = gelu(x)\n  }}\n  output x\n}}\n")
    assert only(found) == ("3:10+5", "a model has at most 1,000,000 operators and block calls")
    assert time.perf_counter() - start < 2


def test_repetitions_of_repetitions(errors_of: Errors) -> None:
    found = errors_of(f"{HEAD}  repeat 90000 {{\n    repeat 90000 {{\n    }}\n  }}\n  output x\n}}\n")
    assert only(found) == ("4:12+5", "a model repeats at most 100,000 times in all, this makes 180,000")


def test_blocks_that_double(errors_of: Errors) -> None:
    """Thirty blocks that call the next one twice would be a thousand million calls."""
    blocks = "".join(f"block b{i}(x) -> y {{ a = b{i + 1}(x) y = b{i + 1}(a) }}\n" for i in range(30))
    start = time.perf_counter()
    found = errors_of(f"{blocks}block b30(x) -> x {{ }}\n{HEAD}  y = b0(x)\n  output y\n}}\n")
    assert found[0].message == "a model has at most 1,000,000 operators and block calls"
    assert time.perf_counter() - start < 2


def test_deep_chains_of_blocks(errors_of: Errors, graph_of: Graphs) -> None:
    def chain(count: int) -> str:
        blocks = "".join(f"block b{i}(x) -> y {{ y = b{i + 1}(x) }}\n" for i in range(count))
        return f"{blocks}block b{count}(x) -> y {{ y = gelu(x) }}\n{HEAD}  y = b0(x)\n  output y\n}}\n"

    assert len(list(graph_of(chain(60)).operators())) == 1
    assert only(errors_of(chain(2000)))[1] == "blocks and repetitions nest deeper than 64 levels"


def test_long_chains_of_constants(graph_of: Graphs) -> None:
    constants = "const c0 = 1\n" + "".join(f"const c{i + 1} = c{i} + 1\n" for i in range(3000))
    graph_of(f"{constants}{HEAD}  y = linear(x, features = c3000)\n  output y\n}}\n")


def test_a_long_cycle_of_values(errors_of: Errors) -> None:
    body = "".join(f"  v{i} = add(x, v{i + 1})\n" for i in range(2000))
    found = errors_of(f"{HEAD}{body}  v2000 = gelu(v0)\n  output v0\n}}\n")
    assert found[0].message.startswith("values depend on one another in a cycle: v0 -> v1 -> v2 -> ")


def test_errors_stop_after_a_number(errors_of: Errors) -> None:
    body = "".join(f"  y{i} = gleu(x)\n" for i in range(100))
    found = errors_of(f"{HEAD}{body}  output x\n}}\n")
    assert len(found) == MAX_ERRORS + 1
    assert (found[-1].severity, found[-1].message) == ("note", "too many errors: stopped after 20")
    assert {d.severity for d in found[:-1]} == {"error"}


def test_many_syntax_errors_stop_too(errors_of: Errors) -> None:
    found = errors_of(HEAD + "".join(f"  y{i} = (\n" for i in range(100)) + "}\n")
    assert len(found) <= MAX_ERRORS + 1


def test_a_mistake_in_a_repeated_block_is_reported_once(errors_of: Errors) -> None:
    block = "block f(x) -> y {\n  w = linear(x, features = 3)\n  y = add(x, w)\n}\n"
    found = errors_of(f"{block}{HEAD}  repeat 50 carry x {{\n    x = f(x)\n  }}\n  output x\n}}\n")
    assert only(found) == ("3:7+3", "'add': operands differ: tensor<4 x 8, bf16> and tensor<4 x 3, bf16>")
    assert [(str(n.location), n.message) for n in found[0].notes] == [("f.takt:8:9", "in this use of block 'f'")]


@pytest.mark.parametrize(
    ("overrides", "message", "hint"),
    [
        ({"layer": "4"}, "--set layer: model 'm' has no param 'layer'", "did you mean 'layers'?"),
        ({"zzz": "4"}, "--set zzz: model 'm' has no param 'zzz'", "it has batch, layers"),
        ({"layers": "many"}, "--set layers=many: 'many' is not a value", "give a number, a quantity or a text"),
        ({"layers": "4 +"}, "--set layers=4 +: expected a value, found the end of the file", None),
        ({"layers": ""}, "--set layers=: expected a value, found the end of the file", None),
        ({"layers": "4\nconst b = 2"}, "--set layers=4\nconst b = 2: not one value", None),
        ({"layers": '"x"'}, '--set layers: expected a value like the number 2, got the text "x"', None),
        ({"layers": "4 GiB"}, "--set layers: expected a value like the number 2, got the size 4 GiB", None),
        ({"layers": "-1"}, "the number of repetitions must be at least 0, got -1", None),
        ({"layers": "1/0"}, "--set layers=1/0: division by zero", None),
    ],
)
def test_bad_overrides(errors_of: Errors, overrides: dict[str, str], message: str, hint: str | None) -> None:
    text = (
        "model m {\n  param layers = 2\n  param batch = 1\n  input x: tensor<batch, f32>\n"
        "  repeat layers carry x {\n    x = gelu(x)\n  }\n  output x\n}\n"
    )
    (found,) = errors_of(text, overrides)
    assert found.message == message
    if hint is not None:
        assert found.hint == hint


def test_ten_thousand_operators_are_quick(graph_of: Graphs) -> None:
    text = (
        "block layer(x: tensor<b x d, t>; hidden = 4 * d) -> y {\n a = layer_norm(x)\n"
        " u = linear(a, features = hidden)\n g = gelu(u)\n w = linear(g, features = d)\n y = residual(x, w)\n}\n"
        + HEAD
        + "  repeat 2000 carry x {\n    x = layer(x)\n  }\n  output x\n}\n"
    )
    start = time.perf_counter()
    from frontend import Source, load

    load(Source("f", text))
    assert time.perf_counter() - start < 4, "0.5 s on an idle machine"


def test_the_grammar_loads_lazily_and_quickly() -> None:
    code = (
        "import sys, time; import frontend; assert 'lark' not in sys.modules; "
        "t = time.perf_counter(); frontend.parse(frontend.Source('f', 'const a = 1')); print(time.perf_counter() - t)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(printed) < 1, "0.1 s on an idle machine"
