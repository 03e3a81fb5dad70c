"""The takt dialect: operators, the structure around them, and their attributes."""

from xdsl.ir import Dialect

from dialects.attributes import BlockAttr, CostAttr, LimitsAttr, ScheduleAttr, SlotAttr
from dialects.communication import COMMUNICATION
from dialects.gradients import GRADIENTS, ForwardAttr, OptimizerStepOp, TrainingAttr
from dialects.links import LinkAttr
from dialects.measured import MeasuredAttr
from dialects.operators import OPERATORS
from dialects.programs import ProgramOp
from dialects.structure import GraphOp, InputOp, NextOp, OutputOp, PlatformOp, StageOp, StateOp

Takt = Dialect(
    "takt",
    [
        PlatformOp,
        GraphOp,
        InputOp,
        StateOp,
        StageOp,
        *OPERATORS,
        *GRADIENTS,
        OptimizerStepOp,
        *COMMUNICATION,
        NextOp,
        OutputOp,
        ProgramOp,
    ],
    [BlockAttr, CostAttr, ForwardAttr, LimitsAttr, LinkAttr, MeasuredAttr, ScheduleAttr, SlotAttr, TrainingAttr],
)
