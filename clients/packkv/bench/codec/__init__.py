"""`packkv bench codec`: every codec on the same texts, by the protocol of benchmarks/README.md.

texts       what is tuned on, and what is reported
exact       a text run exactly, and how far a decoded cache is from that
setting     the contract of a codec under test; families, the grid of each
curve       operating points, bits at equal KL, intervals over texts
plan        what is to be measured
experiment  tune, then report;  row  an operating point with its measurements
report      JSON, CSV rows, tables;  plot  the curves as SVG
"""
