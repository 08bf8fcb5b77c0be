"""`packkv bench kernels`: what the GPU kernels cost, read from their machine code."""
