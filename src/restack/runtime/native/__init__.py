"""C++ for CPUs, compiled for the very machine: products with weights, and whole decoding steps."""

from restack.runtime.native.functions import Kernel, kernel, quiet_kernel
from restack.runtime.native.structures import Matrix, Model, Tokens, Visit

__all__ = ["Kernel", "Matrix", "Model", "Tokens", "Visit", "kernel", "quiet_kernel"]
