"""GPU kernels checked and timed where a GPU is; `benchmarks/gpu.py` is the command.

plan       what is asked for;  clock  how a call is timed, or rehearsed without a GPU
checks     every kernel against the reference, before anything is timed
packed, kvcomp, model    cases;  baselines  what they are compared with
questions  experiments that settle what could not be known without a device
report     rows to JSON, CSV and SVG
"""
