"""Readers of outside instances: each returns scheduling problems, nothing of it depends on an instance's name.

The data is not part of the repository. It is looked for in the folder that the environment variable
``TAKT_INSTANCES`` names, else in ``../shared/instances`` beside the repository.
"""

from __future__ import annotations

import bz2
import csv
import importlib.util
import json
import os
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from passes.scheduling.data import Cost, Dependence, Operation, Table
from passes.scheduling.network import NOTHING, NS, Level, Members, Network, Price
from passes.scheduling.problem import MemoryProblem, PeriodicProblem

ROOT = Path(__file__).resolve().parents[2]


class Absent(Exception):
    """The data of a section is not on this machine."""


def instance_folder(name: str) -> Path:
    """The folder of a suite; raises :class:`Absent` when it is not there."""
    folder = Path(os.environ.get("TAKT_INSTANCES") or ROOT.parent / "shared" / "instances") / name
    if not folder.is_dir():
        raise Absent(f"there is no folder {folder} (set TAKT_INSTANCES)")
    return folder


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- dnn-partitioning ------------------------------------------------------------------------


def read_partitioning(path: Path, accelerators: int) -> PeriodicProblem:
    """A graph of ``dnn-partitioning``, without communication and memory; times there are ms.

    Operations on one accelerator each; those of one colour must share one.
    """
    data = json.loads(path.read_text())
    number = {node["id"]: v for v, node in enumerate(data["nodes"])}
    classes: dict[Any, list[int]] = {}
    operations: list[Operation] = []
    for v, node in enumerate(data["nodes"]):
        operations.append(Operation(str(node.get("name", node["id"])), {1: Cost(round(node["fpgaLatency"] * 1e6))}))
        color = node.get("colorClass")
        if color is not None:
            classes.setdefault(color, []).append(v)
    edges = {(number[e["sourceId"]], number[e["destId"]]) for e in data["edges"]}
    dependences = tuple(Dependence(u, v) for u, v in sorted(edges))
    together = tuple(tuple(members) for members in classes.values() if len(members) > 1)
    return PeriodicProblem(tuple(operations), dependences, (), accelerators, together=together)


@dataclass(frozen=True)
class HostCopies(Network):
    """Accelerators that exchange values through the host: a copy takes ``times[producer]`` ns, out and in again."""

    times: tuple[int, ...] = ()

    def price(self, d: Dependence, source: Members, target: Members) -> Price:
        found = super().price(d, source, target)
        return found if found is NOTHING else replace(found, time=self.times[d.producer])


def read_linked_partitioning(path: Path, accelerators: int | None = None) -> MemoryProblem:
    """A graph of ``dnn-partitioning`` with its communication and memory, on the accelerators that it names.

    A value that is read on another accelerator keeps its producer's busy for the cost of its edges, and each
    other accelerator that reads it for as long: mode ``buffered``. Only parameters need memory; a value counts
    one byte, or none where moving it takes no time.
    """
    data = json.loads(path.read_text())
    count = data["maxFPGAs"] if accelerators is None else accelerators
    plain = read_partitioning(path, count)
    number = {node["id"]: v for v, node in enumerate(data["nodes"])}
    sizes = [int(node["size"]) for node in data["nodes"]]
    times = [0] * len(sizes)
    for edge in data["edges"]:
        times[number[edge["sourceId"]]] = round(edge["cost"] * 1e6)
    dependences = tuple(replace(d, bytes=min(1, times[d.producer])) for d in plain.dependences)
    network = HostCopies((Level("host", count, 0, NS),), "buffered", times=tuple(times))
    operations = _sized(plain, sizes)
    return MemoryProblem(
        operations,
        dependences,
        (),
        count,
        memory=int(data["maxSizePerFPGA"]),
        together=plain.together,
        network=network,
    )


def _sized(problem: PeriodicProblem, sizes: Sequence[int]) -> tuple[Operation, ...]:
    """The operations with parameters such that a group stores the ``sizes`` of all its members, once."""
    total = list(sizes)
    for group in problem.together:
        for v in group:
            total[v] = sum(sizes[u] for u in group)
    return tuple(
        replace(o, table={1: replace(o.table[1], params=size)})
        for o, size in zip(problem.operations, total, strict=True)
    )


# --- piper -----------------------------------------------------------------------------------


def read_piper(path: Path, accelerators: int) -> MemoryProblem:
    """A graph of Piper at every tensor-parallel degree; times are s. No recomputation, communication, memory."""
    data = json.loads(path.read_text())
    number = {node["id"]: v for v, node in enumerate(data["nodes"])}
    tables: dict[tuple[tuple[int, int], ...], Table] = {}
    operations: list[Operation] = []
    for node in data["nodes"]:
        columns = tuple(
            (int(k), round(min(m["timePerSample"] for m in modes if m["id"] == "vanilla") * 1e9))
            for k, modes in node["TMPCs"].items()
        )
        table = tables.setdefault(columns, {k: Cost(t) for k, t in columns})
        operations.append(Operation(f"{node['name']}.{node['id']}", table))
    edges = {(number[e["sourceId"]], number[e["destId"]]) for e in data["edges"]}
    return MemoryProblem(tuple(operations), tuple(Dependence(u, v) for u, v in sorted(edges)), (), accelerators)


# --- hatschet --------------------------------------------------------------------------------


def read_loop(graph: Path, resources: Path) -> PeriodicProblem:
    """A loop of high-level synthesis with all its resources unlimited: an accelerator for each operation.

    One cycle is one ns. The extra delay of an edge is an operation of its own, that takes so long.
    """
    latency = {r.attrib["name"]: int(r.attrib["latency"]) for r in ElementTree.parse(resources).iter("Resource")}
    root = ElementTree.parse(graph).getroot()
    number: dict[str, int] = {}
    operations: list[Operation] = []
    tables: dict[int, Table] = {}

    def add(name: str, cycles: int) -> int:
        operations.append(Operation(name, tables.setdefault(cycles, {1: Cost(cycles)})))
        return len(operations) - 1

    for node in _elements(root, "node"):
        fields = _fields(node)
        number[node.attrib["id"]] = add(fields.get("name", node.attrib["id"]), latency[fields["uses_resource"]])
    dependences: list[Dependence] = []
    for edge in _elements(root, "edge"):
        fields = _fields(edge)
        u, v = number[edge.attrib["source"]], number[edge.attrib["target"]]
        delay, distance = int(fields.get("delay", 0)), int(fields.get("distance", 0))
        if delay:
            wait = add(f"delay.{len(operations)}", delay)
            dependences.append(Dependence(u, wait))
            u = wait
        dependences.append(Dependence(u, v, 0, distance))
    return PeriodicProblem(tuple(operations), tuple(dict.fromkeys(dependences)), (), len(operations))


def _elements(root: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    """Elements with this tag in any namespace."""
    return (e for e in root.iter() if e.tag.rsplit("}", 1)[-1] == tag)


def _fields(element: ElementTree.Element) -> dict[str, str]:
    return {d.attrib["key"]: (d.text or "").strip() for d in _elements(element, "data")}


# --- moldable sets ---------------------------------------------------------------------------


def read_malleable(jobs: Path, constraints: Path) -> MemoryProblem:
    """A random moldable DAG; a unit of time there is a microsecond here."""
    rows = read_rows(jobs)
    columns = [c for c in rows[0] if c != "id"]
    number = {row["id"]: v for v, row in enumerate(rows)}
    operations = tuple(
        Operation(row["id"], {k: Cost(round(float(row[c]) * 1000)) for k, c in enumerate(columns, 1)}) for row in rows
    )
    pairs = ((number[row["id0"]], number[row["id1"]]) for row in read_rows(constraints))
    dependences = tuple(Dependence(u, v) for u, v in pairs if u != v)
    return MemoryProblem(operations, dependences, (), len(columns))


def read_independent(path: Path) -> MemoryProblem:
    """Independent moldable tasks (those for processors; the accelerator beside them is left out)."""
    data = json.loads(bz2.decompress(path.read_bytes()))
    allotments, times = data["cpudata"]["nb_p"], data["cpudata"]
    operations = tuple(
        Operation(name, {k: Cost(round(t * 1000)) for k, t in zip(allotments, row, strict=True)})
        for name, row in times.items()
        if name != "nb_p"
    )
    return MemoryProblem(operations, (), (), data["meta"]["m"])


# --- the generator of the study --------------------------------------------------------------


def generator() -> ModuleType:
    """The generator of the study's instances; raises :class:`Absent` when it is not beside the repository."""
    path = Path(os.environ.get("TAKT_GENERATOR") or ROOT.parent / "shared" / "prototype" / "inst.py")
    if not path.is_file():
        raise Absent(f"there is no generator {path} (set TAKT_GENERATOR)")
    name = "study_generator"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
    return sys.modules[name]


def from_generator(instance: Any) -> MemoryProblem:
    """An instance of the generator (times in microseconds) as a problem, memory not limited; layers are blocks."""
    tables: dict[tuple[tuple[int, int, int, int], ...], Table] = {}
    operations: list[Operation] = []
    for op in instance.ops:
        columns = tuple(
            (k, round(t * 1000), -(-int(op.params) // k), -(-int(op.out) // k))
            for k, t in sorted(op.t.items())
            if k <= instance.P
        )
        table = tables.setdefault(columns, {k: Cost(t, p, o) for k, t, p, o in columns})
        layer, _, part = op.name.partition(".")
        operations.append(Operation(op.name, table, layer if part else ""))
    dependences = tuple(Dependence(u, v, int(size)) for u, v, size in instance.edges)
    return MemoryProblem(tuple(operations), dependences, (), instance.P)
