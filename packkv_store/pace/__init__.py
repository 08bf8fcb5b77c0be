"""How fast each tenant may move payloads."""

from packkv_store.pace.bucket import Bucket
from packkv_store.pace.paced_store import Pace, PacedStore

__all__ = ["Bucket", "Pace", "PacedStore"]
