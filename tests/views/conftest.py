"""What tests of views need: nothing that another test has compiled."""

import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def nothing_compiled():
    """All views of a class share its `forward`, and `torch.compile` refuses one function the ninth time."""
    yield
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
