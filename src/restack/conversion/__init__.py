"""Checkpoints made from others: fewer heads, shared keys and values, Meta's layout, a plan written out."""

from restack.conversion.folding import fold
from restack.conversion.full import convert_full
from restack.conversion.heads import POOLS, convert_heads, pooled
from restack.conversion.kv_sharing import INITS, convert_kv
from restack.conversion.meta import convert_meta

__all__ = [
    "INITS",
    "POOLS",
    "convert_full",
    "convert_heads",
    "convert_kv",
    "convert_meta",
    "fold",
    "pooled",
]
