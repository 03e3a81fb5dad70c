"""``--emit mpmd``: the schedule of some micro-batches as text of the MPMD dialect of Shardy.

A mesh is a set of accelerators, ``mpmd.fragment`` a stretch of operators on one of them for one micro-batch,
``mpmd.transfer`` a value on its way to another mesh; :mod:`compiler.targets.fragments` says which, and their order is
that of the text. Operators are calls of ``takt.<kind>`` for the toolchain to fill in. What MPMD has no word for stands
in attributes ``takt.*``, which its tools keep or drop.

jaxlib numbers devices through all meshes in the order of the topology, and so knows nothing of accelerators that run
nothing: device ``d`` is entry ``d`` of ``takt.accelerators``.

Of a training schedule, backward fragments have transpose count 1, as JAX has it for what it transposed once, and
``takt.half`` says whether they make gradients of inputs (I), of weights (W) or both (B). Weight gradients add to what
lies with the parameters, so their results are empty; what the optimizer does once a step reads those of all
micro-batches.

The dialect is described in https://github.com/openxla/shardy, docs/mpmd.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal

from xdsl.dialects.builtin import ModuleOp

from compiler.targets.fragments import Argument, Body, Closing, Fragment, Fragments, Read, Result, Value
from compiler.targets.text import ranges, span_of
from compiler.view import Accelerators
from dialects.attributes import values
from dialects.diagnostics import Diagnostic, TaktError
from dialects.gradients import KINDS, ForwardAttr, GradientOp

AXIS = "accelerator"
"""The one axis of every mesh."""

MOST_LINES = 1_000_000
"""Longer texts are refused, before they fill the memory."""

Form = Literal["fragments", "calls"]


def emit(module: ModuleOp, *, microbatches: int | None = None, form: Form = "fragments") -> str:
    """A scheduled module as MPMD text, for three times the micro-batches in flight unless told: fill, steady, drain.

    ``form`` "calls" puts the body of every fragment into a function, as ``lower_to_ifrt`` wants it. Raises
    :class:`TaktError` where accelerator sets overlap without being equal, and where the text would be too long.
    """
    fragments, calls = Fragments(module, microbatches), form == "calls"
    if (lines := _length(fragments, calls)) > MOST_LINES:
        hint = "fewer --microbatches make it shorter"
        hint += "" if calls else ", and so does --emit 'mpmd{form=calls}'"
        raise TaktError(Diagnostic(f"the text would have {lines:,} lines, more than {MOST_LINES:,}", hint=hint))
    return "\n".join(_Text(fragments, calls).module()) + "\n"


def _length(fragments: Fragments, calls: bool) -> int:
    """About the number of lines."""
    view = fragments.view
    each = max(map(len, fragments.bodies)) if calls else len(view.tasks)
    return fragments.microbatches * (each + len(view.moves) + len(view.inputs))


class _Text:
    def __init__(self, fragments: Fragments, calls: bool):
        self.fragments, self.view, self.calls = fragments, fragments.view, calls
        self.names, self.tensors = _values(fragments)
        self.given = self._given()
        self.bodies: dict[Body, tuple[str, list[str]]] = {}

    def _given(self) -> dict[Argument, str]:
        """The names of arguments: ``x_3``, and ``x_3.on.8`` where another mesh is given it too."""
        found: dict[Argument, str] = {}
        taken: set[tuple[Read, int]] = set()
        for a in self.fragments.arguments:
            again = (a.read, a.microbatch) in taken
            found[a] = f"{self.names[a.read]}_{a.microbatch}" + (f".on.{a.mesh[0]}" if again else "")
            taken.add((a.read, a.microbatch))
        return found

    # --- values --------------------------------------------------------------------------------

    def name(self, source: Argument | Value) -> str:
        """``%x_3``: x of micro-batch 3 where it is made; ``%x_3.to.8``: on the mesh that begins at accelerator 8."""
        if isinstance(source, Argument):
            return f"%{self.given[source]}"
        name = f"%{self.names[_read(source)]}_{source.microbatch}"
        return name if source.mesh == self.fragments.home(source) else f"{name}.to.{source.mesh[0]}"

    def type(self, source: Argument | Value) -> str:
        """The type of a value on its mesh."""
        return f'!mpmd.mesh_tensor<"{mesh_name(source.mesh)}", {self.tensors[_read(source)]}>'

    # --- the program ---------------------------------------------------------------------------

    def module(self) -> Iterator[str]:
        """The lines of it all."""
        yield f"module @{_symbol(self.view.graph)} {{"
        yield from self.main()
        if self.calls:
            for body in self.functions:
                yield from self.function(body)
            for closing in self.updates:
                yield from self.update(closing)
        yield "}"

    def main(self) -> Iterator[str]:
        arguments = [f"{self.name(a)}: {self.type(a)} {self.argument(a)}" for a in self.fragments.arguments]
        results = [f"{self.type(r.source)} {self.result(r)}" for r in self.fragments.results]
        meshes = [f'<"{mesh_name(m)}": <["{AXIS}"={len(m)}]>>' for m in self.fragments.meshes]
        attributes = {
            "topology": f"#mpmd.topology<{_list(meshes)}>",
            "takt.accelerators": f"array<i64: {_list(str(p) for mesh in self.fragments.meshes for p in mesh)}>",
            "takt.pattern": f"{self.view.pattern} : i64",
            "takt.pattern_microbatches": f"{self.view.microbatches} : i64",
        }
        yield "  func.func public @main("
        yield ",\n".join(f"    {a}" for a in arguments)
        yield "  ) -> ("
        yield ",\n".join(f"    {r}" for r in results)
        yield f"  ) attributes {_dictionary(attributes)} {{"
        for step in self.fragments.steps:
            if isinstance(step, Closing):
                yield from self.closing(step)
            else:
                yield from self.fragment(step) if isinstance(step, Fragment) else self.transfer(step)
        yield _leave("    return", [(self.name(r.source), self.type(r.source)) for r in self.fragments.results])
        yield "  }"

    def argument(self, a: Argument) -> str:
        """What an argument is."""
        if a.read.kind == "input":
            return _about(input=self.view.inputs[a.read.subject].name, microbatch=a.microbatch)
        return _about(state=self.fragments.states[a.read.subject].name, microbatch=a.microbatch)

    def result(self, r: Result) -> str:
        """What a result is."""
        if r.kind == "output":
            return _about(output=self.view.outputs[r.subject].name, microbatch=r.microbatch)
        return _about(state=self.fragments.states[r.subject].name, microbatch=r.microbatch)

    def transfer(self, value: Value) -> Iterator[str]:
        """A value goes to the mesh that receives it."""
        home, move = value._replace(mesh=self.fragments.home(value)), self.fragments.move(value)
        about = ""
        if move is not None:
            i = value.microbatch
            start, landing = int(self.view.begin(move, i)), int(self.view.landing(move, i))
            later = {"landing": landing} if landing != start else {}
            about = _about(link=move.link, start=start, time=move.time, **later) + " "
        ends = f"({self.type(home)}) -> {self.type(value)}"
        yield f"    {self.name(value)} = mpmd.transfer {about}{self.name(home)} : {ends}"

    def fragment(self, fragment: Fragment) -> Iterator[str]:
        """A fragment with its body, or the call of one."""
        body, i = fragment
        sources = [self.fragments.source(read, i, body.mesh) for read in body.reads]
        results = [Value(r.subject, r.result, i, body.mesh) for r in body.results]
        tasks = [self.view.tasks[v] for v in body.tasks]
        half = self.half(body)
        transposed = "(1)" if half in ("I", "W", "B") else ""
        origin = f'mesh="{mesh_name(body.mesh)}", origin=[{_string(span_of(tasks))}{transposed}]'
        about = {
            "call_counter": f"{i} : ui32",
            "takt.stages": f"array<i64: {_list(str(s) for s in dict.fromkeys(t.stage or 0 for t in tasks))}>",
            "takt.start": f"{int(self.view.begin(tasks[0], i))} : i64",
        }
        if half:
            about["takt.half"] = _string(half)
        line = f"    {_list(map(self.name, results))} = " if results else "    "
        operands, ends = _list(map(self.name, sources)), _ends(map(self.type, sources), list(map(self.type, results)))
        if self.calls:
            call = f"mpmd.fragment_call<{origin}> @{self.functions[body]}({operands})"
            yield f"{line}{call} {_dictionary(about)} : {ends}"
        else:
            header, lines = self.body(body)
            yield f"{line}mpmd.fragment<{origin}, stage={body.stage}> ({operands}) {_dictionary(about)} ({header}) {{"
            yield from lines
            yield f"    }} : {ends}"

    def half(self, body: Body) -> str:
        """What a fragment of a training schedule is: F, I, W, or B for both of these; nothing of another schedule."""
        if self.view.training is None:
            return ""
        found = {self.fragments.halves[v] for v in body.tasks}
        return "B" if len(found) > 1 else found.pop()

    def closing(self, closing: Closing) -> Iterator[str]:
        """What the optimizer does once a step."""
        update, mesh = self.view.updates[closing.update], mesh_name(closing.mesh)
        sources, types = _list(map(self.name, closing.sources)), _list(map(self.type, closing.sources))
        about = _dictionary({"takt.start": f"{update.start} : i64", "takt.time": f"{update.time} : i64"})
        head = f'mesh="{mesh}", origin=[{_string(update.name)}]'
        if self.calls:
            yield f"    mpmd.fragment_call<{head}> @{self.updates[closing]}({sources}) {about} : ({types}) -> ()"
            return
        parameters, lines = self.step(closing)
        yield f"    mpmd.fragment<{head}> ({sources}) {about} ({parameters}) {{"
        yield from [*lines, "      mpmd.return"]
        yield f"    }} : ({types}) -> ()"

    @cached_property
    def updates(self) -> dict[Closing, str]:
        """What the optimizer does, and the names of its functions."""
        return {closing: f"update.{closing.update}.on.{closing.mesh[0]}" for closing in self.fragments.closings}

    def step(self, closing: Closing) -> tuple[str, list[str]]:
        """Parameters and lines of the body of a step of the optimizer."""
        update = self.view.updates[closing.update]
        tensors = [self.tensors[_read(source)] for source in closing.sources]
        names = [f"%g{n}" for n in range(len(tensors))]
        about = {
            "api_version": "4 : i32",
            "takt.name": _string(update.name),
            "takt.group": _string(update.group),
            "has_side_effect": "true",
        }
        call = f"stablehlo.custom_call @takt.optimizer_step({_list(names)}) {_dictionary(about)}"
        line = f"      %done = {call} : ({_list(tensors)}) -> tensor<0xi8>"
        return _list(f"{n}: {t}" for n, t in zip(names, tensors, strict=True)), [line]

    # --- bodies --------------------------------------------------------------------------------

    @cached_property
    def functions(self) -> dict[Body, str]:
        """Distinct bodies and the names of their functions."""
        bodies = dict.fromkeys(body for turn in self.fragments.bodies for body in turn)
        return {body: f"stage.{body.stage}.on.{body.mesh[0]}" for body in bodies}

    def function(self, body: Body) -> Iterator[str]:
        """A body as a function."""
        header, lines = self.body(body)
        results = _result_types([self.tensors[r] for r in body.results])
        attributes = f'attributes {{mesh_shape = #sdy.mesh<["{AXIS}"={len(body.mesh)}]>}}'
        yield f"  func.func private @{self.functions[body]}({header}) -> {results} {attributes} {{"
        yield from lines
        yield "  }"

    def update(self, closing: Closing) -> Iterator[str]:
        """A step of the optimizer as a function."""
        parameters, lines = self.step(closing)
        attributes = f'attributes {{mesh_shape = #sdy.mesh<["{AXIS}"={len(closing.mesh)}]>}}'
        yield f"  func.func private @{self.updates[closing]}({parameters}) {attributes} {{"
        yield from [*lines, "      return", "  }"]

    def body(self, body: Body) -> tuple[str, list[str]]:
        """Parameters and lines of a body; they say nothing of a micro-batch, so they are made once."""
        if body not in self.bodies:
            header = _list(f"%{self.names[r]}: {self.tensors[r]}" for r in body.reads)
            lines = [f"      {self.operator(v)}" for v in body.tasks]
            leave = "      return" if self.calls else "      mpmd.return"
            lines.append(_leave(leave, [(f"%{self.names[r]}", self.tensors[r]) for r in body.results]))
            self.bodies[body] = header, lines
        return self.bodies[body]

    def operator(self, v: int) -> str:
        """An operator as a call: what a kernel needs to know as its configuration, the rest for people and tools."""
        op, task = self.fragments.operators[v], self.view.tasks[v]
        arguments = {name: str(op.properties[name]) for name in op.signature() if name in op.properties}
        reads = self.fragments.reads[v]
        results = [Read("value", v, r) for r in range(len(op.results))]
        if isinstance(op, GradientOp):
            arguments = _forward(op.of)
        about = {
            "backend_config": _dictionary({**arguments, "params": f"{op.params.value.data} : i64"}),
            # The fourth version is the one with a dictionary.
            "api_version": "4 : i32",
            "takt.name": _string(task.name),
            **({} if self.view.step else {"takt.start": f"{task.start} : i64"}),
            "takt.time": f"{task.time} : i64",
        }
        if task.group is not None:
            about["takt.group"] = _string(task.group)
        if task.sharded:
            about["takt.sharded"] = f"array<i64: {_list(map(str, task.sharded))}>"
        if not any(self.fragments.is_read(r) for r in results):
            # Else the tools of MPMD would leave out what the schedule runs.
            about["has_side_effect"] = "true"
        ends = _ends((self.tensors[r] for r in reads), [self.tensors[r] for r in results])
        call = f"stablehlo.custom_call @takt.{task.kind}({_list(f'%{self.names[r]}' for r in reads)})"
        return f"{_list(f'%{self.names[r]}' for r in results)} = {call} {_dictionary(about)} : {ends}"


def _forward(of: ForwardAttr) -> dict[str, str]:
    """What a gradient is of: kind and arguments of the forward operator, whose gradients arrive, and which are made."""
    known = of.values_of_arguments()
    encoded = {
        n: str(c.encode(known[n])) for n, (c, _, _) in KINDS[of.kind.data].signature().items() if known[n] is not None
    }
    listed = {
        name: f"array<i64: {_list(map(str, values(a)))}>" for name, a in (("arriving", of.arriving), ("made", of.made))
    }
    return {"of": _string(of.kind.data), **encoded, **{n: t.replace(": >", ">") for n, t in listed.items()}}


# --- names ---------------------------------------------------------------------------------------


def mesh_name(mesh: Accelerators) -> str:
    """A mesh by its accelerators, as ranges of the IR: ``acc0:2,4:6``."""
    return f"acc{ranges(mesh).replace(' ', ',')}"


def _read(source: Argument | Value) -> Read:
    """What a value is, of whatever micro-batch and mesh."""
    return source.read if isinstance(source, Argument) else Read("value", source.producer, source.result)


def _values(fragments: Fragments) -> tuple[dict[Read, str], dict[Read, str]]:
    """For everything that is read, a name that MLIR takes and that nothing else has, and its type."""
    tensors: dict[Read, str] = {}
    wanted: dict[Read, str] = {}
    for n, op in enumerate(fragments.graph.inputs()):
        tensors[Read("input", n)], wanted[Read("input", n)] = str(op.output.type), fragments.view.inputs[n].name
    for n, op in enumerate(fragments.graph.states()):
        tensors[Read("state", n)], wanted[Read("state", n)] = str(op.output.type), op.state.data
    for v, (op, task) in enumerate(zip(fragments.operators, fragments.view.tasks, strict=True)):
        for r, value in enumerate(op.results):
            tensors[Read("value", v, r)] = str(value.type)
            wanted[Read("value", v, r)] = (value.name_hint if r else None) or f"{task.name}" + (f".{r}" if r else "")
    names: dict[Read, str] = {}
    taken: set[str] = set()
    for read, given in wanted.items():
        name = re.sub(r"[^A-Za-z0-9_.$]", "-", given)
        name = name if re.match(r"[A-Za-z]", name) else f"v{name}"
        while name in taken:
            name += "-"
        taken.add(name)
        names[read] = name
    return names, tensors


# --- pieces of text ------------------------------------------------------------------------------


def _string(text: str) -> str:
    """A string of MLIR; what is not printable ASCII stands as bytes."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in text.encode()) + '"'


def _symbol(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$.]*", name) else _string(name)


def _list(parts: Iterable[str]) -> str:
    return ", ".join(parts)


def _dictionary(entries: Mapping[str, str]) -> str:
    return f"{{{_list(f'{name} = {value}' for name, value in entries.items())}}}"


def _about(**entries: str | int) -> str:
    """Attributes of takt."""
    texts = {name: _string(e) if isinstance(e, str) else f"{e} : i64" for name, e in entries.items()}
    return _dictionary({f"takt.{name}": text for name, text in texts.items()})


def _result_types(types: Sequence[str]) -> str:
    return types[0] if len(types) == 1 else f"({_list(types)})"


def _ends(operands: Iterable[str], results: Sequence[str]) -> str:
    """Types of operands and results."""
    return f"({_list(operands)}) -> {_result_types(results)}"


def _leave(word: str, values: Sequence[tuple[str, str]]) -> str:
    """A terminator and the values, with types, that it returns."""
    return f"{word} {_list(v for v, _ in values)} : {_list(t for _, t in values)}" if values else word
