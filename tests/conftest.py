"""What every test shares: no network, no noise, and the demo's language model."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# before anything imports transformers or torch; waiting threads that spin make torch 5 to 10 times
# slower on a machine that has other work
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"

# started in the background by a shell, the tests and all that they start would ignore Ctrl-C
signal.signal(signal.SIGINT, signal.default_int_handler)

# a machine that is busy with something else must not fail a property
settings.register_profile("packkv", deadline=None)
settings.load_profile("packkv")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak-rounds",
        type=int,
        default=2,
        help="rounds of each soak test: a kill, or some cases; `make soak` says hundreds",
    )


@pytest.fixture(scope="session")
def soak_rounds(pytestconfig: pytest.Config) -> int:
    """How many rounds a test with the marker `soak` takes."""
    return int(pytestconfig.getoption("--soak-rounds"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a transformers folder; converted once per machine."""
    from packkv.demo.model import model_folder

    return model_folder(None)
