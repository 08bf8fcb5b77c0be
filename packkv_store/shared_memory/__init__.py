"""The shared-memory path: clients on this host read blocks where they are, in their own arena."""

from packkv_store.shared_memory.server import SharedMemory

__all__ = ["SharedMemory"]
