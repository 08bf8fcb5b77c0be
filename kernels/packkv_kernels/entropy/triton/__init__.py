"""Entropy coding on a GPU: cold payloads back to resident sections, and KVComp.

section_decoder         for the host: what ColdHead.decode does, on a device
cold                    what is launched, from payloads to sections
cold_tables, cold_lanes, cold_sections  lengths to tables, bits to symbols, symbols to planes

KVComp has the same bits as `entropy.kvcomp`, and attention over them as they lie:

units, encode      values to codes, codes to blocks;  codebook  the tables on the device
slices             bits back to codes, in registers;  decode, attend  to values, to attention
side, attention    what is launched, and with which buffers
"""
