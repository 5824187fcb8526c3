"""Decoding a token at a time: a lean loop where the architecture is known, transformers' own where not."""

from restack.runtime.decoding.loop import Company, Pausing, decode, draws_one_by_one
from restack.runtime.decoding.speculation import Drafter, is_assisted
from restack.runtime.decoding.structure import Structure, structure
from restack.runtime.decoding.together import Step, run_together

__all__ = [
    "Company",
    "Drafter",
    "Pausing",
    "Step",
    "Structure",
    "decode",
    "draws_one_by_one",
    "is_assisted",
    "run_together",
    "structure",
]
