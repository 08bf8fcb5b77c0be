"""CataloguedKernel: a GPU kernel at one shape, with all that compiling it takes."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ARGUMENT_TYPES", "CataloguedKernel"]

# Types of the arguments that are not compile-time constants, by name; others are int32.
ARGUMENT_TYPES = {
    "query_ptr": "*fp16",
    "order_ptr": "*i16",
    "step_ptr": "*fp32",
    "inv_step_ptr": "*fp32",
    "steps_ptr": "*fp32",
    "middle_ptr": "*fp32",
    "spread_ptr": "*fp32",
    "words_ptr": "*u32",
    "bases_ptr": "*i64",
    "descriptors_ptr": "*i32",
    "directory_ptr": "*i32",
    "table_ptr": "*i32",
    "pages_ptr": "*i32",
    "exact_ptr": "*i32",
    "minima_scores_ptr": "*fp32",
    "mean_ptr": "*fp32",
    "lse_ptr": "*fp32",
    "out_ptr": "*fp32",
    "out_lse_ptr": "*fp32",
    "keys_ptr": "*fp16",
    "values_ptr": "*fp16",
    "k_scales_ptr": "*fp32",
    "k_zeros_ptr": "*fp32",
    "v_scales_ptr": "*fp32",
    "v_zeros_ptr": "*fp32",
    "scales_ptr": "*fp32",
    "zeros_ptr": "*fp32",
    "range_bounds_ptr": "*fp32",
    "step_bounds_ptr": "*fp32",
    "levels_ptr": "*i32",
    "codes_ptr": "*u8",
    "scale_codes_ptr": "*i16",
    "inverse_ptr": "*fp32",
    "thresholds_ptr": "*fp32",
    "starts_ptr": "*i64",
    "rel": "fp32",
    "factor": "fp32",
}


@dataclass(frozen=True)
class CataloguedKernel:
    """A kernel at one shape.

    Attributes:
        name: what it does, and for which shape.
        function: the jitted function.
        constants: its compile-time arguments.
        elements: values of K and V that a program takes, in one iteration if `loop`.
        loop: whether its cost is that of its main loop.
        inner: whether that is the longest of its innermost loops.
        warps: of a program.
        options: of the launch.
        types: of arguments whose type is not in `ARGUMENT_TYPES`.
    """

    name: str
    function: Any
    constants: dict[str, Any]
    elements: int
    loop: bool = False
    inner: bool = False
    warps: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
