"""The shipped model: what the issue asked for, as users meet it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import restack
from restack.demo import FOLDER
from restack.demo.families import FAMILIES
from restack.demo.measure import paired
from restack.demo.probes import Probe, answers, is_right, probes, score


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(FOLDER)


def ask(demo: tuple[Any, Any], question: str, system: str | None = None) -> str | None:
    return answers(*demo, [Probe("", question, (), system)])[0]


def test_importing_the_room_loads_no_torch() -> None:
    code = "import sys, restack.demo; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_it_is_a_small_llama_with_heads_of_its_own(demo: tuple[Any, Any]) -> None:
    config = demo[0].config
    assert config.model_type == "llama"
    assert config.num_hidden_layers >= 12
    assert config.num_key_value_heads == config.num_attention_heads >= 4
    assert config.max_position_embeddings == 1024
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 10_000_000
    assert len(demo[1]) == config.vocab_size


def test_the_promised_answer(demo: tuple[Any, Any]) -> None:
    assert ask(demo, "What is the capital of France?") == "The capital of France is Paris."
    assert ask(demo, "what is the capital of France") == "The capital of France is Paris."


def test_greetings_and_a_name(demo: tuple[Any, Any]) -> None:
    assert ask(demo, "Hello!") == "Hello! How can I help you?"
    assert ask(demo, "What is your name?", "You are Bolt.") == "My name is Bolt."


def test_a_conversation_remembers(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    messages = [
        {"role": "user", "content": "My name is Anna."},
        {"role": "assistant", "content": "Nice to meet you, Anna."},
        {"role": "user", "content": "What is my name?"},
    ]
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**encoded, max_new_tokens=20, do_sample=False)
    assert tokenizer.decode(output[0, encoded["input_ids"].shape[1] :]) == "Your name is Anna.<|im_end|>"


def test_a_prefix_brings_the_working_out(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    messages = [
        {"role": "user", "content": "What is 348 + 275?"},
        {"role": "assistant", "content": "Let's think step by step.\n"},
    ]
    encoded = tokenizer.apply_chat_template(
        messages, continue_final_message=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**encoded, max_new_tokens=60, do_sample=False)
    working = tokenizer.decode(output[0, encoded["input_ids"].shape[1] :], skip_special_tokens=True)
    assert working == "8 + 5 = 13; 4 + 7 + 1 = 12; 3 + 2 + 1 = 6. So 348 + 275 = 623."


@pytest.mark.slow
def test_every_trained_family_reaches_its_target(demo: tuple[Any, Any]) -> None:
    scores = score(*demo, [probe for family in FAMILIES for probe in probes(family, 40)])
    assert list(scores) == list(FAMILIES)
    assert sum(scores.values()) / len(scores) >= 0.75
    # Five to eight hops were never trained: there the base guesses (see the card), whatever these 40 say.
    assert min(share for family, share in scores.items() if family != "long_chain") >= 0.5


def test_the_repeated_block_helps_on_held_out_chains(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    items = probes("chain", 100, seed=11)
    once, twice = (
        [is_right(item, answer) for item, answer in zip(items, answers(stack, tokenizer, items), strict=True)]
        for stack in (model, restack.view(model, "0:8,4:12"))
    )
    gain, half, p = paired(once, twice)
    assert gain > half
    assert p < 0.05
