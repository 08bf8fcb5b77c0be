"""What only a GPU can show: a captured graph follows sequences and pages that change in place."""

from __future__ import annotations

import pytest
import torch

from packkv_kernels.testing import check_growing_decode


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_captured_decode_step_follows_sequences_that_grow() -> None:
    check_growing_decode(torch.device("cuda"), rounds=6)
