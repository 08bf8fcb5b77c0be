"""The bulk path: payloads over a TCP connection of their own, at the speed of the socket."""

from packkv_store.bulk.server import Bulk

__all__ = ["Bulk"]
