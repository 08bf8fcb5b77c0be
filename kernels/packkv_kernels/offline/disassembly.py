"""Disassembly: what a compiled kernel costs, read from its machine code.

A cubin is taken apart by the tools that Triton brings along; AMD's compiler gives text already.
Counted is the main loop (the longest backward branch), the longest of those that have no other
inside, or, of a kernel without one, all of it.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Cost", "read_cost"]

# Integer and comparison operations that share one pipe of half the issue rate. Operations of the
# uniform datapath (U…) are not counted at all: a warp pays for them once, beside its lanes.
_ALU = re.compile(
    "BMSK|FMNMX|FSEL|FSETP|IABS|IADD3?|IMNMX|ISETP|LEA|LOP3|MOV|P2R|PLOP3|PRMT|R2P|SEL|SGXT|"
    "SH[FLR]|VIADD|VIADDMNMX|VIMNMX"
)

_NVIDIA_LABEL = re.compile(r"\s*(\.L_x_\d+):")
_NVIDIA_CODE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*);")
_NVIDIA_TARGET = re.compile(r"(\.L_x_\d+)")
_AMD_LABEL = re.compile(r"(\.LBB\d+_\d+):")
_AMD_CODE = re.compile(r"\s+([a-z]\w+)(.*)")
_AMD_TARGET = re.compile(r"(\.LBB\d+_\d+)")


@dataclass(frozen=True)
class Cost:
    """What one thread of a kernel needs.

    Attributes:
        registers: of a thread; on AMD vector registers, accumulators included.
        spill_bytes: of a thread's local memory.
        shared_bytes: of a program.
        alu, issue: instructions of the main loop: integer ones, and all of them.
        operations: how often each instruction is there.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    alu: int
    issue: int
    operations: Counter[str]


def read_cost(kernel: Any, *, loop: bool, inner: bool = False) -> Cost:
    """Reads a `triton.compile` result.

    Args:
        kernel: for an NVIDIA or an AMD target.
        loop: whether to count the main loop only.
        inner: whether that is the longest of the innermost loops.

    Raises:
        ValueError: no loop where one is asked for.
    """
    if "cubin" in kernel.asm:
        return _read_cubin(kernel.asm["cubin"], int(kernel.metadata.shared), loop, inner)
    return _read_amdgcn(kernel.asm["amdgcn"], int(kernel.metadata.shared), loop, inner)


def _read_cubin(cubin: bytes, shared: int, loop: bool, inner: bool) -> Cost:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        code = _run("nvdisasm", "-c", file.name)
        usage = _run("cuobjdump", "-res-usage", file.name)
    lines = code.splitlines()
    body = list(_instructions(lines, _NVIDIA_LABEL, _NVIDIA_CODE, _NVIDIA_TARGET))
    jumps = _span(body, lambda name: name.startswith("BRA"), loop, inner)
    operations = Counter(name.split(".")[0] for name, _, _ in body[jumps])
    counted = {name: n for name, n in operations.items() if not name.startswith("U")}
    return Cost(
        registers=_usage(usage, "REG"),
        spill_bytes=max(_usage(usage, "STACK"), _usage(usage, "LOCAL")),
        shared_bytes=shared,
        alu=sum(n for name, n in counted.items() if _ALU.fullmatch(name)),
        issue=sum(n for name, n in counted.items() if name != "NOP"),
        operations=operations,
    )


def _read_amdgcn(text: str, shared: int, loop: bool, inner: bool) -> Cost:
    lines = text.split("s_endpgm")[0].splitlines()
    body = list(_instructions(lines, _AMD_LABEL, _AMD_CODE, _AMD_TARGET))
    jumps = _span(body, lambda name: name.startswith(("s_cbranch", "s_branch")), loop, inner)
    operations = Counter(name for name, _, _ in body[jumps])
    vector = {name: n for name, n in operations.items() if not name.startswith("s_")}
    return Cost(
        registers=_field(text, "vgpr_count"),
        spill_bytes=4 * _field(text, "vgpr_spill_count"),
        shared_bytes=shared,
        alu=sum(n for name, n in vector.items() if name.startswith("v_") and "mfma" not in name),
        issue=sum(vector.values()),
        operations=operations,
    )


_Instruction = tuple[str, str | None, int | None]


def _instructions(
    lines: list[str], label: re.Pattern[str], code: re.Pattern[str], target: re.Pattern[str]
) -> Iterator[_Instruction]:
    """(name, label it refers to, place of that label if it lies before) of each instruction."""
    places: dict[str, int] = {}
    count = 0
    for line in lines:
        if found := label.match(line):
            places[found[1]] = count
        elif found := code.match(line):
            reference = target.search(found[2])
            where = reference[1] if reference else None
            yield found[1], where, places.get(where) if where else None
            count += 1


def _span(
    body: list[_Instruction], is_jump: Callable[[str], bool], loop: bool, inner: bool
) -> slice:
    if not loop:
        return slice(0, len(body))
    spans = [
        (start, place + 1)
        for place, (name, _, start) in enumerate(body)
        if start is not None and is_jump(name) and start < place
    ]
    if not spans:
        raise ValueError("no loop in this kernel")
    if inner:
        spans = [a for a in spans if not any(a[0] <= b[0] and b[1] < a[1] for b in spans)]
    return slice(*max(spans, key=lambda span: span[1] - span[0]))


def _usage(text: str, name: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", text)
    return int(found[1]) if found else 0


def _field(text: str, name: str) -> int:
    found = re.search(rf"\.{name}:\s+(\d+)", text)
    return int(found[1]) if found else 0


def _run(tool: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends/nvidia/bin" / tool
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout
