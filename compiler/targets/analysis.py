"""What the numbers of a schedule say: its bounds, its stages, what is critical, and what to try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from xdsl.dialects.builtin import ModuleOp

from compiler.links import Level, Resource, levels, loads, occupied, standstill, turns
from compiler.targets.text import counted, percent, short_bytes, short_time, span_of
from compiler.view import Accelerators, Move, ScheduleView, Task, view_of
from dialects.schedule_rules import peak_memory
from dialects.structure import find_graph, find_platform
from passes.instance import read_instance
from passes.scheduling.bounds import Bound, all_bounds, bound_named


@dataclass(frozen=True)
class StageRow:
    """One stage: busy share of its busiest accelerator by its own operators, and the most bytes on one accelerator."""

    index: int
    granted: Accelerators
    tasks: tuple[Task, ...]
    load: Fraction
    params: int
    memory: int
    back: tuple[Task, ...] = ()
    """Of a chunk of a step, the operators that come back; ``tasks`` then go forward."""
    label: str = ""
    """What it is called, if not by its index."""

    @property
    def span(self) -> str:
        """First and last call of a block of the source, or the operators themselves where they are in none."""
        return span_of(self.tasks)

    @property
    def allotments(self) -> Mapping[int, int]:
        """Allotment → number of operators that use it."""
        return dict(sorted(Counter(t.allotment for t in (*self.tasks, *self.back)).items()))


class Analysis:
    """A scheduled module and what follows from it; everything is computed when first asked for."""

    def __init__(self, module: ModuleOp):
        self.module = module
        self.view: ScheduleView = view_of(module)

    @cached_property
    def memory(self) -> Mapping[int, tuple[int, int]]:
        """Accelerator → bytes of parameters, and the peak of all else in the steady state."""
        graph, platform = find_graph(self.module), find_platform(self.module)
        assert graph is not None
        assert platform is not None
        return peak_memory(graph, platform)

    @cached_property
    def fullest(self) -> int:
        """The accelerator that needs most memory."""
        return max(self.memory, key=lambda p: sum(self.memory[p]), default=0)

    @cached_property
    def bounds(self) -> list[Bound]:
        """The lower bounds on the period that are quick to find, and the schedule's own where that is greater."""
        found = all_bounds(read_instance(self.module, "scheduled", or_later=True).problem)
        named = bound_named(self.view.bound_by)
        if named is not None and self.view.bound > max((b.value for b in found), default=0):
            found.append(Bound(self.view.bound_by, self.view.bound, named.leaves_out))
        return found

    @cached_property
    def loads(self) -> Mapping[int, Fraction]:
        """Accelerator → busy share of the period."""
        return {p: Fraction(busy) / self.view.period for p, busy in self.view.load.items()}

    @cached_property
    def mean_load(self) -> Fraction:
        """Busy share over all accelerators of the platform."""
        return sum(self.loads.values(), Fraction(0)) / max(1, len(self.loads))

    @cached_property
    def idle(self) -> tuple[int, ...]:
        """Accelerators that run nothing."""
        return tuple(p for p, load in self.loads.items() if not load)

    @cached_property
    def standstill(self) -> Mapping[int, Fraction]:
        """Accelerator → share of the period in which transfers keep it from computing, where they ever do."""
        return standstill(self.view)

    @cached_property
    def taken(self) -> Mapping[int, Fraction]:
        """Accelerator → share of the period in which it computes, or stands still for a transfer."""
        return {p: load + self.standstill.get(p, 0) for p, load in self.loads.items()}

    @cached_property
    def critical(self) -> tuple[int, ...]:
        """The accelerators with the highest load, transfers that stop them included."""
        most = max(self.taken.values(), default=Fraction(0))
        return tuple(p for p, load in self.taken.items() if load == most and load)

    @cached_property
    def levels(self) -> list[Level]:
        """What is moved over each level of the network that transfers use, innermost first."""
        return levels(self.view)

    @cached_property
    def critical_links(self) -> tuple[Resource, ...]:
        """The most loaded links, all of one level, where they are busier than every accelerator; mostly none."""
        most = max((level.load for level in self.levels), default=Fraction(0))
        if not most or most <= max(self.taken.values(), default=Fraction(0)):
            return ()
        first = next(level.busiest for level in self.levels if level.load == most)
        assert first is not None
        return tuple(
            r for r, load in loads(self.view).items() if load == most and (r.link, r.kind) == (first.link, first.kind)
        )

    @cached_property
    def heaviest_moves(self) -> tuple[Move, ...]:
        """The transfers over the first critical link, longest first."""
        if not self.critical_links:
            return ()
        here = [m for m in self.view.moves if any(self._uses(m, i) for i in range(turns(self.view, m)))]
        return tuple(sorted(here, key=lambda m: -m.time))

    def _uses(self, move: Move, microbatch: int) -> bool:
        """Whether a transfer occupies the first critical link for a micro-batch."""
        return any(self.critical_links[0] in end for end in occupied(self.view, move, microbatch))

    @cached_property
    def heaviest(self) -> tuple[Task, ...]:
        """The operators on the first critical accelerator, longest first."""
        if not self.critical:
            return ()
        p = self.critical[0]
        here = [t for t in self.view.tasks if t.time and any(p in c for c in t.copies)]
        return tuple(sorted(here, key=lambda t: -Fraction(t.time, len(t.copies))))

    @cached_property
    def stages(self) -> tuple[StageRow, ...]:
        """One row a stage."""
        members: dict[int, list[Task]] = {s.index: [] for s in self.view.stages}
        for task in self.view.tasks:
            if task.stage in members:
                members[task.stage].append(task)
        return tuple(self.stage(s.index, s.granted, members[s.index]) for s in self.view.stages)

    def stage(
        self, index: int, granted: Accelerators, tasks: list[Task], back: Sequence[Task] = (), label: str = ""
    ) -> StageRow:
        """The row of a stage, or of a chunk."""
        busy: dict[int, Fraction] = {}
        for task in (*tasks, *back):
            for p in (p for copy in task.copies for p in copy):
                busy[p] = busy.get(p, Fraction(0)) + Fraction(task.time, len(task.copies))
        return StageRow(
            index,
            granted,
            tuple(tasks),
            max(busy.values(), default=Fraction(0)) / self.view.period,
            max((self.memory[p][0] for p in granted if p in self.memory), default=0),
            max((sum(self.memory[p]) for p in granted if p in self.memory), default=0),
            tuple(back),
            label or str(index),
        )

    @cached_property
    def critical_stages(self) -> tuple[int, ...]:
        """The stages whose granted block holds a critical accelerator."""
        critical = set(self.critical)
        return tuple(s.index for s in self.view.stages if critical.intersection(s.granted))

    # --- advice ------------------------------------------------------------------------------

    def advice(self) -> list[str]:
        """At most three sentences, the most useful first, each derived from the numbers."""
        if not self.heaviest:
            return []
        found = [self._period_advice(), self._idle_advice(), self.memory_advice(), self._latency_advice()]
        return [sentence for sentence in found if sentence][:3]

    def _period_advice(self) -> str:
        view, longest = self.view, self.heaviest[0]
        if self.critical_links and max(level.load for level in self.levels) >= Fraction(9, 10):
            return self._link_advice()
        share = Fraction(longest.time, len(longest.copies)) / view.period
        if share >= Fraction(99, 100):
            faster = min(longest.times, key=lambda entry: entry[1])
            where = f"'{longest.name}' alone takes {percent(share, 0)} of the period on {longest.allotment}"
            if faster[1] < longest.time:
                return f"{where}; on {faster[0]} it would take {short_time(faster[1])}: give its stage a wider block."
            return f"{where}, its best allotment: only splitting or replicating it shortens the period."
        if view.gap == 0:
            return f"No period is shorter ({view.bound_by}), but with cheaper operators or more accelerators."
        if view.gap is not None and view.gap < Fraction(1, 100):
            return (
                f"The period is within {percent(view.gap, 2)} of its lower bound ({view.bound_by}): "
                "only cheaper operators or more accelerators shorten it much."
            )
        if view.reach and max(self.taken.values()) < Fraction(9, 10):
            return (
                "Values carried from one micro-batch to the next set the period, not the load of an accelerator: "
                "greater distances, or fewer stages on wider blocks, shorten it."
            )
        slack = self._slackest()
        if slack is None:
            return self._area_advice()
        stages = ", ".join(str(s) for s in self.critical_stages[:4])
        other = ", or --plan auto," if view.plan == "stages" else ""
        remedy = f"another number of stages{other}"
        more = " and others" if len(self.critical_stages) > 4 else ""
        return (
            f"Stage {stages}{more} set{'s' if len(self.critical_stages) == 1 else ''} the period, while stage "
            f"{slack.index} has accelerators busy for only {percent(self._busy(slack))} of it: "
            f"{remedy} may balance them better."
        )

    def _link_advice(self) -> str:
        """What to do where a link, not an accelerator, is busiest."""
        view, name = self.view, self.critical_links[0].link
        level = next(level for level in self.levels if level.name == name)
        if view.gap == 0:
            return f"No period is shorter ({view.bound_by}), but with faster links or less to move over '{name}'."
        return (
            f"The links of '{name}' are busy for up to {percent(level.load)} of the period, accelerators for "
            f"at most {percent(max(self.taken.values()))}: fewer, wider stages, or --max-crossing below "
            f"{short_bytes(round(view.crossing))}, move less."
        )

    def _area_advice(self) -> str:
        """Where the accelerator time between the lower bound and the period goes."""
        used = sum(t.time * t.allotment for t in self.view.tasks)
        cheapest = sum(min(k * time for k, time in t.times) for t in self.view.tasks)
        total = self.view.period * self.view.platform.accelerators
        wider = (used - cheapest) / total
        still = sum(self.standstill.values(), Fraction(0)) / self.view.platform.accelerators
        moving = f", {percent(still)} goes to transfers that stop accelerators" if still else ""
        cost = f" and {percent(wider)} goes to operators on wider sets than their cheapest" if wider > 0 else ""
        idle = percent(1 - self.mean_load - still)
        return f"The load is balanced; of the machine's time {idle} is idle{moving}{cost}."

    def _slackest(self) -> StageRow | None:
        """The stage on the least busy block, whatever else runs there; None when no block has much room."""
        loose = [s for s in self.stages if s.tasks and s.index not in self.critical_stages]
        least = min(loose, key=self._busy, default=None)
        return least if least is not None and self._busy(least) < Fraction(93, 100) else None

    def _busy(self, stage: StageRow) -> Fraction:
        """Busy share of the busiest accelerator of the stage's block."""
        return max(self.taken[p] for p in stage.granted)

    def _idle_advice(self) -> str:
        if not self.idle:
            return ""
        used = self.view.platform.accelerators - len(self.idle)
        return (
            f"{counted(len(self.idle), 'accelerator')} of {self.view.platform.accelerators} "
            f"{'is' if len(self.idle) == 1 else 'are'} left idle: the same period needs only {used}."
        )

    def memory_advice(self) -> str:
        """Whether memory is nearly full, of what, and what makes room."""
        params, rest = self.memory.get(self.fullest, (0, 0))
        have = self.view.platform.memory
        if not have or (params + rest) * 10 < have * 9:
            return ""
        cause = "parameters" if params > rest else "values in flight"
        remedy = "more stages or wider allotments" if params > rest else "fewer micro-batches in flight or smaller ones"
        return (
            f"Memory is nearly full: accelerator {self.fullest} needs {short_bytes(params + rest)} of "
            f"{short_bytes(have)}, mostly {cause}; {remedy} would make room."
        )

    def _latency_advice(self) -> str:
        busy = sum(t.time for t in self.view.tasks)
        if not busy or self.view.latency < 2 * busy:
            return ""
        return (
            f"A micro-batch spends {percent(1 - Fraction(busy, self.view.latency), 0)} of its "
            f"{short_time(self.view.latency)} {'waiting or on its way' if self.view.moves else 'waiting'}: "
            "the plan trades latency for its period."
        )
