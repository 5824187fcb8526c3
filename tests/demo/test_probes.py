"""Scoring: what counts as right, and that a batch is scored as its probes one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from restack.demo import corpus
from restack.demo.families import FAMILIES
from restack.demo.probes import Probe, answers, is_right, probes, score
from restack.errors import UsageError


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return corpus.train_tokenizer(0, samples=1000)


class Oracle:
    """Answers each probe with a text of ours, in the form that `generate` gives."""

    device = torch.device("cpu")

    def __init__(self, tokenizer: Any, replies: list[str]):
        self.tokenizer, self.replies = tokenizer, list(replies)

    def generate(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        rows = [self.tokenizer(self.replies.pop(0))["input_ids"] for _ in range(len(input_ids))]
        longest = max(map(len, rows))
        pad = self.tokenizer.pad_token_id
        return torch.cat(
            [input_ids, torch.tensor([row + [pad] * (longest - len(row)) for row in rows])], dim=1
        )


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "story"])
def test_the_accepted_answer_scores_one_and_another_nothing(tokenizer: Any, family: str) -> None:
    items = probes(family, 12)
    right = Oracle(tokenizer, [item.accept[0] + corpus.END for item in items])
    assert score(right, tokenizer, items, batch_size=5) == {family: 1.0}
    unfinished = Oracle(tokenizer, [item.accept[0] for item in items])
    assert score(unfinished, tokenizer, items) == {family: 0.0}
    wrong = Oracle(tokenizer, [item.accept[0] + " so" + corpus.END for item in items])
    assert score(wrong, tokenizer, items) == {family: 0.0}


def test_stories_are_checked_not_compared() -> None:
    for probe in probes("story", 40):
        assert probe.accept == ()
        assert not is_right(probe, "The capital of France is Paris.")
    probe = Probe("story", "Tell me a short story about a kite and Mia.", ())
    told = "Mia had a red kite. Soon she lost the kite. At last Mia found the kite. Mia was happy."
    assert is_right(probe, told)
    assert not is_right(probe, told.replace("she", "he"))
    assert not is_right(probe, told.replace("Mia was", "Tom was"))
    assert not is_right(probe, None)


def test_one_at_a_time_and_in_batches_are_the_same(tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=corpus.CONTEXT,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    items = probes("comparison", 3) + probes("counting", 2)
    assert answers(model, tokenizer, items, batch_size=1) == answers(model, tokenizer, items, batch_size=5)


def test_probes_are_conversations_and_families_are_checked() -> None:
    named = next(probe for probe in probes("greeting", 60) if probe.system)
    assert [message["role"] for message in named.messages] == ["system", "user"]
    assert len(probes("greeting", 200)) == 200  # more than there are: they come again
    with pytest.raises(UsageError, match="there is no family 'jokes'; choose from greeting, fact"):
        probes("jokes", 3)


def test_scores_are_by_family_in_order(tokenizer: Any) -> None:
    items = probes("sorting", 2) + probes("fact", 2)
    replies = [
        items[0].accept[0] + corpus.END,
        "no",
        items[2].accept[0] + corpus.END,
        items[3].accept[0] + corpus.END,
    ]
    assert list(score(Oracle(tokenizer, replies), tokenizer, items).items()) == [
        ("sorting", 0.5),
        ("fact", 1.0),
    ]
