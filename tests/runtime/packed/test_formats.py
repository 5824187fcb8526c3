"""Packed weights stand for weights near the original, and all kernels multiply with those."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from restack.runtime.native import Matrix, compiling, functions
from restack.runtime.packed import torch_kernels
from restack.runtime.packed.formats import Packed, group_of, numbers, pack
from restack.runtime.packed.linear import FEW, PackedLinear

SHAPES = [(64, 64), (37, 96), (128, 256), (5, 2816), (70, 1056)]


def weights(outputs, inputs, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(outputs, inputs)) * np.linspace(0.1, 3, outputs)[:, None]
    return torch.tensor(drawn, dtype=torch.float32)


def one_by_one(packed: Packed) -> np.ndarray:
    """What packed weights stand for, told from the bytes, a number at a time."""
    outputs = packed.weight.shape[0]
    if packed.zeros is None:
        return packed.weight.numpy().astype(float) * packed.scales.double().numpy()[:, None]
    inputs, groups = packed.weight.shape[1] * 2, packed.scales.shape[1]
    found = np.empty((outputs, inputs))
    for row in range(outputs):
        for at in range(inputs):
            run, place = divmod(at, 32)
            byte = int(packed.weight[row, run * 16 + place % 16])
            q = byte >> 4 if place >= 16 else byte & 15
            group = at // (inputs // groups)
            found[row, at] = (q - 8) * float(packed.scales[row, group]) + float(packed.zeros[row, group])
    return found


def both(outputs, inputs):
    weight = weights(outputs, inputs)
    return weight, [pack(weight, None), pack(weight, group_of(inputs))]


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_packed_weights_are_what_their_bytes_say(shape):
    for packed in both(*shape)[1]:
        np.testing.assert_allclose(packed.unpacked().numpy(), one_by_one(packed), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_with_8_bits_no_weight_is_further_than_half_a_step_from_its_own(shape):
    """Half a step, and what rounding the scale to bfloat16 (8 bits) adds at the ends."""
    weight, (packed, _) = both(*shape)
    steps = packed.scales.float()[:, None]
    assert ((packed.unpacked() - weight).abs() <= steps * (0.5 + 127 / 256)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_with_4_bits_weights_are_nearest_but_for_ends_that_are_cut(shape):
    weight, (_, packed) = both(*shape)
    found, steps = packed.unpacked(), packed.scales.float().repeat_interleave(group_of(shape[1]), dim=1)
    q = (found - packed.zeros.float().repeat_interleave(group_of(shape[1]), dim=1)) / steps + 8
    is_end = (q.round() == 0) | (q.round() == 15)
    assert ((found - weight).abs() <= steps * 0.5001).logical_or(is_end).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_4_bits_are_no_worse_than_a_plain_grid_over_each_group(shape):
    """Sixteen values at equal distances from the group's least weight to its largest, in double precision."""
    weight, (_, packed) = both(*shape)
    groups = weight.double().numpy().reshape(shape[0], -1, group_of(shape[1]))
    low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    step = (high - low) / 15
    plain = low + np.round((groups - low) / step) * step
    ours = packed.unpacked().double().numpy().reshape(groups.shape)
    assert ((ours - groups) ** 2).sum() <= ((plain - groups) ** 2).sum()


def test_constant_rows_and_zeros():
    weight = torch.tensor([0.0, 0.0, 3.0, -1.5, 1e-20]).repeat_interleave(64).view(5, 64)
    for packed in (pack(weight, None), pack(weight, 64)):
        torch.testing.assert_close(packed.unpacked(), weight, rtol=0.01, atol=1e-6)


@pytest.fixture(scope="module")
def kernel():
    found = functions.kernel()
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def matrix(packed: Packed, bias=None) -> Matrix:
    return Matrix.of(packed.weight, packed.scales, packed.zeros, bias)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
def test_the_kernel_multiplies_with_what_is_packed(kernel, shape, rows):
    """Activations are rounded to 2^-16 of the largest of their group."""
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(1)) * torch.logspace(
        -2, 2, shape[1]
    )
    bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(2))
    for packed in both(*shape)[1]:
        wide = packed.unpacked().double()
        group = 256 if packed.zeros is None else group_of(shape[1])
        largest = torch.stack([part.abs().amax(1) for part in x.double().split(group, dim=1)], dim=1)
        sizes = torch.stack([part.abs().sum(1) for part in wide.split(group, dim=1)], dim=1)
        most = largest @ sizes.T * 2**-16 + 1e-5 * (x.double().abs() @ wide.abs().T)  # and float32 sums
        plain, biased = kernel.products(x, [matrix(packed), matrix(packed, bias)])
        exact = x.double() @ wide.T
        assert ((plain - exact).abs() <= most).all()
        assert ((biased - exact - bias).abs() <= most + 1e-5).all()


@pytest.mark.parametrize("shape", [*SHAPES, (33, 37), (16, 300)])
@pytest.mark.parametrize("rows", [1, 6, 40, 137])
def test_the_kernel_multiplies_many_rows_in_float32(kernel, shape, rows):
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(1))
    bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(2))
    for packed in both(*shape)[1]:
        wide = packed.unpacked().double()
        exact, most = x.double() @ wide.T, 1e-6 * (x.double().abs() @ wide.abs().T) + 1e-6
        plain = kernel.products_of_many(x, matrix(packed))
        assert ((plain - exact).abs() <= most).all()
        assert ((kernel.products_of_many(x, matrix(packed, bias)) - exact - bias).abs() <= most).all()
        assert torch.equal(kernel.products_of_many(x[-1:], matrix(packed)), plain[-1:])


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_takes_the_quicker_way_for_many_rows(kernel, monkeypatch, bits):
    layer = PackedLinear.of(weights(70, 256).bfloat16(), nn.Parameter(torch.ones(70).bfloat16()), bits)
    x = torch.randn(2, FEW + 1, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = []
    for is_quick in (True, False):
        monkeypatch.setattr(kernel, "is_quick_with_many", is_quick)
        with monkeypatch.context() as watched:
            if is_quick:
                watched.setattr(torch_kernels, "product", None)
            else:
                watched.setattr(kernel, "products_of_many", None)
            found.append(layer(x))
    torch.testing.assert_close(*found, rtol=2e-2, atol=2e-2)


def test_the_kernel_multiplies_several_matrices_at_once(kernel):
    x = torch.randn(2, 128, generator=torch.Generator().manual_seed(1))
    some = [pack(weights(outputs, 128, seed=outputs), 64) for outputs in (7, 1, 64)]
    together = kernel.products(x, [matrix(packed) for packed in some])
    for packed, found in zip(some, together, strict=True):
        [alone] = kernel.products(x, [matrix(packed)])
        assert torch.equal(found, alone)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_kernel_unpacks(kernel, shape, dtype):
    for packed in both(*shape)[1]:
        assert torch.equal(kernel.unpacked(matrix(packed), dtype), packed.unpacked(dtype))


def test_the_kernel_hands_on_what_is_no_number(kernel):
    for packed in both(64, 128)[1]:
        for wrong in (float("nan"), float("inf")):
            x = torch.ones(2, 128)
            x[1, 70] = wrong
            [found] = kernel.products(x, [matrix(packed)])
            assert found[0].isfinite().all() and not found[1].isfinite().any()


@pytest.mark.parametrize("shape", [(64, 64), (128, 256), (70, 1056)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_compiler_torchs_kernels_do_the_same(monkeypatch, shape, bits, dtype):
    monkeypatch.setattr("restack.runtime.packed.linear.kernel", lambda: None)
    layer = PackedLinear.of(weights(*shape).to(dtype), nn.Parameter(torch.ones(shape[0], dtype=dtype)), bits)
    layer.prepare()
    x = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = x.double() @ layer.packed.unpacked().double().T + 1
    close = 1e-5 if dtype == torch.float32 else 2e-2
    assert ((layer(x).double() - exact).abs().max() / exact.abs().max()) < close
    assert (layer.for_torch is None) == (bits == 8 or shape[0] % torch_kernels.HEIGHT > 0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("has_instructions", [True, False])
def test_many_rows_in_bfloat16_are_multiplied_as_the_processor_can(monkeypatch, bits, has_instructions):
    monkeypatch.setattr("restack.runtime.packed.linear.kernel", lambda: None)
    monkeypatch.setattr(torch_kernels, "multiplies_bfloat16", lambda: has_instructions)
    shape, bias = (70, 256), torch.ones(70, dtype=torch.bfloat16)
    layer = PackedLinear.of(weights(*shape).bfloat16(), nn.Parameter(bias), bits)
    x = torch.randn(2, FEW + 1, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    found, exact = layer(x), x.double() @ layer.packed.unpacked().double().T + 1
    assert found.dtype == torch.bfloat16
    if not has_instructions:  # rounded once, at the end
        assert torch.equal(found, F.linear(x.float(), layer.unpacked(torch.float32), bias.float()).bfloat16())
    assert ((found.double() - exact).abs().max() / exact.abs().max()) < 2e-2


class TestOnGPUs:
    """What is computed there, here: torch's kernel of 4 bits in the words of its makers (torchao 0.18, the
    tensor subclass `Int4TilePackedTo4dTensor`): of two weights a byte has the first in its upper half, and a
    weight is (q - 8) * scale + zero, with scales and zeros of shape (groups, outputs, 2)."""

    @pytest.fixture
    def kernel_of_gpu(self, monkeypatch):
        def laid_out(pairs, tiles):
            assert pairs.dtype == torch.uint8 and pairs.is_contiguous()
            assert pairs.shape[0] % 8 == 0 and (2 * pairs.shape[1]) % (tiles * 16) == 0
            return torch.stack([pairs >> 4, pairs & 15], dim=2).flatten(1)

        def multiplied(x, q, group, by):
            assert x.dtype == by.dtype == torch.bfloat16 and q.shape[1] == group * len(by)
            scales, zeros = by.float().repeat_interleave(group, dim=0).unbind(2)
            return (x.float() @ ((q.float() - 8) * scales.T + zeros.T).T).bfloat16()

        monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack", laid_out)
        monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm", multiplied)
        return multiplied

    @pytest.mark.parametrize("shape", [(64, 64), (16, 2816), (8, 1056)])
    def test_weights_of_4_bits_are_laid_out_for_the_kernel(self, kernel_of_gpu, shape):
        packed = pack(weights(*shape), group_of(shape[1]))
        for_torch = prepared_on_gpu(packed)
        x = torch.randn(3, shape[1], generator=torch.Generator().manual_seed(1)).half()
        found = torch_kernels._int4_product_on_gpu(x, for_torch, packed)
        exact = x.double() @ packed.unpacked().double().T
        assert found.dtype == torch.float16
        assert ((found.double() - exact).abs().max() / exact.abs().max()) < 2e-2

    def test_a_height_that_the_kernel_cannot_take_is_left(self, kernel_of_gpu):
        assert prepared_on_gpu(pack(weights(60, 64), 64)) is None

    def test_a_kernel_that_computes_something_else_is_left(self, kernel_of_gpu, monkeypatch):
        other = lambda x, q, group, by: kernel_of_gpu(x, q.flip(1), group, by)  # noqa: E731
        monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm", other)
        assert prepared_on_gpu(pack(weights(64, 128), 64)) is None

    def test_a_gpu_without_the_kernel_is_no_error(self):
        """As this machine is one."""
        assert prepared_on_gpu(pack(weights(64, 128), 64)) is None

    def test_weights_of_8_bits(self):
        packed = pack(weights(37, 96), None)
        x = torch.randn(3, 96, generator=torch.Generator().manual_seed(1))
        found = torch_kernels._int8_product_on_gpu(x, packed)
        torch.testing.assert_close(found, x @ packed.unpacked().T, rtol=1e-4, atol=1e-4)


def prepared_on_gpu(packed: Packed):
    by = torch.stack([packed.scales.T, packed.zeros.T], dim=2).contiguous()
    return torch_kernels._prepared_on_gpu(packed, numbers(packed.weight), by)


@pytest.fixture
def nothing_compiled():
    functions.kernel.cache_clear()
    functions.quiet_kernel.cache_clear()
    compiling.library.cache_clear()
    yield
    functions.kernel.cache_clear()
    functions.quiet_kernel.cache_clear()
    compiling.library.cache_clear()


def test_a_machine_without_a_compiler_says_so_once(monkeypatch, nothing_compiled):
    monkeypatch.setattr(compiling, "COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(UserWarning, match="slower here than they could be: there is no C"):
        assert functions.kernel() is None
    assert functions.kernel() is None  # and not a word more


def test_a_compiler_that_fails_is_no_error(monkeypatch, tmp_path, nothing_compiled):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'no such option' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.warns(UserWarning, match="cannot be compiled or loaded .no such option"):
        assert functions.kernel() is None
    assert not list((tmp_path / "restack").iterdir())
