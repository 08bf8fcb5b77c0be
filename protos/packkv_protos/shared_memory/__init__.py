"""The shared-memory protocol, written by hand and shared by both ends: its frames.

docs/protocol.md says what a caller may rely on, `frames` says it byte by byte.
"""
