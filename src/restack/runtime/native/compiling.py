"""The C++ beside this file, compiled for this very machine when it is first needed, and kept."""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from uuid import uuid4

HERE = Path(__file__).parent
SOURCE = HERE / "kernel.cpp"
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
def library() -> tuple[ctypes.CDLL | None, str]:
    """The compiled library; or None, and why it cannot be had."""
    try:
        path = _compiled()
        return (None, "there is no C++ compiler") if path is None else (ctypes.CDLL(str(path)), "")
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home
        said = getattr(error, "stderr", None) or str(error)
        return None, f"its kernel cannot be compiled or loaded ({' '.join(str(said).split()):.200})"


def _compiled() -> Path | None:
    """The compiled library, made if it is not there yet; None without a compiler."""
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None or sys.platform == "win32":
        return None
    sources = b"".join(path.read_bytes() for path in (*sorted(HERE.glob("*.h")), SOURCE))
    told = sources + " ".join((compiler, *FLAGS, platform.version(), _processor())).encode()
    path = _cache() / f"kernel-{hashlib.sha256(told).hexdigest()[:16]}.so"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{uuid4().hex[:8]}.part")
        logging.getLogger("restack").warning("compiling the kernel for this processor, once (seconds)")
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
