"""Weights that are pages of a mapped file."""

import ctypes
import mmap
from pathlib import Path

import torch

MAPS = Path("/proc/self/maps")  # of Linux; elsewhere nothing is done


def forget_pages(weight: torch.Tensor) -> None:
    """Drop the pages of a mapped file that hold a weight which is not going to be read again.

    Else they count as memory of this process for as long as another tensor of the file is in use, or until
    the system is short of it. Read again, they would come from the file.
    """
    begin = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if weight.device.type == "cpu" and length > 0 and MAPS.exists() and _is_of_file(begin):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _is_of_file(address: int) -> bool:
    """Whether a file is mapped there; memory of the process itself would be wiped out."""
    for line in MAPS.read_text().splitlines():
        where, *_, path = line.split(maxsplit=5)
        begin, end = (int(number, 16) for number in where.split("-"))
        if begin <= address < end:
            return path.startswith("/")
    return False
