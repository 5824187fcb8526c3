"""Visits that read keys and values from above on vLLM: LCKV's maps, and the checkpoints made with them.

What they mean is written down in `tests.llama.reference`, one token after the other.
"""

from functools import cache

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")

from transformers import AutoTokenizer

import restack
from restack import demo
from restack.plans import own_plan
from tests.engines.vllm.asking import PROMPTS, SIZES, TOKENS, TWO_WORKERS, Case, ask, ask_server, stored
from tests.llama.reference import Settings, Visit, token_by_token

ALONE = [*PROMPTS, [9]]  # whose first and only token sees nothing
LONG = [[17, 4, 200, 33, 5, 90, 41, 41, 7, 250, 8, 9, 101, 64, 3, 12, 77, 300, 2, 6], [5, 17, 200, 33, 1, 6]]
EXACT = {
    "all-read-the-top": Case("llama", "all;kv=3x4"),
    "sandwich-transformers-backend": Case("llama", "all;kv=0_2x2_3", transformers_backend=True),
    "two-groups-repeated-damped": Case("llama", "0:3,1@0.5,2:4;kv=1_1_2_4_4_5"),
    "tensor-parallel-transformers-backend": Case(
        "llama", "all;kv=0_3x3", {"tensor_parallel_size": 2}, TWO_WORKERS, transformers_backend=True
    ),
    "qwen3": Case("qwen3", "all;kv=0_3x3"),
    "checkpoint-of-lckv": Case("lckv", "all"),
    "checkpoint-of-restack-llama-repeated": Case("house", "0:4,1:"),
    "checkpoint-with-biases-nodiag": Case("nodiag", "all"),
    "checkpoint-read-to-the-end": Case("sequential", "all"),
}


@cache
def answered(shelf, name):
    return ask(shelf, EXACT[name], ALONE)


@pytest.mark.parametrize("name", EXACT)
def test_answers_are_those_of_one_token_after_the_other(name, shelf):
    case = EXACT[name]
    answer = answered(shelf, name)
    wanted = [greedy(*meant(stored(shelf, case.model)[0], case.plan), prompt) for prompt in ALONE]
    assert answer["tokens"] == [tokens for tokens, _ in wanted]
    assert answer["log_probability"] == pytest.approx([total for _, total in wanted], abs=1e-3)
    print(name, max(abs(a - b) for a, (_, b) in zip(answer["log_probability"], wanted, strict=True)))


def meant(model, plan):
    """The weights and visits that a plan means, as the reference has them."""
    own = own_plan(model.config) or restack.plan("all", model.config)
    plan = own.then(restack.plan(plan, len(own)))
    visits = zip(plan.visits, plan.owners, strict=True)
    settings = Settings(
        heads=SIZES["num_attention_heads"],
        kv_heads=SIZES["num_key_value_heads"],
        head_dim=SIZES["head_dim"],
        visits=tuple(Visit(visit.layer, owner, damp=visit.damp) for visit, owner in visits),
        eps=model.config.rms_norm_eps,
        force_nodiag=getattr(model.config, "force_nodiag", False),
    )
    return dict(model.state_dict()), settings


@torch.no_grad()
def greedy(weights, settings, prompt):
    """The likeliest tokens one after the other; the sum of their logs."""
    tokens, total = list(prompt), 0.0
    for _ in range(TOKENS):
        logs = token_by_token(weights, settings, torch.tensor(tokens))[-1].log_softmax(dim=-1)
        tokens.append(int(logs.argmax()))
        total += float(logs.max())
    return tokens[len(prompt) :], total


def test_a_prompt_longer_than_the_passes_is_read_as_restack_llama_reads_it(shelf):
    """One prompt after the other into the same block, so that what the first has left is there."""
    model, _ = stored(shelf, "few-passes")
    answer = ask(shelf, Case("few-passes", "all", {"max_num_seqs": 1, "num_gpu_blocks_override": 2}), LONG)
    exact = [greedy(*meant(model, "all"), prompt)[1] for prompt in LONG]
    for prompt, tokens, total, far in zip(
        LONG, answer["tokens"], answer["log_probability"], exact, strict=True
    ):
        made = model.generate(
            torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        assert tokens == made.sequences[0, len(prompt) :].tolist()
        wanted = sum(float(logits.double().log_softmax(-1).max()) for logits in made.logits)
        assert total == pytest.approx(wanted, abs=1e-3)
        assert abs(total - far) > 1e-2


def test_parts_of_a_prompt_are_read_beside_answers_that_go_on(shelf):
    """Parts of 8 tokens, which 9 passes read exactly; all 20 they would not."""
    case = Case("lckv", "all", {"max_num_batched_tokens": 8, "max_num_seqs": 4})
    answer = ask(shelf, case, LONG)
    wanted = [greedy(*meant(stored(shelf, case.model)[0], case.plan), prompt) for prompt in LONG]
    assert answer["tokens"] == [tokens for tokens, _ in wanted]
    assert answer["log_probability"] == pytest.approx([total for _, total in wanted], abs=1e-3)


def test_the_server_serves_a_checkpoint_of_lckv(shelf):
    tokens, _ = greedy(*meant(stored(shelf, "served-lckv")[0], "all"), PROMPTS[0])
    assert ask_server(shelf, "served-lckv", "all") == AutoTokenizer.from_pretrained(demo.FOLDER).decode(
        tokens
    )


def test_the_fewer_owners_the_more_room_in_the_kv_cache(shelf):
    one, two = (answered(shelf, name)["kv_tokens"] for name in ("all-read-the-top", "qwen3"))
    assert one / two == pytest.approx(2, rel=0.01)
