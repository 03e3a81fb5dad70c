"""Whatever the text, the front end ends with a module or a TaktError, and quickly."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialects.diagnostics import TaktError
from frontend import Source, load, parse
from frontend.source import library_file

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

VALID = (
    """const wide = 4 * 8
accelerator a { memory = 80 GiB bandwidth = 2 TB/s launch = 4 us peak bf16 = 312 TFLOP/s }
platform p { accelerators = 8 of a  transfers = blocking
  link node = 4 { latency = 3 us bandwidth = 100 GB/s links = 2 topology = torus(2, 2) sharing = shared
    measured all_reduce on 4 {64 KiB: 30us, 1 MiB: 55us} duplex = half }
  link all { latency = 9 us bandwidth = 10 GB/s topology = ring } }
block mlp(x: tensor<b x d, t>; hidden = wide, bias = true) -> (y, h) {
  h = linear(x, features = hidden, bias = bias)
  g = gelu(h)
  y = linear(g, features = d, split = "row")
}
model m {
  param layers = 3
  input x: tensor<4 x 8, bf16>
  repeat layers as i carry x {
    x, h = mlp(x, hidden = 8 + i)
  }
  c = op(x) time [812us, 430us] params 12 MiB output 4 MiB memory {1: 2 GiB}
  e, f = op(c) time {1: 0.5 ms, 4: 140us} output [4 MiB, 8 KiB]
  output e, f, x
}
""",
    (library_file("takt/transformer.takt")).read_text(encoding="utf-8"),
)

TOKENS = st.sampled_from(
    [
        "model",
        "block",
        "repeat",
        "carry",
        "as",
        "const",
        "param",
        "input",
        "output",
        "import",
        "platform",
        "accelerator",
        "link",
        "measured",
        "on",
        "topology",
        "ring",
        "peak",
        "op",
        "gelu",
        "linear",
        "add",
        "x",
        "y",
        "z",
        "m",
        "f",
        "1",
        "2",
        "0",
        "-1",
        "4us",
        "8",
        "GiB",
        "1.5",
        "time",
        "params",
        "memory",
        "tensor<4,f32>",
        "<",
        ">",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ",",
        ":",
        ";",
        "=",
        "+",
        "-",
        "*",
        "/",
        "%",
        "->",
        "x",
        "i32",
        "bf16",
        '"row"',
        '"takt/moe.takt"',
        "true",
        "[1us]",
        "//",
        "/*",
        "*/",
        "\n",
    ]
)


def survives(text: str) -> None:
    source = Source("f.takt", text)
    for action in (parse, load):
        try:
            action(source)
        except TaktError as error:
            check(error, text)


def check(error: TaktError, text: str) -> None:
    """An error says something, and about a place that exists."""
    lines = text.split("\n")
    assert error.diagnostics
    for diagnostic in error.diagnostics:
        place = diagnostic.location
        assert diagnostic.message
        if place is not None and place.file == "f.takt":
            assert 1 <= place.line <= len(lines)
            assert 1 <= place.column <= len(lines[place.line - 1]) + 1


@QUICK
@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    survives(text)


@QUICK
@given(data=st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.takt"
    path.write_bytes(data)
    try:
        source = Source.read(path)
    except TaktError as error:
        check(error, "")
    else:
        survives(source.text)


@QUICK
@given(st.lists(TOKENS, max_size=60))
def test_any_words(words: list[str]) -> None:
    survives(" ".join(words))


@QUICK
@given(st.lists(TOKENS, max_size=25))
def test_any_words_in_a_model(words: list[str]) -> None:
    survives("model m {\n input x: tensor<4, f32>\n " + " ".join(words) + "\n output x\n}\n")


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid file with a few words or characters taken out, doubled, swapped or replaced."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        middle = draw(st.sampled_from(["", text[start:end] * 2, "{", "}", "(", ")", " x ", " 0 ", "-", '"', "=", "\n"]))
        text = text[:start] + middle + text[end:]
    return text


@settings(QUICK, max_examples=100)
@given(mutated())
def test_mutated_files(text: str) -> None:
    survives(text)


def test_the_valid_files_are_valid() -> None:
    load(Source("f.takt", VALID[0])).verify()
    parse(Source("f.takt", VALID[1]))
