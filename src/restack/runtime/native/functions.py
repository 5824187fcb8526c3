"""The compiled functions, called with tensors."""

import ctypes
import warnings
from collections.abc import Sequence
from functools import cache

import torch

from restack.runtime.native.compiling import library
from restack.runtime.native.structures import PLACE, WHOLE, Matrix, Model, Tokens


@cache
def quiet_kernel() -> "Kernel | None":
    """The kernel, or None where it cannot be had."""
    found, _ = library()
    return None if found is None else Kernel(found)


@cache
def kernel() -> "Kernel | None":
    """The kernel; None, and a warning that says why, where it cannot be had: torch's own take its place."""
    found, reason = quiet_kernel(), library()[1]
    if found is None:
        warnings.warn(f"packed weights are slower here than they could be: {reason}", stacklevel=2)
    return found


class Kernel:
    """Products with weights, and decoding steps, on a CPU."""

    def __init__(self, compiled: ctypes.CDLL) -> None:
        self._products, self._unpack = compiled.restack_products, compiled.restack_unpack
        self._step, self._logits = compiled.restack_step, compiled.restack_logits
        self._products_of_many, self._read = compiled.restack_products_of_many, compiled.restack_read
        self.is_quick_with_many = bool(compiled.restack_is_quick_with_many())
        threads = ctypes.c_int
        self._products.argtypes = [ctypes.POINTER(Matrix), WHOLE, WHOLE, PLACE, PLACE, threads]
        self._products_of_many.argtypes = [ctypes.POINTER(Matrix), WHOLE, PLACE, PLACE, threads]
        self._unpack.argtypes = [ctypes.POINTER(Matrix), PLACE, ctypes.c_int, threads]
        model, tokens, matrix = (ctypes.POINTER(each) for each in (Model, Tokens, Matrix))
        self._step.argtypes = self._read.argtypes = [WHOLE, WHOLE, tokens, PLACE, threads]
        self._logits.argtypes = [model, PLACE, matrix, WHOLE, PLACE, PLACE, threads]
        for function in (
            self._products,
            self._products_of_many,
            self._unpack,
            self._step,
            self._read,
            self._logits,
        ):
            function.restype = None

    def products(self, x: torch.Tensor, matrices: Sequence[Matrix]) -> list[torch.Tensor]:
        """x W^T + bias of several matrices of one format and width.

        Args:
            x: shape (rows, inputs); a row costs little beside the reading of the weights, up to four.
            matrices: each of shape (outputs, inputs).

        Returns:
            Of each, shape (rows, outputs), float32.
        """
        x = x.float().contiguous()
        count = len(matrices)
        outputs = [x.new_empty(len(x), matrix.n) for matrix in matrices]
        places = (PLACE * count)(*(output.data_ptr() for output in outputs))
        self._products((Matrix * count)(*matrices), count, len(x), x.data_ptr(), places, _threads())
        return outputs

    def products_of_many(self, x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """x W^T + bias, summed in float32.

        Args:
            x: shape (rows, inputs); many rows, for which it may be quicker (`is_quick_with_many`) than torch.
            matrix: shape (outputs, inputs).

        Returns:
            Shape (rows, outputs), float32.
        """
        x = x.float().contiguous()
        output = x.new_empty(len(x), matrix.n)
        self._products_of_many(matrix, len(x), x.data_ptr(), output.data_ptr(), _threads())
        return output

    def unpacked(self, matrix: Matrix, dtype: torch.dtype) -> torch.Tensor:
        """The weights, as `Packed.unpacked` gives them: shape (outputs, inputs)."""
        is_narrow = dtype == torch.bfloat16
        output = torch.empty(matrix.n, matrix.k, dtype=torch.bfloat16 if is_narrow else torch.float32)
        self._unpack(matrix, output.data_ptr(), is_narrow, _threads())
        return output.to(dtype)

    def step(self, visits: range, tokens: Tokens, hidden: torch.Tensor) -> None:
        """Take hidden states, float32, shape (rows, width), through visits, in place.

        A row's numbers do not depend on the other rows.

        Args:
            visits: which, counted from each row's first; those of one number have the same weights, and are
                alike in whether they make keys and values and whether they are damped to nothing.
            tokens: of the rows.
            hidden: what enters the first of these visits.
        """
        self._step(visits.start, visits.stop, tokens, hidden.data_ptr(), _threads())

    def read(self, visits: range, tokens: Tokens, hidden: torch.Tensor) -> None:
        """The same for many rows, as `products_of_many` multiplies them."""
        self._read(visits.start, visits.stop, tokens, hidden.data_ptr(), _threads())

    def logits(self, model: Model, norm: torch.Tensor, head: Matrix, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states, float32, shape (rows, width), normed and multiplied with the head: (rows, V)."""
        output = hidden.new_empty(len(hidden), head.n)
        self._logits(
            model, norm.data_ptr(), head, len(hidden), hidden.data_ptr(), output.data_ptr(), _threads()
        )
        return output


def _threads() -> int:
    return torch.get_num_threads()
