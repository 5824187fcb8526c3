"""The kernel in `kernel.cpp`, compiled for this very machine when it is first needed, and kept."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from restack.runtime.packed.formats import Packed

SOURCE = Path(__file__).with_name("kernel.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
)
PATIENCE = 120  # seconds that a compiler may take


@cache
def kernel() -> "Kernel | None":
    """The kernel; None, and a warning that says why, where it cannot be had: torch's own take its place."""
    reason = ""
    try:
        path = _compiled()
        if path is not None:
            return Kernel(ctypes.CDLL(str(path)))
        reason = "there is no C++ compiler"
    except (OSError, subprocess.SubprocessError, AttributeError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = f"its kernel cannot be compiled or loaded ({' '.join(str(said).split()):.200})"
    warnings.warn(f"packed weights are slower here than they could be: {reason}", stacklevel=2)
    return None


class Kernel:
    """Products with packed weights on a CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._products, self._unpack = library.restack_products, library.restack_unpack
        whole, place = ctypes.c_int64, ctypes.c_void_p
        self._products.argtypes = [
            ctypes.c_int, whole, whole, whole, place, whole, *[place] * 6, ctypes.c_int,
        ]  # fmt: skip
        self._unpack.argtypes = [
            ctypes.c_int, whole, whole, whole, *[place] * 4, ctypes.c_int, ctypes.c_int,
        ]  # fmt: skip
        self._products.restype = self._unpack.restype = None

    def products(
        self, x: torch.Tensor, matrices: Sequence[Packed], biases: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor]:
        """x W^T + bias of several matrices of one format and width.

        Args:
            x: shape (rows, inputs); a row costs little beside the reading of the weights, up to four.
            matrices: each of shape (outputs, inputs).
            biases: of each, float32; or None.

        Returns:
            Of each, shape (rows, outputs), float32.
        """
        x = x.float().contiguous()
        rows, width = x.shape
        first, count = matrices[0], len(matrices)
        outputs = [x.new_empty(rows, matrix.weight.shape[0]) for matrix in matrices]
        places = ctypes.c_void_p * count
        self._products(
            *_format(first, width), width, rows, x.data_ptr(), count,
            places(*(matrix.weight.data_ptr() for matrix in matrices)),
            places(*(matrix.scales.data_ptr() for matrix in matrices)),
            places(*(None if matrix.zeros is None else matrix.zeros.data_ptr() for matrix in matrices)),
            places(*(None if bias is None else bias.data_ptr() for bias in biases)),
            places(*(output.data_ptr() for output in outputs)),
            (ctypes.c_int64 * count)(*(output.shape[1] for output in outputs)),
            torch.get_num_threads(),
        )  # fmt: skip
        return outputs

    def unpacked(self, matrix: Packed, width: int, dtype: torch.dtype) -> torch.Tensor:
        """The weights, as `Packed.unpacked` gives them: shape (outputs, width)."""
        is_narrow = dtype == torch.bfloat16
        height = matrix.weight.shape[0]
        output = torch.empty(height, width, dtype=torch.bfloat16 if is_narrow else torch.float32)
        self._unpack(
            *_format(matrix, width), height, width, matrix.weight.data_ptr(), matrix.scales.data_ptr(),
            None if matrix.zeros is None else matrix.zeros.data_ptr(), output.data_ptr(), is_narrow,
            torch.get_num_threads(),
        )  # fmt: skip
        return output.to(dtype)


def _format(matrix: Packed, width: int) -> tuple[int, int]:
    return (8, width) if matrix.zeros is None else (4, width // matrix.scales.shape[1])


def _compiled() -> Path | None:
    """The compiled kernel, made if it is not there yet; None without a compiler."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None or sys.platform == "win32":
        return None
    told = SOURCE.read_bytes() + " ".join((compiler, *FLAGS, platform.version(), _processor())).encode()
    path = _cache() / f"kernel-{hashlib.sha256(told).hexdigest()[:16]}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        try:
            subprocess.run(
                [compiler, *FLAGS, str(SOURCE), "-o", str(part)],
                check=True,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def _processor() -> str:
    """What tells processors apart that compile to other code: homes are shared between machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "restack"
