"""The constraint program of sets: some units choose again, all others stay, the heaviest load is made small.

One Boolean variable for each unit and option. Where all pairs of accelerators are alike (``Choices.uniform``) two for
each value and accelerator say that it leaves there, and that it arrives there; otherwise one for each value and pair of
sets says that it moves between them. CP-SAT solves it, for a few units at a time (a *window*) or for all of them, which
proves how good the choice is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import ceil, gcd
from typing import Any

from passes.scheduling.assigned_loads import Choices, Loads, Value
from passes.scheduling.budget import Budget
from passes.scheduling.interruptible import solve
from passes.scheduling.network import Members, Resource

MOST_VARIABLES = 40_000
"""Variables beyond which a program is not built."""


@dataclass(frozen=True)
class Chosen:
    """The options of all units (None: none found), their heaviest load, and the least possible with the rest fixed."""

    at: list[int] | None
    heaviest: int
    bound: int


class _Program:
    """The model while it is built; ``free`` units choose among ``allowed`` options, loads are at most ``limit``."""

    def __init__(
        self, choices: Choices, at: Sequence[int], free: Collection[int], limit: int, allowed: Callable[[Members], bool]
    ):
        from ortools.sat.python import cp_model  # slow to import, and only few need it

        self.model: Any = cp_model.CpModel()
        self.choices, self.at, self.free, self.limit = choices, at, set(free), limit
        self.chosen: dict[tuple[int, int], Any] = {}
        self.on: list[dict[Members, Any]] = []
        """Where each unit may be: a literal for each set, or 1."""
        self.load: defaultdict[int, list[tuple[int, Any]]] = defaultdict(list)
        self.base: defaultdict[int, int] = defaultdict(int)
        self.held: list[list[Any]] = [[] for _ in range(choices.accelerators)]
        self.terms = 0
        for unit in range(len(choices.units)):
            self._place(unit, allowed)
        self._move()
        self._bound()

    def _place(self, unit: int, allowed: Callable[[Members], bool]) -> None:
        options = self.choices.options[unit]
        now = options[self.at[unit]]
        if unit not in self.free:
            self.on.append({now.members: 1})
            for p in now.block:
                self.base[p] += now.time
            for p in now.members:
                self.held[p].append(now.params)
            return
        sets: defaultdict[Members, list[Any]] = defaultdict(list)
        for number, (members, block, time, params, _) in enumerate(options):
            if time > self.limit or not (allowed(block) or number == self.at[unit]):
                continue
            x = self.chosen[unit, number] = self.model.new_bool_var("")
            sets[members].append(x)
            for p in block:
                self.load[p].append((time, x))
            for p in members:
                self.held[p].append(params * x)
        self.model.add_exactly_one(x for each in sets.values() for x in each)
        self.on.append({members: self._one_of(each) for members, each in sets.items()})

    def _one_of(self, literals: Sequence[Any]) -> Any:
        if len(literals) == 1:
            return literals[0]
        one = self.model.new_bool_var("")
        self.model.add(one == sum(literals))
        return one

    # --- transfers ------------------------------------------------------------------------------

    def _move(self) -> None:
        """The loads of all values: constant where neither end is free."""
        uniform = self.choices.uniform
        between: defaultdict[tuple[int, int], int] = defaultdict(int)
        for number, value in enumerate(self.choices.values):
            ends = (value.producer, *value.readers)
            if self.free.isdisjoint(ends):
                source = next(iter(self.on[value.producer]))
                targets = sorted({next(iter(self.on[r])) for r in value.readers})
                for r, time in self.choices.parts(value, source, targets):
                    self.base[r] += time
            elif uniform is None:
                self._between_sets(value)
            elif len(value.readers) == 1:
                between[min(ends), max(ends)] += uniform[number]
            else:
                self._uniform(value, uniform[number])
        for (a, b), time in between.items():  # either way both ends are busy for as long
            if time:
                for p in {**self.on[a], **self.on[b]}:
                    apart = self._at_least([(self._is(a, p), self._is(b, p)), (self._is(b, p), self._is(a, p))])
                    self.load[p[0]].append((time, apart))

    def _is(self, unit: int, members: Members) -> Any:
        return self.on[unit].get(members, 0)

    def _at_least(self, differences: Sequence[tuple[Any, Any]]) -> Any:
        """A literal that is true when in some pair the first is true and the second is not."""
        y = self.model.new_bool_var("")
        for one, other in differences:
            if not isinstance(one, int) or one:
                self.terms += 1
                self.model.add(y >= one - other)
        return y

    def _uniform(self, value: Value, time: int) -> None:
        if not time:
            return
        for p in self.on[value.producer]:
            leaves = self._at_least([(self._is(value.producer, p), self._is(r, p)) for r in value.readers])
            self.load[p[0]].append((time, leaves))
        for p in {p: None for r in value.readers for p in self.on[r]}:
            comes = self._at_least([(self._is(r, p), self._is(value.producer, p)) for r in value.readers])
            self.load[p[0]].append((time, comes))

    def _between_sets(self, value: Value) -> None:
        """One literal for each pair of sets; in mode ``buffered`` the senders are busy for the longest copy."""
        network, number = self.choices.network, self.choices.number
        targets: dict[Members, Any] = {}
        for q in {q: None for r in value.readers for q in self.on[r]}:
            readers = [x for r in value.readers if not isinstance(x := self._is(r, q), int) or x]
            targets[q] = readers[0] if len(readers) == 1 else self._any(readers)
        for p, here in self.on[value.producer].items():
            sends: defaultdict[tuple[int, Resource], list[tuple[int, Any]]] = defaultdict(list)
            for q, there in targets.items():
                if p == q:
                    continue
                y = self._both(here, there)
                for i, d in enumerate(value.moved):
                    price = network.price(d, p, q)
                    if network.mode != "buffered":
                        for r in sorted(price.both):
                            self.load[number(r)].append((-(-price.time // network.capacity(r)), y))
                        continue
                    for r in sorted(price.receive):
                        self.load[number(r)].append((price.time, y))
                    for r in sorted(price.send):
                        sends[i, r].append((price.time, y))
            for (_, r), each in sends.items():
                self._longest(number(r), each)

    def _any(self, literals: Sequence[Any]) -> Any:
        y = self.model.new_bool_var("")
        for x in literals:
            self.terms += 1
            self.model.add(y >= x)
        return y

    def _both(self, a: Any, b: Any) -> Any:
        if isinstance(a, int) or isinstance(b, int):
            return b if isinstance(a, int) else a
        y = self.model.new_bool_var("")
        self.terms += 1
        self.model.add(y >= a + b - 1)
        return y

    def _longest(self, resource: int, copies: Sequence[tuple[int, Any]]) -> None:
        """Load a resource with the longest of the copies that are made."""
        shorter = 0
        for time in sorted({time for time, _ in copies}):  # what each length adds to the next shorter one
            self.load[resource].append((time - shorter, self._any([y for t, y in copies if t >= time])))
            shorter = time

    # --- the whole ----------------------------------------------------------------------------------

    def _bound(self) -> None:
        resources = sorted({*self.load, *self.base})
        times = [time for each in self.load.values() for time, _ in each] + list(self.base.values())
        self.unit = reduce(gcd, times, 0) or 1
        self.heaviest: Any = self.model.new_int_var(0, self.limit // self.unit, "heaviest")
        for r in resources:
            total = sum(time // self.unit * x for time, x in self.load[r])
            self.model.add(total + self.base[r] // self.unit <= self.heaviest)
        for each in self.held:
            if any(not isinstance(x, int) for x in each):
                self.model.add(sum(each) <= self.choices.room)
        self.model.minimize(self.heaviest)

    def begin_at(self, at: Sequence[int]) -> None:
        """Hint the search at these options."""
        for (unit, number), x in self.chosen.items():
            self.model.add_hint(x, int(at[unit] == number))

    def not_together(self, pairs: Collection[tuple[int, int]]) -> None:
        """Pairs of units that no accelerator has time for."""
        for a, b in pairs:
            for members, x in self.on[a].items():
                y = self._is(b, members)
                if not isinstance(x, int) and not isinstance(y, int):
                    self.model.add_at_most_one([x, y])

    def relabelled(self, at: Sequence[int]) -> list[int]:
        """Where accelerators are alike: the ``u``-th longest unit is on one of the first ``u``; ``at`` likewise."""
        order = sorted(self.free, key=lambda u: (-self.choices.options[u][0].time, u))
        label: dict[int, int] = {}
        for u in order:
            label.setdefault(at[u], len(label))
        for rank, u in enumerate(order[: self.choices.accelerators]):
            for number in range(rank + 1, len(self.choices.options[u])):
                if (u, number) in self.chosen:
                    self.model.add(self.chosen[u, number] == 0)
        return [label[option] for option in at]


def _everywhere(block: Members) -> bool:
    return True


def choose(
    choices: Choices,
    at: Sequence[int],
    free: Collection[int],
    *,
    limit: int,
    allowed: Callable[[Members], bool] = _everywhere,
    apart: Collection[tuple[int, int]] = (),
    work: float,
    seed: int = 0,
    workers: int = 1,
    budget: Budget,
) -> Chosen | None:
    """The best options of the ``free`` units on ``allowed`` blocks (or where they are), the others as in ``at``.

    Loads are at most ``limit`` ns. The search begins at ``at``. ``apart`` are pairs of units known not to fit
    together. At most ``work`` units are spent, from ``budget``. None when the program would be too large.
    """
    if _size(choices, free, allowed) > MOST_VARIABLES:
        return None
    from ortools.sat.python import cp_model

    program = _Program(choices, at, free, limit, allowed)
    alike = choices.uniform is not None and len(free) == len(choices.units) and allowed is _everywhere
    alike = alike and all(len(options) == choices.accelerators for options in choices.options)
    begin = program.relabelled(at) if alike else list(at)
    program.begin_at(begin)
    program.not_together(apart)
    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = workers
    if workers > 1:
        solver.parameters.interleave_search = True
        # Where one worker finds while it loads that nothing better exists, another of the same batch aborts the
        # process (OR-Tools 9.15), so there is one task a batch: the workers take turns.
        solver.parameters.interleave_batch_size = 1
    solver.parameters.random_seed = seed
    solver.parameters.max_deterministic_time = work
    if (left := budget.left()) is not None:
        solver.parameters.max_time_in_seconds = left
    status = solve(solver, program.model)
    budget.spend(solver.response_proto.deterministic_time + 3e-6 * (program.terms + len(program.chosen)) + 1e-3)
    if status == cp_model.INFEASIBLE:
        return Chosen(None, limit + 1, limit + 1)
    bound = max(0, ceil(solver.best_objective_bound - 1e-6)) * program.unit
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Chosen(None, limit + 1, bound)
    found = begin
    for (unit, number), x in program.chosen.items():
        if solver.boolean_value(x):
            found[unit] = number
    return Chosen(found, Loads(choices, found).heaviest, bound)


def _size(choices: Choices, free: Collection[int], allowed: Callable[[Members], bool]) -> int:
    """About how many variables the program would have."""
    sets: Mapping[int, int] = {u: sum(allowed(o.block) for o in choices.options[u]) for u in free}
    total = sum(sets.values())
    for number in {number for u in free for number in choices.touching[u]}:
        value = choices.values[number]
        source = sets.get(value.producer, 1)
        targets = sum(sets.get(r, 1) for r in value.readers)
        total += source + targets if choices.uniform is not None else source * targets * len(value.moved)
    return total
