"""What a platform says about its network, seen in the IR after a round trip through text."""

from __future__ import annotations

from compiler.ir_input import parse_ir
from compiler.output import print_ir
from compiler.pipeline import new_context
from dialects.attributes import values
from dialects.structure import PlatformOp, find_platform
from frontend import Source, load

TINY = "accelerator a {\n memory = 1 GiB bandwidth = 1 GB/s launch = 0 ns peak f32 = 1 TFLOP/s\n}\n"


def platform_of(text: str) -> PlatformOp:
    """The platform of a text, once printed and read back."""
    module = load(
        Source("m.takt", "model m {\n input x: tensor<4, f32>\n output x\n}\n"), platform=Source("p.takt", TINY + text)
    )
    module.verify()
    again = parse_ir(new_context(), print_ir(module), "m.mlir")
    assert module.is_structurally_equivalent(again)
    found = find_platform(again)
    assert found is not None
    return found


def test_what_a_network_is_like() -> None:
    found = platform_of(
        "const side = 4\nconst shared = 3\nplatform p {\n accelerators = 60 of a\n transfers = buffered\n"
        " link node = side { latency = 1 us bandwidth = 1 GB/s topology = full duplex = half sharing = shared\n"
        "  links = 2 }\n"
        " link board = 2 * side { latency = 1 us bandwidth = 1 GB/s links = shared topology = ring duplex = full }\n"
        " link all { latency = 2 us bandwidth = 1 GB/s topology = torus(div(side, 2), side) sharing = exclusive }\n}\n"
    )
    assert found.mode == "buffered"
    links = [
        (k.size.data, k.links.data, k.topology.data, values(k.shape), k.duplex.data, k.sharing.data)
        for k in found.links.data
    ]
    assert links == [
        (4, 2, "full", (), "half", "shared"),
        (8, 3, "ring", (), "full", "exclusive"),
        (60, 1, "torus", (2, 4), "full", "exclusive"),
    ]


def test_what_a_network_is_like_when_nothing_is_said() -> None:
    found = platform_of("platform p {\n accelerators = 6 of a\n link all { latency = 2 us bandwidth = 1 GB/s }\n}\n")
    (link,) = found.links.data
    assert (link.links.data, link.topology.data, values(link.shape)) == (1, "switch", ())
    assert (link.duplex.data, link.sharing.data, found.mode) == ("full", "exclusive", "overlapped")
    assert found.collectives() == ()


def test_measured_times_of_collectives() -> None:
    found = platform_of(
        "const most = 1 MiB\nplatform p {\n accelerators = 8 of a\n"
        " link node = 4 {\n  latency = 1 us\n  measured all_reduce on 2 {most: 55us, 64 KiB: 30us}\n"
        "  bandwidth = 1 GB/s\n measured broadcast on 4 {1 B: 0 ns, 2 B: 5 ns}\n }\n"
        " link all { latency = 2 us bandwidth = 1 GB/s measured all_reduce on 8 {1 KB: 2us, 2 KB: 3us} }\n}\n"
    )
    assert [(*table.key, table.points()) for table in found.collectives()] == [
        ("all_reduce", 2, ((65536, 30_000), (2**20, 55_000))),
        ("broadcast", 4, ((1, 0), (2, 5))),
        ("all_reduce", 8, ((1000, 2000), (2000, 3000))),
    ]
