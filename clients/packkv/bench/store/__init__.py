"""`packkv bench store`: what moving blocks costs, next to what memory and socket could do.

plan, blocks   what is moved
processes      a store, a raw TCP peer, a Redis; each a process of its own
movers         one way to move all blocks there and back: by a data path, raw TCP, Redis
transfers      every mover in turn, idle and beside a busy thread, round after round
matching       the time of a Match;  scaling  many client processes at one time
report         JSON, CSV rows, tables
"""
