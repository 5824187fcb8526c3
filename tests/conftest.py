"""What many tests need: quiet libraries, no network, and Ctrl-C that works."""

import os
import signal

# Before torch is imported, and for the processes that tests start: two processes with two threads each, on
# two cores, wait for one another, and sums are rounded by how many threads take part.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Started in the background of a script, the tests inherit an ignored SIGINT, and so would all they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def kernel_compiled():
    """Once, before any test looks at what is said meanwhile or how long something takes."""
    from restack.runtime.native import quiet_kernel

    quiet_kernel()


THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True)
def threads_as_usual():
    """A test that sets the number of threads must not reach the next."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)
