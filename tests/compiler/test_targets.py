"""JSON, summary and SVG of small schedules: what they must say, and that what they say is well formed."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import jsonschema
import pytest
from xdsl.dialects.builtin import ModuleOp, StringAttr

from compiler.targets import TARGETS, emitter
from compiler.targets.analysis import Analysis
from compiler.targets.gantt import Chart
from compiler.targets.json import schema
from compiler.targets.text import percent, ranges, short_time
from compiler.view import view_of

Build = Callable[..., ModuleOp]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def spec(operator: Any) -> dict[str, Any]:
    """Two stages on four accelerators: stage 1 sets the period of 40 us, stage 0 is busy for half of it."""
    operators = [
        operator("emb", ["x"], 5_000, [[0]], 0, results=[64], params=2**20, output=64, stage=0),
        operator("a", ["emb"], 20_000, [[0, 1]], 5_000, results=[64], params=2**21, output=32, stage=0, block=("l", 0)),
        operator("b", ["a"], 39_000, [[2, 3]], 25_000, results=[64], output=32, workspace=9, stage=1, block=("l", 1)),
        operator("head", ["b", "emb"], 1_000, [[2]], 64_000, results=[8], output=8, stage=1),
    ]
    return {
        "operators": operators,
        "pattern": 40_000,
        "accelerators": 4,
        "memory": 2**30,
        "bound": 32_000,
        "inputs": {"x": 128},
        "outputs": ["head"],
        "stages": [[0, 1], [2, 3]],
    }


@pytest.fixture
def replicated(operator: Any) -> dict[str, Any]:
    """b takes 18 ns of a period of 10 on two copies."""
    operators = [
        operator("a", [], 10, [[0]], 0, results=[8], output=8),
        operator("b", ["a"], 18, [[1, 4], [2, 5]], 10, results=[4], output=4),
        operator("c", ["b"], 9, [[3]], 28, results=[1]),
    ]
    return {"operators": operators, "pattern": 10, "accelerators": 7}


@pytest.fixture
def large(operator: Any) -> dict[str, Any]:
    """A chain of 1252 operators in blocks of 13 on 16 stages of four accelerators each."""
    per = 79
    operators = [
        operator(
            f"layer.{v // 13}.op{v % 13}",
            [f"layer.{(v - 1) // 13}.op{(v - 1) % 13}"] if v else [],
            900 if v % 3 else 100,
            [range(4 * (v // per), 4 * (v // per) + 4 - 2 * (v % 2))],
            1000 * v,
            results=[10],
            output=10,
            stage=v // per,
            block=("layer", v // 13),
        )
        for v in range(1252)
    ]
    return {
        "operators": operators,
        "pattern": 1000 * per,
        "accelerators": 64,
        "stages": [range(4 * s, 4 * s + 4) for s in range(16)],
    }


# --- JSON ------------------------------------------------------------------------------------


def test_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("name", ["spec", "replicated", "large"])
def test_json_matches_its_schema(build: Build, request: pytest.FixtureRequest, name: str) -> None:
    document = json.loads(emitter("json")(build(**request.getfixturevalue(name))))
    jsonschema.Draft202012Validator(schema()).validate(document)


def test_schema_rejects_what_does_not_belong(build: Build, spec: dict[str, Any]) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    for path, value in [
        (("schedule", "pattern"), 0),
        (("schedule", "period"), "40 us"),
        (("operators", 0, "start"), 0.5),
        (("operators", 0, "copies"), []),
        (("operators", 0, "note"), "extra"),
        (("version",), 1),
    ]:
        document = json.loads(emitter("json")(build(**spec)))
        place = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        assert not validator.is_valid(document), path


def test_json_says_everything(build: Build, spec: dict[str, Any]) -> None:
    document = json.loads(emitter("json")(build(**spec)))
    assert document["schedule"] | {"plan": "", "engine": ""} == {
        "pattern": 40_000,
        "microbatches": 1,
        "period": 40_000,
        "bound": 32_000,
        "bound_by": "area",
        "latency": 65_000,
        "in_flight": 2,
        "crossing": 64 + 64 + 64 + 64,
        "plan": "",
        "engine": "",
        "seed": 0,
        "limits": {},
    }
    assert document["operators"][2] == {
        "name": "b",
        "kind": "op",
        "stage": 1,
        "block": {"name": "l", "index": 1},
        "allotment": 2,
        "copies": [[2, 3]],
        "start": 25_000,
        "time": 39_000,
        "parameters": 0,
        "output": 32,
        "workspace": 9,
        "results": [64],
    }
    assert document["dependences"][2] == {
        "producer": "b",
        "consumer": "head",
        "results": [0],
        "size": 64,
        "distance": 0,
    }
    assert [a["load"] for a in document["accelerators"]] == [0.625, 0.5, 1.0, 0.975]
    assert document["accelerators"][1]["parameters"] == 2**21
    assert document["inputs"] == [{"name": "x", "size": 128, "consumers": ["emb"]}]
    assert document["outputs"] == [{"name": "head", "producer": "head", "result": 0, "size": 8}]


def test_json_has_a_line_for_each_operator(build: Build, spec: dict[str, Any]) -> None:
    before = emitter("json")(build(**spec)).splitlines()
    spec["operators"][3] = replace(spec["operators"][3], workspace=5)
    after = emitter("json")(build(**spec)).splitlines()
    changed = [line for line in after if line not in before]
    assert [json.loads(line.strip().rstrip(","))["workspace"] for line in changed if '"workspace"' in line] == [5]


# --- summary ---------------------------------------------------------------------------------


def test_summary_says_what_matters(build: Build, spec: dict[str, Any]) -> None:
    text = emitter("summary")(build(**spec), width=120)
    for expected in [
        "test on board: 4 x chip",
        "40 us  (25,000 micro-batches/s)",
        "32 us  (area); the period is at most 25.00 % above it",
        "65 us, 2 micro-batches in flight",
        "min 50.0 %, mean 77.5 %, max 100.0 %; bubble 22.5 %",
        "256 B cross between accelerator sets per micro-batch",
        "4 operators",
        "accelerator 2, busy for 100.00 % of the period",
        "b 39 us on 2, head 1 us on 1 (97.5 % of the period)",
    ]:
        assert " ".join(expected.split()) in " ".join(text.split())
    rows = [line.split() for line in text.splitlines() if re.match(r"\s*\*?[01]  ", line)]
    assert rows[0][:3] == ["0", "0:2", "2"]
    assert rows[1][:3] == ["*1", "2:4", "2"]
    advice = "Stage 1 sets the period, while stage 0 has accelerators busy for only 62.5 % of it"
    assert advice in " ".join(text.split())


def test_summary_is_plain_unless_asked(build: Build, spec: dict[str, Any]) -> None:
    assert "\x1b" not in emitter("summary")(build(**spec))
    assert "\x1b[" in emitter("summary")(build(**spec), colour=True)


@pytest.mark.parametrize("width", [20, 60, 80, 100, 130, 500])
def test_summary_fits_its_width(build: Build, large: dict[str, Any], width: int) -> None:
    text = emitter("summary")(build(**large), width=width)
    assert max(map(len, text.splitlines())) <= min(130, max(60, width))
    assert re.search(r"^ +\*1?[0-9] ", text, re.M)


def test_many_stages_are_left_out_in_the_middle(build: Build, operator: Any) -> None:
    count = 100
    operators = [operator(f"v{v}", [], 9 if v == 50 else 5, [[v]], 0, stage=v) for v in range(count)]
    text = emitter("summary")(build(operators, 9, count, stages=[[v] for v in range(count)]), width=100)
    assert re.search(r"^\s*\*50 ", text, re.M)
    assert text.count("...") == 2
    assert not re.search(r"^\s*49 ", text, re.M)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bound": 40_000}, "No period is shorter (area)"),
        ({"accelerators": 6}, "2 accelerators of 6 are left idle: the same period needs only 4"),
        (
            {"memory": 2**21 + 2**20 + 400},
            "Memory is nearly full: accelerator 0 needs 3.00 MiB of 3.00 MiB, mostly param",
        ),
    ],
)
def test_advice_follows_the_numbers(build: Build, spec: dict[str, Any], change: dict[str, Any], sentence: str) -> None:
    assert any(sentence in s for s in Analysis(build(**(spec | change))).advice())
    assert not any(sentence in s for s in Analysis(build(**spec)).advice())


def test_advice_on_an_operator_as_long_as_the_period(build: Build, operator: Any) -> None:
    module = build([operator("a", [], 10, [[0]], 0)], 10, 1, bound=9)
    assert "'a' alone takes 100 % of the period on 1, its best allotment" in Analysis(module).advice()[0]


def test_analysis_of_a_graph_without_operators(build: Build) -> None:
    text = emitter("summary")(build([], 5, 2), width=80)
    assert "0 operators" in text
    assert "2 accelerators idle (0:2)" in " ".join(text.split())


# --- SVG -------------------------------------------------------------------------------------


def rectangles(svg: str) -> list[tuple[str, dict[str, float]]]:
    """Tooltip and geometry of every operator."""
    root = ET.fromstring(svg)
    return [
        (title.text or "", {k: float(rect.attrib[k]) for k in ("x", "y", "width", "height")})
        for rect in root.iter(f"{SVG}rect")
        if (title := rect.find(f"{SVG}title")) is not None
    ]


def test_svg_places_operators(build: Build, spec: dict[str, Any]) -> None:
    svg = emitter("svg")(build(**spec), width=1000)
    drawn = rectangles(svg)
    a = next(r for t, r in drawn if t.startswith("a\nmicro-batch n,"))
    b = next(r for t, r in drawn if t.startswith("b\nmicro-batch n,"))
    earlier = next(r for t, r in drawn if t.startswith("b\nmicro-batch n−1,"))  # noqa: RUF001
    # a runs 20 of 40 us on two rows; b 39, of which 23 lie before the end of the window at 48.
    assert a["width"] == pytest.approx(b["width"] * 20 / 23, rel=0.01)
    assert a["height"] == b["height"] > b["height"] / 2
    assert b["x"] == pytest.approx(a["x"] + a["width"], abs=0.2)
    assert b["y"] > a["y"] + a["height"]
    assert earlier["x"] < a["x"]
    for text in ["one period: 40 us", "stage 0", "stage 1", "gap 25.0 %", "100.0 %", ">idle<", "test on board"]:
        assert text in svg


def test_svg_rectangles_never_overlap(build: Build, large: dict[str, Any], replicated: dict[str, Any]) -> None:
    for module in (build(**large), build(**replicated)):
        drawn = sorted((r for _, r in rectangles(emitter("svg")(module))), key=lambda r: r["x"])
        last: dict[float, float] = {}
        for r in drawn:
            assert r["x"] >= last.get(r["y"], 0.0) - 0.11
            last[r["y"]] = r["x"] + r["width"]


def test_svg_of_many_operators_is_small(build: Build, large: dict[str, Any]) -> None:
    svg = emitter("svg")(build(**large))
    assert len(svg) < 10**6
    assert svg.count("<title>") > 500


def test_pieces_keep_all_time(build: Build, large: dict[str, Any]) -> None:
    chart = Chart.of(view_of(build(**large)))
    view = chart.view
    for least in (Fraction(0), Fraction(2000)):
        busy = {row: Fraction(0) for row in range(64)}
        for piece in chart.pieces(least):
            # Joined operators follow each other without a gap here, or with one the eye cannot see.
            for row in range(piece.top, piece.bottom):
                inside = min(piece.end, view.period) - max(piece.begin, Fraction(0))
                busy[row] += max(Fraction(0), inside)
        for row, p in enumerate(chart.rows):
            assert abs(busy[row] - view.load[p]) <= view.period / 20


def test_svg_of_thousands_of_accelerators(build: Build, operator: Any) -> None:
    svg = emitter("svg")(build([operator("a", [], 10, [range(2048)], 0)], 10, 4096))
    assert len(svg) < 10**5
    assert ET.fromstring(svg).attrib["width"] == "1280"


def test_svg_escapes_names(build: Build, operator: Any) -> None:
    module = build([operator("a", [], 10, [[0]], 0)], 10, 1)
    graph = next(op for op in module.walk() if op.name == "takt.graph")
    graph.properties["sym_name"] = StringAttr("a<b>&")
    root = ET.fromstring(emitter("svg")(module))
    assert next(root.iter(f"{SVG}text")).text == "a<b>& on board: 1 x chip"


def test_svg_of_a_graph_without_operators(build: Build) -> None:
    assert ET.fromstring(emitter("svg")(build([], 5, 2))) is not None


# --- small things ----------------------------------------------------------------------------


def test_every_target_has_an_emitter(build: Build, spec: dict[str, Any]) -> None:
    module = build(**spec)
    for name in TARGETS:
        emit = emitter(name)
        if name in ("json", "perfetto", "svg", "summary"):  # other tools do not know every schedule
            assert emit(module).endswith("\n")
    with pytest.raises(KeyError):
        emitter("png")


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (7, "7 ns"),
        (8_120_000, "8.12 ms"),
        (8_120_001, "8.120 ms"),
        (Fraction(7, 2), "3.5 ns"),
        (10**9, "1 s"),
    ],
)
def test_short_time(ns: int | Fraction, text: str) -> None:
    assert short_time(ns) == text


def test_short_forms() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0:3 5:6 7:9"
    assert percent(Fraction(1, 3)) == "33.3 %"
