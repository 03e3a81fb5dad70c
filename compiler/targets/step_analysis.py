"""What the numbers of a step say: where the time of its accelerators goes, what its chunks take, and what to try."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property

from compiler.links import occupied
from compiler.targets.analysis import Analysis, StageRow
from compiler.targets.step_cells import Rank, Run, ranks_of, runs_on
from compiler.targets.text import counted, percent, short_time
from compiler.targets.training_stages import Half, halves
from compiler.view import Edge, Task, Update


@dataclass(frozen=True)
class Spent:
    """Shares of a step, of one accelerator or on average; together they are 1.

    A rank is idle in ``fill`` before its first backward operator, in ``drain`` after its last forward operator; from
    the last operator of a step to the first of the next, where steps overlap, ``between`` them. In ``moving`` what it
    does next waits for a transfer under way, in ``waiting``, amid the step, for what other ranks compute. In ``beside``
    only other accelerators of the rank compute, and ``unused`` belongs to no rank. Transfers that stop accelerators
    amid the step are ``moving`` too.
    """

    forward: Fraction = Fraction(0)
    inputs: Fraction = Fraction(0)
    weights: Fraction = Fraction(0)
    optimizer: Fraction = Fraction(0)
    fill: Fraction = Fraction(0)
    drain: Fraction = Fraction(0)
    between: Fraction = Fraction(0)
    moving: Fraction = Fraction(0)
    waiting: Fraction = Fraction(0)
    beside: Fraction = Fraction(0)
    unused: Fraction = Fraction(0)

    @property
    def busy(self) -> Fraction:
        """What runs something."""
        return self.forward + self.inputs + self.weights + self.optimizer

    def parts(self, names: Sequence[str]) -> list[tuple[str, Fraction]]:
        """Those of ``names`` that are not 0."""
        return [(name, share) for name in names if (share := getattr(self, name))]


WORK = ("forward", "inputs", "weights", "optimizer")
IDLE = ("fill", "drain", "between", "moving", "waiting", "beside", "unused")


class StepAnalysis(Analysis):
    """A step, and what follows from it; shares are of its pattern."""

    @property
    def overlaps(self) -> bool:
        """Whether the next step begins before all of one has ended."""
        return self.view.makespan > self.view.pattern

    @cached_property
    def ranks(self) -> list[Rank]:
        """The ranks; see :func:`compiler.targets.step_cells.ranks_of`."""
        return ranks_of(self.view)

    @cached_property
    def half(self) -> list[Half]:
        """What every operator belongs to."""
        return halves(self.view)

    @cached_property
    def spent(self) -> Mapping[int, Spent]:
        """Accelerator → where its time goes."""
        found = {p: Spent(unused=Fraction(1)) for p in range(self.view.platform.accelerators)}
        runs = runs_on(self.view, [rank.accelerators for rank in self.ranks])
        for rank, on in zip(self.ranks, runs, strict=True):
            if not on:
                continue
            idle = self._idle(on, self._stopped(rank))
            for p in rank.accelerators:
                found[p] = self._of(p, on, idle)
        return found

    @cached_property
    def mean(self) -> Spent:
        """Where the time goes, on average over all accelerators."""
        every = list(self.spent.values())
        count = max(1, len(every))
        sums = {f.name: sum((getattr(s, f.name) for s in every), Fraction(0)) for f in fields(Spent)}
        return Spent(**{name: total / count for name, total in sums.items()})

    def _of(self, p: int, runs: Sequence[Run], idle: Mapping[str, int]) -> Spent:
        """Where the time of an accelerator goes whose rank runs ``runs``; ``idle`` is when none of it runs any."""
        time: dict[str, int] = dict.fromkeys(WORK, 0)
        for run in runs:
            if isinstance(run.member, Update):
                place, name = run.member.place, "optimizer"
            else:
                assert run.microbatch is not None
                place = run.member.set_of(run.microbatch)
                name = {"F": "forward", "I": "inputs", "W": "weights"}[self.half[run.member.index]]
            if p in place:
                time[name] += run.end - run.begin
        pattern = self.view.pattern
        time |= idle
        shares = {name: Fraction(ns, pattern) for name, ns in time.items()}
        return Spent(**shares, beside=1 - sum(shares.values(), Fraction(0)))

    def _idle(self, runs: list[Run], stopped: list[tuple[int, int]]) -> dict[str, int]:
        """Why a rank runs nothing, ns: around the step, every moment counted once."""
        view, pattern = self.view, self.view.pattern
        first, (back, ahead) = runs[0], self._phases(runs)
        folded = sorted((run.begin % pattern, run.begin, run.end, number) for number, run in enumerate(runs))
        time: dict[str, int] = dict.fromkeys(("fill", "drain", "between", "moving", "waiting"), 0)
        until = max(begin % pattern + end - begin for _, begin, end, _ in folded) - pattern
        for at, begin, end, number in folded:
            gap = max(0, at - until)
            until = max(until, at + end - begin)
            if not gap:
                continue
            if runs[number] is first and self.overlaps:
                time["between"] += gap
            elif runs[number] is first:
                time["fill"] += first.begin - view.span[0]
                time["drain"] += gap - (first.begin - view.span[0])
            else:
                moving = _covered([self._moving(runs[number], begin - gap), *stopped], begin - gap, begin)
                time["moving"] += moving
                phase = "fill" if begin <= back else "drain" if begin - gap >= ahead else "waiting"
                time[phase] += gap - moving
        return time

    def _phases(self, runs: list[Run]) -> tuple[int, int]:
        """When a rank begins its first backward operator, and ends its last forward one."""
        forward = [r for r in runs if isinstance(r.member, Task) and self.half[r.member.index] == "F"]
        back = [r.begin for r in runs if isinstance(r.member, Task) and self.half[r.member.index] != "F"]
        ahead = max((r.end for r in forward), default=runs[0].begin)
        return min(back, default=runs[0].begin), ahead if back else runs[-1].end

    def _moving(self, run: Run, since: int) -> tuple[int, int]:
        """When the last value that ``run`` waits for was under way, from ``since`` on; nothing where none was."""
        view = self.view
        if isinstance(run.member, Update):
            return since, since
        assert run.microbatch is not None
        arrived, sent = Fraction(since), Fraction(since)
        for edge in self._read_by[run.member.index]:
            microbatch = run.microbatch - edge.distance
            for move in view.carriers[edge].values():
                landed = view.landing(move, microbatch) + move.time
                if arrived < landed <= run.begin:
                    arrived, sent = landed, view.begin(move, microbatch)
        return int(max(sent, since)), int(arrived)

    def _stopped(self, rank: Rank) -> list[tuple[int, int]]:
        """When transfers of a step stop an accelerator of a rank."""
        view = self.view
        if view.platform.transfers == "overlapped":
            return []
        found: list[tuple[int, int]] = []
        for move in view.moves:
            for i, starts in enumerate(zip(move.starts, move.landings, strict=True)):
                for start, resources in zip(starts, occupied(view, move, i), strict=True):
                    if any(r.kind == "accelerator" and r.first in rank.accelerators for r in resources):
                        found.append((start, start + move.time))
        return found

    @cached_property
    def _read_by(self) -> list[list[Edge]]:
        found: list[list[Edge]] = [[] for _ in self.view.tasks]
        for edge in self.view.edges:
            found[edge.consumer].append(edge)
        return found

    # --- chunks ------------------------------------------------------------------------------

    @cached_property
    def stages(self) -> tuple[StageRow, ...]:
        """One row a chunk: the stage that goes forward, and that which comes back."""
        members: dict[int, list[Task]] = {s.index: [] for s in self.view.stages}
        for task in self.view.tasks:
            if task.stage in members:
                members[task.stage].append(task)
        rows: list[StageRow] = []
        for number, rank in enumerate(self.ranks):
            for n, chunk in enumerate(rank.chunks):
                back = [t for s in chunk[1:] for t in members[s]]
                label = f"{number}.{n}" if self.chunked else f"{number}"
                rows.append(self.stage(chunk[0], rank.accelerators, members[chunk[0]], back, label))
        return tuple(rows)

    @property
    def chunked(self) -> bool:
        """Whether ranks have several chunks."""
        return any(len(rank.chunks) > 1 for rank in self.ranks)

    # --- advice ------------------------------------------------------------------------------

    def advice(self) -> list[str]:
        """At most three sentences, the most useful first, each derived from the numbers."""
        if not self.heaviest:
            return []
        found = [self._step_advice(), self._balance_advice(), self._optimizer_advice(), self.memory_advice()]
        return [sentence for sentence in found if sentence][:3]

    def _step_advice(self) -> str:
        """The greatest part of what is idle, and what makes it smaller."""
        view, mean = self.view, self.mean
        if view.gap == 0:
            return f"No step is shorter ({view.bound_by}), but with cheaper operators or more accelerators."
        if view.gap is not None and view.gap < Fraction(1, 100):
            return (
                f"The step is within {percent(view.gap, 2)} of its lower bound ({view.bound_by}): "
                "only cheaper operators or more accelerators shorten it much."
            )
        reasons = {
            "ramp": mean.fill + mean.drain + mean.between,
            "moving": mean.moving,
            "waiting": mean.waiting,
            "beside": mean.beside,
            "unused": mean.unused,
        }
        most = max(reasons, key=lambda name: reasons[name])
        if reasons[most] < Fraction(1, 50):
            return ""
        share, count = percent(reasons[most]), counted(len(self.ranks), "rank")
        if most == "ramp":
            own = "" if view.plan == "own" else ", --order own"
            return (
                f"{share} of the accelerators' time goes to filling and draining: {view.microbatches} micro-batches "
                f"for {count}. More micro-batches, fewer stages{own} or more chunks on a rank make it less."
            )
        if most == "moving":
            return (
                f"{share} of the accelerators' time is spent waiting for transfers under way: "
                "faster links, fewer stages or more micro-batches ahead of need make it less."
            )
        if most == "waiting":
            own = "another cut or number of stages" if view.plan == "own" else "--order own, another cut"
            return (
                f"{share} of the accelerators' time ranks wait, amid the step, for what others compute: "
                f"{own} may make it less."
            )
        if most == "beside":
            return (
                f"{share} of the accelerators' time passes beside operators that run on fewer accelerators than their "
                "rank has: more, narrower stages make it less."
            )
        idle = counted(len(self.idle), "accelerator")
        return f"{idle} of {view.platform.accelerators} without work: {share} of all time."

    def _balance_advice(self) -> str:
        """How far the busiest accelerator is from the mean of those that are used."""
        used = {p: load for p, load in self.loads.items() if load}
        most = max(used, key=lambda p: used[p])
        mean = sum(used.values(), Fraction(0)) / len(used)
        if used[most] - mean < Fraction(1, 20):
            return ""
        least = min(used, key=lambda p: used[p])
        less = short_time((used[most] - mean) * self.view.pattern)
        return (
            f"The load is uneven: accelerator {most} is busy for {percent(used[most])} of the step, {least} for "
            f"{percent(used[least])}; in balance the busiest would have {less} less to do."
        )

    def _optimizer_advice(self) -> str:
        if self.mean.optimizer < Fraction(1, 10):
            return ""
        return (
            f"The optimizer takes {percent(self.mean.optimizer)} of the accelerators' time, once a step: "
            "more micro-batches in a step make that less."
        )


def _covered(spans: Iterable[tuple[int, int]], low: int, high: int) -> int:
    """How much of ``[low, high)`` lies in any of ``spans``."""
    covered, until = 0, low
    for begin, end in sorted(span for span in spans if span[0] < high and span[1] > low):
        covered += max(0, min(end, high) - max(begin, until))
        until = max(until, min(end, high))
    return covered
