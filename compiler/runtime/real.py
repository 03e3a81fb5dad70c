"""Instructions on real tensors: every accelerator computes its part of each operator, and messages carry its bytes.

Inside ``compute`` the accelerators of a set exchange what the split of the operator takes (all-reduce, all-gather),
after which each has all of the result, also where the program counts on its share only; a share that came by message
is completed by the first operator that reads it. Gradients of parameters stay on the accelerators that hold these. All
members of a set run the same operators in the same order, which the schedule sees to, and so they meet in the same
collectives.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from compiler.runtime.backend import Backend, Place
from compiler.runtime.clock import now
from compiler.runtime.fits import real_size, scale
from compiler.runtime.job import Read, Value, outputs_file, trained_file
from compiler.runtime.torch_calls import WHOLE, Call, Rule
from compiler.runtime.torch_gradients import again, run_input, run_weight
from compiler.runtime.torch_operators import run
from compiler.runtime.torch_training import Named, Trained
from compiler.runtime.torch_values import (
    Parameters,
    from_bytes,
    initial_value,
    input_value,
    to_bytes,
)
from dialects.programs import Instruction
from passes.programs.messages import share

Members = tuple[int, ...]

LOST = 0xFF
"""Every byte of a buffer until it is written: what no message brings is no number, and neither is what reads it."""


@dataclass
class _Held:
    """All bytes of a value, whether written or not; ``share`` while they are this accelerator's share only."""

    data: Tensor
    share: bool = False


Key = tuple[int, int, int, int]
"""Subject, result, destination, micro-batch."""


class RealBackend(Backend):
    """The values of one accelerator as tensors of bytes, in types as wide as those of the IR or wider."""

    sums = True

    def __init__(self, place: Place):
        super().__init__(place)
        self.job = place.job
        self.parameters = Parameters(place.job.settings.seed, place.device)
        self.held: dict[Key, _Held] = {}
        self.trained = Trained(self.job, self.parameters, place.accelerator, self)

    # --- messages ----------------------------------------------------------------------------

    def message(self, x: Instruction) -> Tensor:
        return self._bytes(x, self.held[x.subject, x.result, 0, x.microbatch].data)

    def landing(self, x: Instruction) -> Tensor:
        return self._bytes(x, self._arriving(x).data)

    def arrived(self, x: Instruction, tensor: Tensor) -> int:
        return now()

    def copy(self, x: Instruction) -> None:
        self._bytes(x, self._arriving(x).data).copy_(self.message(x))

    def all_gather(self, x: Instruction, among: Members) -> None:
        self._complete(self._arriving(x), self._value(x.subject, x.result), among)

    def free(self, x: Instruction) -> None:
        del self.held[x.subject, x.result, x.destination, x.microbatch]

    def _value(self, subject: int, result: int) -> Value:
        return self.job.inputs[-1 - subject] if subject < 0 else self.job.operators[subject].results[result]

    def _bytes(self, x: Instruction, data: Tensor) -> Tensor:
        """The bytes of a buffer that an instruction names in bytes of the IR."""
        factor = scale(self._value(x.subject, x.result))
        return data[x.begin * factor : x.end * factor]

    def _arriving(self, x: Instruction) -> _Held:
        """The buffer of a destination, there from its first piece."""
        key = (x.subject, x.result, x.destination, x.microbatch)
        if key not in self.held:
            value = self._value(x.subject, x.result)
            target = self._destination(x.subject, x.result, x.destination, x.microbatch)
            empty = torch.full((real_size(value),), LOST, dtype=torch.uint8, device=self.place.device)
            self.held[key] = _Held(empty, share=value.sharded and len(target) > 1)
        return self.held[key]

    def _destination(self, subject: int, result: int, destination: int, microbatch: int) -> Members:
        turns = self._value(subject, result).destinations[destination - 1]
        return turns[microbatch % len(turns)]

    # --- operators ---------------------------------------------------------------------------

    def compute(self, x: Instruction) -> None:
        operator = self.job.operators[x.subject]
        members = operator.on(x.microbatch)
        inputs = [self._read(read, x.microbatch - read.distance) for read in operator.reads]
        call = Call(operator, inputs, self.parameters, members.index(self.place.accelerator), len(members))
        for number, (value, (tensor, rule)) in enumerate(zip(operator.results, self._made(call, members), strict=True)):
            whole = self._whole(tensor, rule, members).reshape(value.shape)
            self.held[x.subject, number, 0, x.microbatch] = _Held(to_bytes(whole))

    def _made(self, call: Call, members: Members) -> list[tuple[Tensor, Rule]]:
        """The results of a part, and how parts make the whole of each."""
        if call.operator.kind == "weight_gradient":
            self.trained.add(run_weight(call), members, call.operator.group or "")
            return [(torch.empty(value.shape), WHOLE) for value in call.operator.results]
        if call.operator.kind == "input_gradient":
            return list(zip(*run_input(call), strict=True))
        made, rule = run(again(call) if call.operator.kind == "recompute" else call)
        return [(tensor, rule) for tensor in made]

    def update(self, number: int) -> None:
        self.trained.update(self.job.updates[number])

    def _read(self, read: Read, microbatch: int) -> Tensor:
        """An operand; the share of one is completed first, together with the other accelerators that read it."""
        value = self._value(read.subject, read.result)
        if microbatch < 0:
            return initial_value(value).to(self.place.device)
        destination = read.destination
        if read.subject < 0:
            key = (read.subject, 0, 0, microbatch)
            if key not in self.held:
                given = input_value(self.job, -1 - read.subject, microbatch).to(self.place.device)
                self.held[key] = _Held(to_bytes(given))
        elif destination:
            target = self._destination(read.subject, read.result, destination, microbatch)
            if target == self.job.operators[read.subject].on(microbatch):
                destination = 0
            elif (held := self.held[read.subject, read.result, destination, microbatch]).share:
                self._complete(held, value, target)
        return from_bytes(self.held[read.subject, read.result, destination, microbatch].data, value)

    # --- together ----------------------------------------------------------------------------

    def _complete(self, held: _Held, value: Value, members: Members) -> None:
        """Gather the pieces of a buffer of which each member has its own."""
        factor, own = scale(value), members.index(self.place.accelerator)
        bounds = [share(value.size, j, len(members)) for j in range(len(members))]
        begin, end = bounds[own]
        sizes = [(end - begin) * factor for begin, end in bounds]
        held.data = torch.cat(self.gather(held.data[begin * factor : end * factor], sizes, members))
        held.share = False

    def _whole(self, part: Tensor, rule: Rule, members: Members) -> Tensor:
        """The whole result of which this accelerator has computed a part."""
        if len(members) == 1 or not (rule.added or rule.dim is not None):
            return part
        if rule.dim is None:
            return self.add(part.contiguous(), members)
        first = part.movedim(rule.dim, 0).contiguous()
        return torch.cat(self.gather(first, rule.sizes(len(members)), members)).movedim(0, rule.dim)

    def _group(self, members: Members, tie: str | None) -> dist.ProcessGroup:
        """Those who exchange something: where it is for a tie, in no order with the other things they exchange."""
        return self.place.groups[members] if tie is None else self.place.ties[tie]

    def add(self, part: Tensor, members: Members, tie: str | None = None) -> Tensor:
        """The sum of the parts of all members."""
        with _others():
            dist.all_reduce(part, group=self._group(members, tie))
        return part

    def gather(self, part: Tensor, sizes: Sequence[int], members: Members, tie: str | None = None) -> list[Tensor]:
        """The parts ``[size, ...]`` of all members in their order, where ``sizes`` are theirs."""
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        found = [torch.empty_like(padded) for _ in members]
        with _others():
            dist.all_gather(found, padded, group=self._group(members, tie))
        return [one[:size] for one, size in zip(found, sizes, strict=True)]

    def names(self, own: set[Named], members: Members, tie: str | None = None) -> list[Named]:
        """The names of all members, in order."""
        text = json.dumps([(role, shape, str(dtype).removeprefix("torch.")) for role, shape, dtype in own]).encode()
        sizes = torch.zeros(len(members), dtype=torch.int64, device=self.place.device)
        sizes[members.index(self.place.accelerator)] = len(text)
        if len(members) > 1:
            sizes = self.add(sizes, members, tie)
            mine = torch.tensor(list(text), dtype=torch.uint8, device=self.place.device)
            texts = [bytes(x.tolist()) for x in self.gather(mine, sizes.tolist(), members, tie)]
            own = {(r, tuple(s), getattr(torch, d)) for one in texts for r, s, d in json.loads(one)}
        return sorted(own, key=str)

    # --- outputs -----------------------------------------------------------------------------

    def finish(self, folder: Path) -> None:
        """Leave ``{(output, micro-batch): tensor}`` of all that this accelerator computed of the graph's outputs."""
        found: dict[tuple[int, int], Tensor] = {}
        for output, (subject, result) in enumerate(self.job.outputs):
            if subject < 0:
                continue
            value = self._value(subject, result)
            for microbatch in range(self.job.microbatches):
                held = self.held.get((subject, result, 0, microbatch))
                if held is not None:
                    # A copy, as what is saved would be all the memory that it is a part of.
                    found[output, microbatch] = from_bytes(held.data, value).clone().cpu()
        torch.save(found, outputs_file(folder, self.place.rank))
        if self.job.optimizer is not None:
            torch.save(self.trained.pieces(), trained_file(folder, self.place.rank))


@contextmanager
def _others() -> Iterator[None]:
    """What fails between accelerators is the end of another one, as a rule: ConnectionError."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(str(error)) from error
