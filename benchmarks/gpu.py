"""Checks every Triton kernel against the reference on a GPU, then times them, in ten minutes.

    python benchmarks/gpu.py --json gpu.json --csv gpu.csv --plot gpu.svg
    TRITON_INTERPRET=1 python benchmarks/gpu.py --dry-run        # without a GPU: does it all run?

Nothing is timed before everything is right. A call is captured in a CUDA graph, the L2 cache is
overwritten between replays, and the median is kept. GB/s counts the bytes that must move. What no
longer fits the time is listed as skipped.
"""

from __future__ import annotations

import sys
from pathlib import Path

try:
    import packkv.bench.kernels.gpu.main as bench
except ModuleNotFoundError as error:
    # a machine that only got the sources: nothing needs to be installed
    if error.name not in ("packkv", "packkv_kernels"):
        raise
    root = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(root / folder) for folder in ("clients", "kernels", "protos")]
    import packkv.bench.kernels.gpu.main as bench

if __name__ == "__main__":
    sys.exit(bench.main(sys.argv[1:]))
