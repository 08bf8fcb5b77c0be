"""The bulk protocol, written by hand and shared by both ends: its frames, and the socket they use.

docs/protocol.md says what a caller may rely on, these modules say it byte by byte.
"""
