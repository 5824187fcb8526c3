"""Decoding a token at a time: a lean loop where the architecture is known, transformers' own where not."""

from restack.runtime.decoding.loop import decode, draws_one_by_one
from restack.runtime.decoding.speculation import Drafter, is_assisted
from restack.runtime.decoding.structure import Structure, structure

__all__ = ["Drafter", "Structure", "decode", "draws_one_by_one", "is_assisted", "structure"]
