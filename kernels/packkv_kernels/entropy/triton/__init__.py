"""KVComp on a GPU: the same bits as `entropy.kvcomp`, and attention over them as they lie.

units, encode      values to codes, codes to blocks;  codebook  the tables on the device
slices             bits back to codes, in registers;  decode, attend  to values, to attention
side, attention    what is launched, and with which buffers
"""
