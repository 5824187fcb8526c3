"""Weights of 4 and 8 bits, and products with them."""

from restack.runtime.packed.linear import PackedLinear
from restack.runtime.packed.quantizer import PackedConfig
from restack.runtime.packed.quantizing import quantize

__all__ = ["PackedConfig", "PackedLinear", "quantize"]
