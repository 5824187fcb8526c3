"""Probes: held-out questions of every family, and how a model is scored on them.

A probe is right when the greedy answer is, to the letter, an accepted one and ends by itself; a story is
right when the checker of `families.stories` passes it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

import torch

from restack.demo.families import FAMILIES, probe_sample, stories
from restack.errors import UsageError

__all__ = ["FAMILIES", "Probe", "answers", "is_right", "probes", "score"]

LONGEST_ANSWER = 112  # tokens; a story has about 70
EXHAUSTED = 100  # draws in a row that bring nothing new: the family has (nearly) no more


@dataclass(frozen=True, slots=True)
class Probe:
    """A question, the answers accepted (none listed: any story that passes the checker), a system prompt."""

    family: str
    question: str
    accept: tuple[str, ...]
    system: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The question as a conversation for a chat template."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.question}]


def probes(family: str, n: int, seed: int = 0) -> list[Probe]:
    """`n` probes of a family, the same for the same seed; where it has no new ones, they come again."""
    if family not in FAMILIES:
        raise UsageError(f"there is no family {family!r}; choose from {', '.join(FAMILIES)}")
    rng = random.Random(f"probes/{family}/{seed}")
    found: list[Probe] = []
    seen: set[tuple[str, str | None]] = set()
    stale = 0
    while len(found) < n:
        probe = _probe(family, rng)
        key = (probe.question, probe.system)
        stale = stale + 1 if key in seen else 0
        if key not in seen or stale > EXHAUSTED:
            seen.add(key)
            found.append(probe)
    return found


def _probe(family: str, rng: random.Random) -> Probe:
    sample = probe_sample(family, rng)
    turn = sample.turns[0]
    accept = () if family == "story" else (turn.answer,)
    return Probe(family, turn.question, accept, sample.system)


def is_right(probe: Probe, answer: str | None) -> bool:
    """Whether an answer is right; None is an answer that did not end."""
    if answer is None:
        return False
    if probe.family != "story":
        return answer in probe.accept
    name = re.search(r"and ([A-Z][a-z]+)\.|about ([A-Z][a-z]+) ", probe.question)
    thing = re.search(r"\ba ([a-z]+)(?: and|\.)", probe.question)
    assert name is not None and thing is not None
    return stories.well_told(answer, name[1] or name[2], thing[1])


@torch.no_grad()
def answers(model: Any, tokenizer: Any, items: list[Probe], batch_size: int = 50) -> list[str | None]:
    """The greedy answer to each probe, or None where none ended within the limit.

    Probes of a family are about as long as each other, so batches are taken in the order given.
    """
    found: list[str | None] = []
    for start in range(0, len(items), batch_size):
        part = items[start : start + batch_size]
        texts = [
            tokenizer.apply_chat_template(probe.messages, tokenize=False, add_generation_prompt=True)
            for probe in part
        ]
        encoded = tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
        ).to(model.device)
        output = model.generate(
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=LONGEST_ANSWER,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        found += [_until_end(tokenizer, row) for row in output[:, encoded["input_ids"].shape[1] :].tolist()]
    return found


def _until_end(tokenizer: Any, ids: list[int]) -> str | None:
    if tokenizer.eos_token_id not in ids:
        return None
    text = tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)], skip_special_tokens=False)
    return str(text)


def score(model: Any, tokenizer: Any, items: list[Probe], batch_size: int = 50) -> dict[str, float]:
    """The share of right answers (0..1) of each family among the probes, in the order of first appearance."""
    right: dict[str, list[bool]] = {}
    for probe, answer in zip(items, answers(model, tokenizer, items, batch_size), strict=True):
        right.setdefault(probe.family, []).append(is_right(probe, answer))
    return {family: sum(values) / len(values) for family, values in right.items()}
