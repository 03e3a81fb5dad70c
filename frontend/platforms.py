"""From a platform declaration to ``takt.platform``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from xdsl.dialects.builtin import IntAttr, StringAttr

from dialects.attributes import ints
from dialects.links import LinkAttr
from dialects.measured import MeasuredAttr
from dialects.operators import ELEMENT_TYPES
from dialects.structure import TRANSFERS, PlatformOp, make_platform
from frontend import ast, network
from frontend.evaluate import Lookup, Poisoned, Problem, amount, evaluate, fraction, whole
from frontend.program import Unit
from frontend.report import Reporter, choices, note
from frontend.source import Place
from frontend.units import BANDWIDTH, RATE, SIZE, TIME, WORK

MAX_ACCELERATORS = 2**20

_ACCELERATOR = ("memory", "bandwidth", "launch", "compute_efficiency", "memory_efficiency", "saturation")
_REQUIRED = ("memory", "bandwidth", "launch")
_LINK = ("latency", "bandwidth", "links", "topology", "duplex", "sharing")
_LINK_REQUIRED = ("latency", "bandwidth")

Scopes = Callable[[Unit], Lookup]
T = TypeVar("T")
_Level = tuple[LinkAttr, list[MeasuredAttr]]


class PlatformBuilder:
    """Evaluates the fields of a platform, going on after an error."""

    def __init__(self, reporter: Reporter, scope_of: Scopes):
        self.reporter = reporter
        self.scope_of = scope_of

    def build(self, platform: ast.Platform, unit: Unit) -> PlatformOp | None:
        """The platform, or None after errors."""
        scope = self.scope_of(unit)
        fields = self._fields(platform.fields, ("accelerators", "transfers"), f"platform '{platform.name.name}'")
        machine = fields.get("accelerators")
        if machine is None or machine.model is None:
            place = machine.place if machine else platform.name.place
            self.reporter.error(
                place,
                f"platform '{platform.name.name}' does not say how many accelerators it has",
                "write accelerators = 64 of a100_80g",
            )
            return None
        count = self._number(
            lambda: whole(
                evaluate(machine.value, scope), machine.value.place, "the number of accelerators", 1, MAX_ACCELERATORS
            )
        )
        found = unit.accelerators.get(machine.model.name)
        if found is None:
            hint = choices(machine.model.name, unit.accelerators, "known ones")
            self.reporter.error(machine.model.place, f"unknown accelerator '{machine.model.name}'", hint)
        accelerator = self.accelerator(*found) if found else None
        links = self._links(platform, scope, count)
        transfers = self._optional(fields, "transfers", TRANSFERS[0], network.word)
        if count is None or accelerator is None or links is None or transfers is None:
            return None
        return make_platform(
            platform.name.name,
            accelerator=machine.model.name,
            accelerators=count,
            links=[link for link, _ in links],
            transfers=transfers,
            measured=[table for _, tables in links for table in tables],
            **accelerator,
        )

    # --- accelerators ----------------------------------------------------------------------------

    def accelerator(self, node: ast.Accelerator, unit: Unit) -> dict[str, Any] | None:
        """The rates of an accelerator, as arguments of ``make_platform``; None after errors."""
        scope = self.scope_of(unit)
        what = f"accelerator '{node.name.name}'"
        fields = self._fields([f for f in node.fields if f.element is None], _ACCELERATOR, what)
        good = self._require(fields, node.fields, _REQUIRED, what, node.name.place)
        readers: Mapping[str, Callable[[ast.Field], int | float]] = {
            "memory": lambda f: self._amount(f, scope, SIZE, 1),
            "bandwidth": lambda f: self._amount(f, scope, BANDWIDTH, 1),
            "launch": lambda f: self._amount(f, scope, TIME, 0),
            "saturation": lambda f: self._amount(f, scope, WORK, 0),
            "compute_efficiency": lambda f: fraction(evaluate(f.value, scope), f.value.place, f"'{f.name.name}'"),
            "memory_efficiency": lambda f: fraction(evaluate(f.value, scope), f.value.place, f"'{f.name.name}'"),
        }
        result: dict[str, Any] = {}
        for name, field in fields.items():
            value = self._number(lambda name=name, field=field: readers[name](field))
            good = good and value is not None
            result[name] = value
        peak = self._peaks(node, scope)
        if peak is None or not good:
            return None
        return {**result, "peak": peak}

    def _peaks(self, node: ast.Accelerator, scope: Lookup) -> dict[str, int] | None:
        peaks: dict[str, ast.Field] = {}
        rates: dict[str, int] = {}
        good = True
        for field in node.fields:
            element = field.element
            if element is None:
                continue
            if element.name not in ELEMENT_TYPES:
                hint = choices(element.name, ELEMENT_TYPES, "element types")
                self.reporter.error(element.place, f"unknown element type '{element.name}'", hint)
                good = False
            elif element.name in peaks:
                first = note(peaks[element.name].place, "first given here")
                self.reporter.error(element.place, f"the peak of {element.name} is given twice", notes=[first])
                good = False
            else:
                peaks[element.name] = field
                rate = self._number(lambda field=field: self._amount(field, scope, RATE, 1, "a peak rate"))
                good = good and rate is not None
                rates[element.name] = rate or 1
        if not peaks and good:
            message = f"accelerator '{node.name.name}' has no peak rate"
            self.reporter.error(node.name.place, message, "write peak bf16 = 312 TFLOP/s")
            good = False
        return rates if good else None

    # --- links -----------------------------------------------------------------------------------

    def _links(self, platform: ast.Platform, scope: Lookup, count: int | None) -> list[_Level] | None:
        links: list[_Level] = []
        good = sized = True
        names: dict[str, ast.Link] = {}
        previous = 0
        for position, link in enumerate(platform.links):
            last = position == len(platform.links) - 1
            what = f"link '{link.name.name}'"
            if link.name.name in names:
                first = note(names[link.name.name].name.place, "first defined here")
                self.reporter.error(link.name.place, f"{what} is already defined", notes=[first])
                good = False
            names.setdefault(link.name.name, link)
            size = self._number(
                lambda link=link, last=last, inside=previous: self._size(link, scope, count, inside, last)
            )
            sized = sized and size is not None
            span = (previous, size) if sized and size is not None else None
            made = self._link(link, scope, size, span, what)
            reach = None if span is None or count is None else (span[0], min(span[1], count))
            tables = self._measured(link, scope, reach)
            previous = size or previous
            if made is None or tables is None:
                good = False
            else:
                links.append((made, tables))
        return links if good else None

    def _link(
        self, link: ast.Link, scope: Lookup, size: int | None, span: tuple[int, int] | None, what: str
    ) -> LinkAttr | None:
        """One level; ``span`` is the size of the level inside it and its own, where known. None after errors."""
        members = None if span is None else -(-span[1] // (span[0] or 1))
        fields = self._fields(link.fields, _LINK, what)
        complete = self._require(fields, link.fields, _LINK_REQUIRED, what, link.name.place)
        latency = self._optional(fields, "latency", 0, lambda f: self._amount(f, scope, TIME, 0))
        bandwidth = self._optional(fields, "bandwidth", 1, lambda f: self._amount(f, scope, BANDWIDTH, 1))
        links = self._optional(
            fields,
            "links",
            1,
            lambda f: whole(evaluate(f.value, scope), f.value.place, "the number of links", 1, network.MOST_LINKS),
        )
        topology = self._optional(fields, "topology", ("switch", ()), lambda f: network.topology(f, scope, members))
        duplex = self._optional(fields, "duplex", "full", network.word)
        sharing = self._optional(fields, "sharing", "exclusive", network.word)
        if size is None or latency is None or bandwidth is None or links is None or not complete:
            return None
        if topology is None or duplex is None or sharing is None:
            return None
        kind, sides = topology
        return LinkAttr(
            StringAttr(link.name.name),
            IntAttr(size),
            IntAttr(latency),
            IntAttr(bandwidth),
            IntAttr(links),
            StringAttr(kind),
            ints(sides),
            StringAttr(duplex),
            StringAttr(sharing),
        )

    def _measured(self, link: ast.Link, scope: Lookup, span: tuple[int, int] | None) -> list[MeasuredAttr] | None:
        """The measured tables of a link; None after errors."""
        found: dict[tuple[str, int], tuple[MeasuredAttr, Place]] = {}
        good = True
        for node in link.measured:
            table = self._number(lambda node=node: network.measured(node, scope, span))
            if table is not None and table.key in found:
                first = note(found[table.key][1], "first given here")
                pattern, group = table.key
                message = f"'{pattern}' on {group} accelerators is given twice"
                self.reporter.error(node.pattern.place, message, notes=[first])
            if table is None or table.key in found:
                good = False
            else:
                found[table.key] = (table, node.pattern.place)
        return [table for table, _ in found.values()] if good else None

    @staticmethod
    def _size(link: ast.Link, scope: Lookup, count: int | None, previous: int, last: bool) -> int:
        what = f"the group of link '{link.name.name}'"
        if count is None:
            raise Poisoned
        if link.size is None:
            if not last:
                message = f"link '{link.name.name}' needs a group size: only the last level may leave it out"
                raise Problem(link.name.place, message, f"write link {link.name.name} = 8 {{ ... }}")
            size = count
            place: Place = link.name.place
        else:
            place = link.size.place
            size = whole(evaluate(link.size, scope), place, what, 1)
        if last and size < count:
            message = f"the last link level must span all {count} accelerators, '{link.name.name}' spans {size}"
            raise Problem(place, message, "leave the size out")
        if size <= previous:
            raise Problem(place, f"link levels grow from the innermost outwards: {size} does not exceed {previous}")
        if previous and size % previous and not last:  # the last group of a platform may be incomplete
            raise Problem(place, f"{what} must be a multiple of the level inside it: {size} is not one of {previous}")
        return size

    # --- fields ----------------------------------------------------------------------------------

    def _fields(
        self, fields: tuple[ast.Field, ...] | list[ast.Field], known: tuple[str, ...], what: str
    ) -> dict[str, ast.Field]:
        found: dict[str, ast.Field] = {}
        for field in fields:
            name = field.name
            if name.name not in known:
                self.reporter.error(
                    name.place, f"{what} has no field '{name.name}'", choices(name.name, known, "it has")
                )
            elif name.name in found:
                first = note(found[name.name].name.place, "first given here")
                self.reporter.error(name.place, f"'{name.name}' is given twice", notes=[first])
            else:
                found[name.name] = field
        return found

    def _require(
        self,
        found: Mapping[str, ast.Field],
        written: tuple[ast.Field, ...],
        names: tuple[str, ...],
        what: str,
        place: Place,
    ) -> bool:
        """Whether all of ``names`` are there; a misspelt field is reported as that, not as missing too."""
        missing = [n for n in names if n not in found]
        misspelt = any(f.element is None and f.name.name not in found for f in written)
        if missing and not misspelt:
            listed = ", ".join(f"'{n}'" for n in missing)
            self.reporter.error(place, f"{what} lacks {listed}")
        return not missing

    @staticmethod
    def _amount(field: ast.Field, scope: Lookup, dimension: str, least: int, what: str | None = None) -> int:
        return amount(evaluate(field.value, scope), field.value.place, what or f"'{field.name.name}'", dimension, least)

    def _optional(
        self, fields: Mapping[str, ast.Field], name: str, default: T, read: Callable[[ast.Field], T]
    ) -> T | None:
        """What ``read`` makes of a field, ``default`` where it is left out; None once a problem is reported."""
        field = fields.get(name)
        return default if field is None else self._number(lambda: read(field))

    def _number(self, read: Callable[[], T]) -> T | None:
        """The value, or None once its problem is reported."""
        try:
            return read()
        except Problem as problem:
            self.reporter.error(problem.place, problem.message, problem.hint, problem.notes)
        except Poisoned:
            pass
        return None
