"""Who may share a block with whom.

A `Namespace` lists everything that must be equal for two blocks to be interchangeable; its root
hash opens every hash chain, so a block of another namespace can never match. The digests that go
into it are made by `weights_digest` (files) and `rope_digest` (a model's configuration).
"""

from packkv.identity.namespace import Difference, Namespace
from packkv.identity.rope import rope_digest
from packkv.identity.weights import PROFILE_FILE, weights_digest

__all__ = ["PROFILE_FILE", "Difference", "Namespace", "rope_digest", "weights_digest"]
