"""What tests of the house model need: no more threads than there are cores for."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Two processes with two threads each, on two cores, wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
