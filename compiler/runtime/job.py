"""What the processes of a run are told and what they report: plain data that both sides read from one folder.

Times are integer nanoseconds, sizes bytes. Nothing here imports torch or xDSL, so that a process starts quickly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Turns = tuple[tuple[int, ...], ...]
"""Accelerators for micro-batch 0, 1, ... in turn."""

Rows = NDArray[np.int64]
"""Instructions, one a row, columns as in :class:`dialects.programs.Instruction`, micro-batches counted from 0."""

EVENT = np.dtype([(name, np.int64) for name in ("index", "arrive", "start", "end")])
"""What a process reports of an instruction: its place in the program, when the process came to it, when its work began
and when it was done, in ns since the common start. It waited from ``arrive`` to ``start``. A receive works for no time:
it arrives when it was posted, and starts and ends when what it brings was there."""

Events = NDArray[np.void]


@dataclass(frozen=True)
class Value:
    """A tensor: ``size`` bytes of ``shape`` elements of a type by its name in the language (``bf16``).

    ``destinations`` has the sets that receive it, destination 1 first; of a sharded value every accelerator of a set
    holds its share of the bytes only.
    """

    name: str
    shape: tuple[int, ...]
    element: str
    size: int
    sharded: bool = False
    destinations: tuple[Turns, ...] = ()


@dataclass(frozen=True)
class Read:
    """An operand: result ``result`` of operator ``subject``, or input ``-1 - subject``, of ``distance`` micro-batches
    before, as it arrived at ``destination`` (0: where it was made). In a turn in which the sets of the destination and
    of the producer are the same nothing moves, and the value itself is read."""

    subject: int
    result: int
    destination: int
    distance: int


@dataclass(frozen=True)
class Forward:
    """The operator that a gradient is of: gradients of the results ``arriving`` are given, and of operands ``made``."""

    kind: str
    arguments: Mapping[str, Any]
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    arriving: tuple[int, ...]
    made: tuple[int, ...]


@dataclass(frozen=True)
class Operator:
    """An operator and its ``arguments``; ``start`` is that of micro-batch 0, ``turns`` is where micro-batches run.

    ``later`` are the starts of the other micro-batches of a step.
    ``params`` are the bytes of parameters on each accelerator, in types of the IR, in a training graph with what lies
    beside them. ``tied``: the name of the group whose parameters those of its group are copies of, if not its own.
    ``of`` is what a gradient is of.
    """

    name: str
    kind: str
    arguments: Mapping[str, Any]
    start: int
    time: int
    turns: Turns
    reads: tuple[Read, ...]
    results: tuple[Value, ...]
    group: str | None = None
    params: int = 0
    tied: str | None = None
    of: Forward | None = None
    later: tuple[int, ...] = ()

    @property
    def source(self) -> bool:
        """Whether it reads nothing that another operator made: micro-batches enter here."""
        return all(read.subject < 0 or read.distance for read in self.reads)

    def on(self, microbatch: int) -> tuple[int, ...]:
        """The accelerators that run a micro-batch."""
        return self.turns[microbatch % len(self.turns)]


@dataclass(frozen=True)
class Transfer:
    """How long it takes to bring a value to a destination, and over which level of the network.

    An accelerator sends ``lanes`` transfers over that level at a time; 0: its wires lead to different places, and
    are not watched.
    """

    subject: int
    result: int
    destination: int
    time: int
    link: str
    lanes: int = 1


@dataclass(frozen=True)
class Update:
    """The step of the optimizer for the parameters of ``group``, once a step from ``start`` on, on ``on``.

    ``among`` are all accelerators that hold copies of these parameters, in order: gradients are summed over them.
    ``gradients`` are the numbers of the weight gradients that it reads, those of copies behind its own.
    """

    name: str
    group: str
    on: tuple[int, ...]
    among: tuple[int, ...]
    time: int
    start: int = 0
    gradients: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How to run.

    ``emulate``: operators sleep their time and messages arrive after theirs, else real tensors. ``paced``:
    micro-batches enter no earlier than scheduled, a period apart. ``ahead``: receives that a process posts before it
    needs them, and sends to one accelerator that may be on their way at a time (at least one). ``timeout``: seconds
    without progress after which the run is given up. ``scale``: factor of all emulated times.
    """

    emulate: bool = True
    paced: bool = False
    ahead: int = 4
    seed: int = 0
    timeout: float = 60.0
    scale: float = 1.0


@dataclass(frozen=True)
class Job:
    """A run of ``microbatches`` micro-batches; rank ``r`` is accelerator ``accelerators[r]``.

    ``pattern`` ns are for ``per_pattern`` micro-batches. ``transfers`` is what keeps accelerators from computing
    (``overlapped``: nothing; ``blocking``: both ends stand still; ``buffered``: each end while it copies).
    """

    name: str
    platform: str
    transfers: Literal["overlapped", "blocking", "buffered"]
    pattern: int
    per_pattern: int
    microbatches: int
    accelerators: tuple[int, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[tuple[int, int], ...]
    """Operator and result of each output; an input passed through has ``(-1 - n, 0)``."""
    moves: tuple[Transfer, ...]
    groups: Mapping[int, tuple[tuple[int, ...], ...]]
    """Accelerator → sets of its all-gathers, by number."""
    settings: Settings = field(default_factory=Settings)
    optimizer: str | None = None
    """Of a training graph: "none", "sgd", "momentum" or "adam"."""
    precision: str | None = None
    """Of a training graph: "mixed" or "full"."""
    updates: tuple[Update, ...] = ()
    """Steps of the optimizer, in program order."""
    step: bool = False
    """Whether the optimizer works after every ``per_pattern`` micro-batches."""

    @property
    def period(self) -> float:
        """Predicted time between two micro-batches, ns; in a step on average."""
        return self.pattern / self.per_pattern

    def begin(self, operator: Operator, microbatch: int) -> float:
        """When a micro-batch is to start an operator, ns."""
        if not operator.later:
            return operator.start + microbatch * self.period
        lap, turn = divmod(microbatch, self.per_pattern)
        return (operator.start, *operator.later)[turn] + lap * self.pattern

    def givers(self, number: int) -> dict[int, int]:
        """Of the weight gradients that an optimizer step reads from elsewhere, the accelerator that gives each."""
        on = self.updates[number].on
        homes = {v: self.operators[v].on(0) for v in self.updates[number].gradients}
        return {v: home[0] for v, home in homes.items() if not set(on) <= set(home)}

    @property
    def ties(self) -> dict[str, str]:
        """Group whose parameters are updated → the group that stands for all copies of them."""
        tied = {o.group: o.tied for o in self.operators if o.tied is not None}
        return {u.group: tied.get(u.group, u.group) for u in self.updates}

    @property
    def tied(self) -> dict[str, tuple[int, ...]]:
        """Group that stands for several copies of its parameters → all accelerators that hold one, in order."""
        copies = Counter(self.ties.values())
        return {tie: u.among for u in self.updates if copies[tie := self.ties[u.group]] > 1}

    @property
    def rank_of(self) -> dict[int, int]:
        """Accelerator → rank."""
        return {p: rank for rank, p in enumerate(self.accelerators)}


# --- the folder of a run ---------------------------------------------------------------------

JOB, PROGRAMS, BOARD = "job.json", "programs.npz", "board"


def write_job(folder: Path, job: Job, programs: Mapping[int, Rows]) -> None:
    """Write a job and the program of each of its accelerators to a folder."""
    np.savez(folder / PROGRAMS, **{str(p): rows for p, rows in programs.items()})  # pyright: ignore[reportArgumentType]
    (folder / JOB).write_text(json.dumps(asdict(job)), encoding="utf-8")


def read_job(folder: Path) -> Job:
    """Read the job of a folder."""
    given = json.loads((folder / JOB).read_text(encoding="utf-8"))
    return Job(
        **{
            **given,
            "accelerators": tuple(given["accelerators"]),
            "operators": tuple(map(_operator, given["operators"])),
            "inputs": tuple(map(_value, given["inputs"])),
            "outputs": tuple((v, r) for v, r in given["outputs"]),
            "moves": tuple(Transfer(**t) for t in given["moves"]),
            "groups": {int(p): tuple(map(tuple, groups)) for p, groups in given["groups"].items()},
            "settings": Settings(**given["settings"]),
            "updates": tuple(map(_update, given["updates"])),
        }
    )


def read_program(folder: Path, accelerator: int) -> Rows:
    """Read the program of an accelerator."""
    with np.load(folder / PROGRAMS) as programs:
        return programs[str(accelerator)]


def write_whole(path: Path, text: str) -> None:
    """Write a file that nobody finds half written."""
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def events_file(folder: Path, rank: int) -> Path:
    """Where a rank leaves its events, an array of :data:`EVENT`."""
    return folder / f"events.{rank}.npy"


def failure_file(folder: Path, rank: int) -> Path:
    """Where a rank leaves why it failed: JSON with ``time`` (s), ``message``, ``index`` of the instruction or null, and
    ``lost``: whether it only saw that another rank is gone."""
    return folder / f"failure.{rank}.json"


def exits_file(folder: Path) -> Path:
    """Where the exit codes of ranks that ended early are left, by rank."""
    return folder / "exits.json"


def outputs_file(folder: Path, rank: int) -> Path:
    """Where a rank leaves the outputs of a real run that it holds, as torch saves them."""
    return folder / f"outputs.{rank}.pt"


def trained_file(folder: Path, rank: int) -> Path:
    """Where a rank leaves its shares of gradients and new parameters of a real training run, as torch saves them."""
    return folder / f"trained.{rank}.pt"


def _turns(given: Sequence[Sequence[int]]) -> Turns:
    return tuple(map(tuple, given))


def _value(given: dict[str, Any]) -> Value:
    shape, destinations = tuple(given["shape"]), tuple(map(_turns, given["destinations"]))
    return Value(**{**given, "shape": shape, "destinations": destinations})


def _operator(given: dict[str, Any]) -> Operator:
    changed = {
        "turns": _turns(given["turns"]),
        "reads": tuple(Read(**r) for r in given["reads"]),
        "results": tuple(map(_value, given["results"])),
        "of": None if given["of"] is None else _forward(given["of"]),
        "later": tuple(given["later"]),
    }
    return Operator(**{**given, **changed})


def _forward(given: dict[str, Any]) -> Forward:
    found = {name: tuple(map(_value, given[name])) for name in ("operands", "results")}
    return Forward(**{**given, **found, "arriving": tuple(given["arriving"]), "made": tuple(given["made"])})


def _update(given: dict[str, Any]) -> Update:
    return Update(**{**given, **{name: tuple(given[name]) for name in ("on", "among", "gradients")}})
