"""`packkv bench ttft`: from which bandwidth on a prefix is better fetched than computed.

plan          prefix lengths, bandwidths, how fast workers compute
pace          when the bytes of a link of some bandwidth are through
shaped_link   such a link between a client and a store, a process of its own
publishing    prefill once per length, store the longest
experiment    load over every link, let the prefix cache choose
first_token   from a prompt to its first token, the prefix whole or layer by layer
report        JSON, CSV rows, tables
"""
