"""Reading files, and imports between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from dialects.diagnostics import Diagnostic, TaktError
from frontend import Source, load
from frontend.program import MAX_IMPORT_DEPTH
from frontend.source import MAX_BYTES, find_source, library_file

MODEL = "model m {\n  input x: tensor<4 x 8, bf16>\n  output x\n}\n"

Write = Callable[[Mapping[str, str | bytes]], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write files into a fresh working directory and return the first."""
    monkeypatch.chdir(tmp_path)

    def write_files(files: Mapping[str, str | bytes]) -> Path:
        for name, content in files.items():
            path = Path(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return Path(next(iter(files)))

    return write_files


def errors(path: str | Path, **options: object) -> list[Diagnostic]:
    with pytest.raises(TaktError) as failure:
        load(Source.read(path), **options)  # pyright: ignore[reportArgumentType]
    return list(failure.value.diagnostics)


def only(found: list[Diagnostic]) -> tuple[str, str, str | None]:
    (diagnostic,) = found
    place = diagnostic.location
    shown = f"{place}+{place.length}" if place else ""
    return shown, diagnostic.message, diagnostic.hint


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        (b"model m {\n  \xff\xfe\n}", "f.takt:2:3+1", "not UTF-8 text: byte 0xff"),
        (b"\x7fELF\x02\x01\x01\x00", "f.takt:1:1+1", "unexpected control character U+007F"),
        (b"model m {\n  x\x00y\n}", "f.takt:2:4+1", "unexpected control character U+0000"),
        (b"", "f.takt:1:1+1", "the file is empty: no model in it"),
        (b" \n// only a comment\n", "f.takt:1:1+1", "the file is empty: no model in it"),
        ("\u2603 model".encode(), "f.takt:1:1+1", "unexpected character '\u2603'"),
        (b'import "abc\n', "f.takt:1:8+1", "this text has no closing quote on its line"),
        (b"/* abc", "f.takt:1:1+2", "this comment never ends"),
    ],
)
def test_files_that_are_no_models(write: Write, content: bytes, place: str, message: str) -> None:
    assert only(errors(write({"f.takt": content})))[:2] == (place, message)


def test_a_missing_file_suggests_its_neighbour(write: Write) -> None:
    write({"model.takt": MODEL})
    assert only(errors("modle.takt")) == (
        "",
        "cannot read 'modle.takt': No such file or directory",
        "did you mean 'model.takt'?",
    )
    assert "cannot read '.'" in errors(".")[0].message


def test_a_byte_order_mark_and_carriage_returns_are_no_errors(write: Write) -> None:
    load(Source.read(write({"f.takt": b"\xef\xbb\xbf" + MODEL.replace("\n", "\r\n").encode()})))


def test_an_enormous_file_is_refused(write: Write) -> None:
    path = write({"f.takt": b" " * (MAX_BYTES + 1)})
    assert errors(path)[0].message == "'f.takt' is longer than 16 MiB"


def test_imports_see_blocks_and_constants_of_other_files(write: Write) -> None:
    path = write(
        {
            "models/m.takt": 'import "../lib/b.takt"\n'
            "model m {\n input x: tensor<k x 8, f32>\n y = f(x)\n output y\n}\n",
            "lib/b.takt": 'import "c.takt"\nblock f(x: tensor<b x d, t>; wide = 2 * k) -> y {\n'
            " y = linear(x, features = wide)\n}\n",
            "lib/c.takt": "const k = 3\n",
        }
    )
    module = load(Source.read(path))
    module.verify()
    assert "tensor<3x6xf32>" in str(module)
    assert "lib/b.takt" in {str(op.location.filename.data) for op in module.walk() if hasattr(op.location, "filename")}  # pyright: ignore


def test_a_file_imported_twice_is_read_once(write: Write) -> None:
    path = write(
        {
            "m.takt": 'import "a.takt"\nimport "b.takt"\n' + MODEL,
            "a.takt": 'import "c.takt"\nconst a = k\n',
            "b.takt": 'import "./c.takt"\nconst b = k\n',
            "c.takt": "const k = 3\n",
        }
    )
    load(Source.read(path))


def test_import_cycles_print_the_chain(write: Write) -> None:
    path = write({"a.takt": 'import "b.takt"\n' + MODEL, "b.takt": 'import "c.takt"\n', "c.takt": 'import "b.takt"\n'})
    assert only(errors(path))[:2] == (
        "c.takt:1:8+8",
        "files import one another in a cycle: b.takt -> c.takt -> b.takt",
    )
    path = write({"self.takt": 'import "self.takt"\n' + MODEL})
    assert only(errors(path))[1] == "files import one another in a cycle: self.takt -> self.takt"


def test_bad_imports(write: Write) -> None:
    path = write(
        {"m.takt": 'import "nowhere.takt"\nimport "/etc/passwd"\nimport "takt/../ast.py"\nimport ""\n' + MODEL}
    )
    assert [f"{d.location}: {d.message}" for d in errors(path)] == [
        "m.takt:1:8: cannot read 'nowhere.takt': No such file or directory",
        'm.takt:2:8: cannot import "/etc/passwd"',
        'm.takt:3:8: the library has no folders: "takt/../ast.py"',
        'm.takt:4:8: cannot import ""',
    ]


def test_errors_of_an_imported_file_are_located_there(write: Write) -> None:
    path = write({"m.takt": 'import "a.takt"\n' + MODEL, "a.takt": "block f(x) -> y {\n  y = gleu(x)\n}\n"})
    assert only(errors(path))[0] == "a.takt:2:7+4"
    path = write({"m.takt": 'import "a.takt"\n' + MODEL, "a.takt": "block f(x -> y {\n}\n"})
    assert only(errors(path))[0] == "a.takt:1:11+2"


def test_names_that_two_files_define(write: Write) -> None:
    path = write(
        {
            "m.takt": 'import "a.takt"\nimport "b.takt"\nconst z = 1\n' + MODEL,
            "a.takt": "const k = 1\nconst z = 1\n",
            "b.takt": "const k = 2\n",
        }
    )
    found = errors(path)
    assert [f"{d.location}: {d.message}" for d in found] == [
        "m.takt:2:8: this import defines 'k', which another import defines too",
        "m.takt:3:7: constant 'z' is already defined",
    ]
    assert [str(n.location) for n in found[0].notes] == ["a.takt:1:7", "b.takt:1:7"]


def test_a_long_chain_of_imports_is_refused(write: Write) -> None:
    count = MAX_IMPORT_DEPTH + 5
    files = {f"f{i}.takt": f'import "f{i + 1}.takt"\n' + (MODEL if i == 0 else "") for i in range(count)}
    assert only(errors(write({**files, f"f{count}.takt": ""})))[1] == "imports nest deeper than 32 files"


def test_the_library_is_importable_and_found_by_its_name(write: Write) -> None:
    names = sorted(p.name for p in library_file("takt/").glob("*.takt"))
    assert names
    path = write({"m.takt": "".join(f'import "takt/{n}"\n' for n in names) + MODEL})
    load(Source.read(path))
    source = find_source(f"takt/{names[0]}")
    assert source is not None
    assert source.text == library_file(f"takt/{names[0]}").read_text()
    assert find_source("nowhere.takt") is None


def test_a_platform_file(write: Write) -> None:
    write({"m.takt": MODEL, "p.takt": "const k = 1\n", "q.takt": "platform a {\n}\nplatform b {\n}\n"})
    model = Source.read("m.takt")
    for name, message in (
        ("p.takt", "no platform in this file"),
        ("q.takt", "several platforms are defined, one is needed"),
    ):
        with pytest.raises(TaktError) as failure:
            load(model, platform=Source.read(name))
        assert message in [d.message for d in failure.value.diagnostics]
    write({"p.takt": "platform a {\n}\n"})
    assert "no model in this file" in [d.message for d in errors("p.takt")]


def test_errors_of_model_and_platform_come_together(write: Write) -> None:
    write({"m.takt": "model m {\n  y = \n}\n", "p.takt": "platform p {\n  accelerators = \n}\n"})
    found = errors("m.takt", platform=Source.read("p.takt"))
    assert [str(d.location) for d in found] == ["m.takt:3:1", "p.takt:3:1"]
