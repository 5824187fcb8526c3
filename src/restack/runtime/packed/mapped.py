"""Weights that are pages of a mapped file."""

import ctypes
import mmap
from array import array
from pathlib import Path

import torch

PAGES = Path("/proc/self/pagemap")  # of Linux; elsewhere nothing is done
# What is said there of a page; other bits are no matter. https://docs.kernel.org/admin-guide/mm/pagemap.html
PRESENT, SWAPPED, OF_A_FILE = 1 << 63, 1 << 62, 1 << 61


def forget_pages(weight: torch.Tensor) -> None:
    """Drop the pages of a mapped file that hold a weight which is not going to be read again.

    Else they count as memory of this process for as long as another tensor of the file is in use, or until
    the system is short of it. Read again, they would come from the file.
    """
    begin = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if weight.device.type == "cpu" and length > 0 and PAGES.exists() and _are_of_a_file(begin, length):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _are_of_a_file(begin: int, length: int) -> bool:
    """Whether all pages in memory there can be read again from a file, or are shared: others would be lost.

    Those of a private mapping that were written to are the process's own.
    """
    with PAGES.open("rb") as pages:
        pages.seek(begin // mmap.PAGESIZE * 8)
        entries = array("Q", pages.read(length // mmap.PAGESIZE * 8))
    return all(entry & OF_A_FILE if entry & PRESENT else not entry & SWAPPED for entry in entries)
