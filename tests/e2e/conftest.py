"""What the end-to-end tests share with those of single parts."""

from tests.clients.conftest import patient_paths
from tests.clients.worker.conftest import tiny_model

__all__ = ["patient_paths", "tiny_model"]
