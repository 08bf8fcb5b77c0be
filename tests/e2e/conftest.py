"""What the end-to-end tests share with those of single parts."""

from tests.clients.worker.conftest import tiny_model

__all__ = ["tiny_model"]
