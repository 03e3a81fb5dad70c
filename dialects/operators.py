"""The operators of a model: one registry of all, and what other packages need of their base."""

from __future__ import annotations

from typing import ClassVar

from xdsl.irdl import irdl_op_definition

from dialects.nn.base import (
    ELEMENT_TYPES,
    Inference,
    OperatorOp,
    ShapeError,
    Tensor,
    check_tensor,
    element_bytes,
    is_group_name,
    operator_names,
    show,
    tensor_bytes,
)
from dialects.nn.dense import (
    AttentionOp,
    EmbeddingOp,
    ExpertsOp,
    LinearOp,
    MatmulOp,
    PositionEmbeddingOp,
    RotaryOp,
    RouterOp,
)
from dialects.nn.pointwise import (
    ActivationOp,
    AddOp,
    BatchNormOp,
    BinaryOp,
    CrossEntropyOp,
    GeluOp,
    LayerNormOp,
    MseLossOp,
    MulOp,
    ReduceOp,
    ReluOp,
    ResidualOp,
    RmsNormOp,
    SigmoidOp,
    SiluOp,
    SoftmaxOp,
    SubOp,
    TanhOp,
    UnaryOp,
)
from dialects.nn.spatial import (
    AvgPoolOp,
    ConcatOp,
    Conv2dOp,
    GlobalAvgPoolOp,
    MaxPoolOp,
    PoolOp,
    ReshapeOp,
    SliceOp,
    SplitOp,
    TransposeOp,
)


@irdl_op_definition
class OpaqueOp(OperatorOp):
    """An operator known only by its written table of times; its result types are stated, not inferred.

    ```
    %c = takt.op(%a, %b) cost <[1, 2] time [812000, 430000]> : (tensor<8xi8>, tensor<8xi8>) -> tensor<0xi8>
    ```
    """

    name = "takt.op"
    ARITY: ClassVar[tuple[int, int | None]] = (0, None)


OPERATORS: tuple[type[OperatorOp], ...] = (
    OpaqueOp,
    LinearOp,
    MatmulOp,
    AttentionOp,
    LayerNormOp,
    RmsNormOp,
    BatchNormOp,
    SoftmaxOp,
    EmbeddingOp,
    PositionEmbeddingOp,
    RotaryOp,
    AddOp,
    SubOp,
    MulOp,
    ResidualOp,
    GeluOp,
    ReluOp,
    SiluOp,
    TanhOp,
    SigmoidOp,
    RouterOp,
    ExpertsOp,
    Conv2dOp,
    MaxPoolOp,
    AvgPoolOp,
    GlobalAvgPoolOp,
    ConcatOp,
    SplitOp,
    ReshapeOp,
    TransposeOp,
    SliceOp,
    ReduceOp,
    CrossEntropyOp,
    MseLossOp,
)
"""Every operator of the language, in the order of the reference manual."""

__all__ = [
    "ELEMENT_TYPES",
    "OPERATORS",
    "ActivationOp",
    "AddOp",
    "AttentionOp",
    "AvgPoolOp",
    "BatchNormOp",
    "BinaryOp",
    "ConcatOp",
    "Conv2dOp",
    "CrossEntropyOp",
    "EmbeddingOp",
    "ExpertsOp",
    "GeluOp",
    "GlobalAvgPoolOp",
    "Inference",
    "LayerNormOp",
    "LinearOp",
    "MatmulOp",
    "MaxPoolOp",
    "MseLossOp",
    "MulOp",
    "OpaqueOp",
    "OperatorOp",
    "PoolOp",
    "PositionEmbeddingOp",
    "ReduceOp",
    "ReluOp",
    "ReshapeOp",
    "ResidualOp",
    "RmsNormOp",
    "RotaryOp",
    "RouterOp",
    "ShapeError",
    "SigmoidOp",
    "SiluOp",
    "SliceOp",
    "SoftmaxOp",
    "SplitOp",
    "SubOp",
    "TanhOp",
    "Tensor",
    "TransposeOp",
    "UnaryOp",
    "check_tensor",
    "element_bytes",
    "is_group_name",
    "operator_names",
    "show",
    "tensor_bytes",
]
