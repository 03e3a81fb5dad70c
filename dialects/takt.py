"""The takt dialect: operators, the structure around them, and their attributes."""

from xdsl.ir import Dialect

from dialects.attributes import BlockAttr, CostAttr, LinkAttr, ScheduleAttr, SlotAttr
from dialects.operators import OPERATORS
from dialects.structure import GraphOp, InputOp, OutputOp, PlatformOp, StageOp

Takt = Dialect(
    "takt",
    [PlatformOp, GraphOp, InputOp, StageOp, *OPERATORS, OutputOp],
    [BlockAttr, CostAttr, LinkAttr, ScheduleAttr, SlotAttr],
)
