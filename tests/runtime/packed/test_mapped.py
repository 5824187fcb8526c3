"""Pages are dropped where a file has them, and nowhere else."""

import mmap
import sys
from pathlib import Path

import pytest
import torch

from restack.runtime.packed.mapped import forget_pages

COUNT = 64 * mmap.PAGESIZE // 4


@pytest.fixture
def mapped(tmp_path):
    """A tensor that is a private mapping of a file."""
    torch.arange(COUNT, dtype=torch.int32).numpy().tofile(tmp_path / "weights")
    return torch.from_file(str(tmp_path / "weights"), shared=False, size=COUNT, dtype=torch.int32)


def resident(tensor):
    """How many bytes of the mapping in which a tensor lies are in memory."""
    is_inside = False
    with Path("/proc/self/smaps").open() as maps:
        for line in maps:
            if "-" in line.split()[0]:
                begin, end = (int(number, 16) for number in line.split()[0].split("-"))
                is_inside = begin <= tensor.data_ptr() < end
            elif is_inside and line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_a_file_are_dropped_and_read_again(mapped):
    total = int(mapped.sum())
    assert resident(mapped) >= 60 * mmap.PAGESIZE
    forget_pages(mapped)
    assert resident(mapped) <= 2 * mmap.PAGESIZE
    assert int(mapped.sum()) == total


def test_what_was_written_into_a_private_mapping_stays(mapped):
    mapped[1000] = -5
    forget_pages(mapped)
    assert mapped[1000] == -5


def test_memory_of_the_process_stays():
    weight = torch.arange(COUNT, dtype=torch.int32)
    forget_pages(weight)
    assert torch.equal(weight, torch.arange(COUNT, dtype=torch.int32))
