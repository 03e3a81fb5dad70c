"""The transfers in a trace: a process "links" with a track for each way in or out that transfers occupy.

A transfer has a slice on each track that it occupies: of accelerators that send and of those that receive, on the level
it uses; where it stops them and passes a buffer, its copies out and in. What carries several transfers at once has
several tracks, so that slices never overlap. Of very many tracks, those that always carry the same are one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from compiler.links import Instance, leaving, moves_in, occupied
from compiler.targets.text import ranges, value_of
from compiler.targets.trace_events import MOST_SLICES, NAMES, Event, about, us
from compiler.view import ScheduleView

PROCESS = 2
"""The process of the links, where they have one of their own."""

SIDES = ("send", "receive", "port", "wire", "copy out", "copy in")
"""What a track is, in the order in which those of an accelerator stand."""


@dataclass(frozen=True)
class End:
    """One end of an instance, at ``[begin, end)`` whole ns from the start of the trace."""

    transfer: int
    microbatch: int
    arrives: bool
    begin: int
    end: int


@dataclass(frozen=True, order=True)
class _Track:
    """The number of the level is -1 for an accelerator that copies."""

    first: int
    last: int
    level: int
    side: int


class LinkTracks:
    """What is on the tracks of the links; ``whole`` turns ns of the schedule into those of the trace.

    Numbers of tracks begin after ``base``; they belong to ``process``.
    """

    def __init__(
        self,
        view: ScheduleView,
        found: list[Instance],
        whole: Callable[[Fraction], int],
        base: int,
        process: int = PROCESS,
    ):
        self.view, self.base, self.process = view, base, process
        self.rows: list[tuple[str, list[End]]] = []
        """Name and slices of each track, from the top."""
        self.row_of: dict[End, int] = {}
        """The first track that shows an end."""
        self.ends: dict[tuple[int, int], tuple[End, End]] = {}
        """Transfer and micro-batch → what leaves, what arrives."""
        on: dict[_Track, dict[End, None]] = {}
        leader = leaving(view, found)
        for x in found:
            sent, landed = (
                End(of.move.index, x.microbatch, arrives, whole(begin), whole(begin + of.move.time))
                for arrives, begin, of in ((False, x.sent, leader[x]), (True, x.landed, x))
            )
            self.ends[x.move.index, x.microbatch] = sent, landed
            for end, tracks in zip((sent, landed), self._tracks(x), strict=True):
                for track in tracks:
                    on.setdefault(track, {})[end] = None
        for members in _alike(on):
            for number, lane in enumerate(_lanes(on[members[0]]), start=1):
                self.rows.append((self._name(members) + (f" ({number})" if number > 1 else ""), lane))
                for end in lane:
                    self.row_of.setdefault(end, base + len(self.rows))

    def _tracks(self, x: Instance) -> tuple[set[_Track], set[_Track]]:
        """The tracks of both ends; what takes part in both is shown once, where it leaves."""
        names = [link.name for link in self.view.platform.links]
        buffered = self.view.platform.transfers == "buffered"
        send, receive = occupied(self.view, x.move, x.microbatch)
        if not buffered:
            receive -= send
        ends: list[set[_Track]] = [set(), set()]
        for tracks, resources, copy in ((ends[0], send, "copy out"), (ends[1], receive, "copy in")):
            # An accelerator that stands still for a link is seen on the track of that link.
            for r in (r for r in resources if buffered or r.kind != "accelerator"):
                level = names.index(r.link) if r.link in names else -1
                side = copy if r.kind == "accelerator" else r.kind
                tracks.add(_Track(r.first, r.last, level, SIDES.index(side)))
        return ends[0], ends[1]

    def _name(self, members: Sequence[_Track]) -> str:
        track = members[0]
        level = f" over {self.view.platform.links[track.level].name}" if track.level >= 0 else ""
        if track.first != track.last:
            return f"accelerators {track.first} and {track.last} {SIDES[track.side]}{level}"
        places = [m.first for m in members]
        where = f"accelerator {places[0]}" if len(places) == 1 else f"accelerators {ranges(places)}"
        return f"{where} {SIDES[track.side]}{level}"

    # --- events ------------------------------------------------------------------------------

    def metadata(self) -> Iterator[Event]:
        """Names and order of the process and its tracks."""
        if not self.rows:
            return
        yield about("process_name", self.process, 0, name="links")
        yield about("process_sort_index", self.process, 0, sort_index=1)
        yield from self.tracks()

    def tracks(self) -> Iterator[Event]:
        """Names and order of the tracks alone."""
        for track, (name, _) in enumerate(self.rows, start=self.base + 1):
            yield about("thread_name", self.process, track, name=name)
            yield about("thread_sort_index", self.process, track, sort_index=track)

    def slices(self) -> Iterator[Event]:
        """One slice an end on each of its tracks."""
        for track, (_, ends) in enumerate(self.rows, start=self.base + 1):
            for end in ends:
                yield {
                    "ph": "X",
                    "name": f"{value_of(self.view, self.view.moves[end.transfer])} to {self._targets(end)}",
                    "cat": "transfer",
                    "pid": self.process,
                    "tid": track,
                    "ts": us(end.begin),
                    "dur": us(end.end - end.begin),
                    "cname": NAMES[end.microbatch % len(NAMES)],
                    "args": self._facts(end),
                }

    def _facts(self, end: End) -> Event:
        move = self.view.moves[end.transfer]
        return {
            "value": value_of(self.view, move),
            "bytes": move.size,
            "link": move.link,
            "from": ranges(self.view.tasks[move.producer].set_of(end.microbatch)),
            "to": self._targets(end),
            "micro-batch": end.microbatch,
            "start_ns": move.start,
            "landing_ns": move.landing,
            "time_ns": move.time,
        }

    def _targets(self, end: End) -> str:
        """Where it goes; a copy out, to all sets that it serves."""
        view, move, i = self.view, self.view.moves[end.transfer], end.microbatch
        served = [move]
        if view.platform.transfers == "buffered" and not end.arrives:
            same = (move.producer, move.result, move.start)
            served = [m for m in view.moves if (m.producer, m.result, m.start) == same and moves_in(view, m, i)]
        return ", ".join(ranges(m.target_of(i)) for m in served)

    def stops(self, transfer: int, microbatch: int) -> list[Event]:
        """Where arrows pass a transfer: the first moment of what leaves, and the last of what arrives."""
        ends = self.ends.get((transfer, microbatch), ())
        return [
            {"pid": self.process, "tid": self.row_of[end], "ts": us(end.end - 1 if end.arrives else end.begin)}
            for end in ends
            if end in self.row_of
        ]


def _alike(on: dict[_Track, dict[End, None]]) -> list[list[_Track]]:
    """The tracks in order; of very many, those that carry the same together."""
    if sum(map(len, on.values())) <= MOST_SLICES:
        return [[track] for track in sorted(on)]
    alike: dict[object, list[_Track]] = {}
    for track in sorted(on):
        wire = (track.first, track.last) if track.first != track.last else None
        alike.setdefault((track.level, track.side, wire, tuple(on[track])), []).append(track)
    return list(alike.values())


def _lanes(ends: Iterable[End]) -> list[list[End]]:
    """Spread ends so that none overlaps another, over as few lanes as there are at once."""
    lanes: list[list[End]] = []
    for end in sorted(ends, key=lambda e: (e.begin, e.end, e.transfer)):
        lane = next((lane for lane in lanes if lane[-1].end <= end.begin), None)
        if lane is None:
            lanes.append([end])
        else:
            lane.append(end)
    return lanes
