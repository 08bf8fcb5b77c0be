"""GPU kernels without a GPU: compiled for targets that are not here, and their machine code read.

catalogue    every kernel with the shapes its cost is stated for;  kvcomp, cold  some of them
kernel       one of them, with its arguments' types
disassembly  registers, spills and instructions of a compiled kernel
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from packkv_kernels.offline.catalogue import catalogue
from packkv_kernels.offline.disassembly import Cost, read_cost
from packkv_kernels.offline.kernel import ARGUMENT_TYPES, CataloguedKernel

__all__ = [
    "TARGETS",
    "CataloguedKernel",
    "Cost",
    "KernelRow",
    "catalogue",
    "compile_offline",
    "kernel_rows",
]

# Name, Triton backend, architecture, lanes of a warp.
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "gfx942": ("hip", "gfx942", 64),
}


@dataclass(frozen=True)
class KernelRow:
    """A kernel on a target; figures per value of K or V, as one lane of a warp executes them."""

    kernel: str
    target: str
    compiled: bool
    registers: int
    spill_bytes: int
    shared_bytes: int
    alu_per_element: float
    issue_per_element: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def kernel_rows(targets: Iterable[str] = TARGETS, only: str = "") -> Iterator[KernelRow]:
    """Compiles the catalogue and reads what each kernel costs.

    Args:
        targets: names from `TARGETS`.
        only: kernels whose name contains this.
    """
    for target in targets:
        backend, _, lanes = TARGETS[target]
        for kernel in catalogue(backend):
            if only not in kernel.name:
                continue
            cost = compile_offline(kernel, target)
            per_thread = kernel.elements / (kernel.warps * lanes)
            yield KernelRow(
                kernel.name,
                target,
                True,
                cost.registers,
                cost.spill_bytes,
                cost.shared_bytes,
                round(cost.alu / per_thread, 3),
                round(cost.issue / per_thread, 3),
            )


def compile_offline(kernel: CataloguedKernel, target: str) -> Cost:
    """Compiles a kernel for a target and reads its machine code.

    Not in a process with TRITON_INTERPRET=1: there, kernels are Python functions.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.function.arg_names
    types = {**ARGUMENT_TYPES, **kernel.types}
    signature = {
        name: "constexpr" if name in kernel.constants else types.get(name, "i32") for name in names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(names)
        if name.endswith("_ptr")
    }
    source = ASTSource(kernel.function, signature, kernel.constants, aligned)
    options = {"num_warps": kernel.warps, **kernel.options}
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    return read_cost(compiled, loop=kernel.loop, inner=kernel.inner)
