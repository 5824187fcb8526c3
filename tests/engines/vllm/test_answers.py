"""Plans on vLLM answer as models of transformers do that have the visits as layers.

These run in an environment of their own, which has vLLM: `make test-vllm`.
"""

from functools import cache

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")

from transformers import AutoTokenizer

import restack
from restack import demo
from tests.engines.vllm import reference
from tests.engines.vllm.asking import PROMPTS, TOKENS, TWO_WORKERS, Case, ask, ask_server, stored

REPEATED = "0:3,1:4"
DAMPED = "0@0.5,1:3,1:4@0.5"
SHARED = "0:3,1:4;kv=0_1_2_1_2_5"
CASES = {
    "llama": Case("llama", REPEATED),
    "llama-compiled": Case("llama", REPEATED, compiled=True),
    "qwen3": Case("qwen3", REPEATED),
    "transformers-backend": Case("llama", REPEATED, transformers_backend=True),
    "qwen3-moe": Case("qwen3-moe", REPEATED),
    "tensor-parallel": Case("llama", REPEATED, {"tensor_parallel_size": 2}, TWO_WORKERS),
    "kv-sharing": Case("llama", SHARED),
    "tensor-parallel-transformers-backend-kv-sharing": Case(
        "llama", SHARED, {"tensor_parallel_size": 2}, TWO_WORKERS, transformers_backend=True
    ),
    "pipeline-parallel-compiled": Case(
        "llama", REPEATED, {"pipeline_parallel_size": 2}, TWO_WORKERS, compiled=True
    ),
    "skipped-and-reversed": Case("llama", "3,0,2"),
    "damped": Case("llama", DAMPED),
    "damped-compiled": Case("llama", DAMPED, compiled=True),
    "damped-transformers-backend": Case("llama", DAMPED, transformers_backend=True),
    "gpt2-damped": Case("gpt2", DAMPED),
    "windows": Case("gemma3", "0:2,1:4,0"),
}


@cache
def answered(shelf, name):
    """What vLLM says to a case: more than one test looks at it."""
    return ask(shelf, CASES[name])


def expected(model, plan):
    """What the explicit stack says."""
    plan = restack.plan(plan, model.config)
    stack = reference.explicit(model, plan.order)
    layers = reference.layers_of(stack)
    for number, visit in enumerate(plan.visits):
        if visit.kv is not None:
            reference.read_from(layers, number, visit.kv)
        if visit.damp != 1:
            reference.damp(layers[number], visit.damp)
    return [reference.greedy(stack, prompt, TOKENS) for prompt in PROMPTS]


@pytest.mark.parametrize("name", CASES)
def test_answers_are_those_of_transformers(name, shelf):
    answer = answered(shelf, name)
    model, _ = stored(shelf, CASES[name].model)
    wanted = expected(model, CASES[name].plan)
    assert answer["tokens"] == [tokens for tokens, _ in wanted]
    assert answer["log_probability"] == pytest.approx([total for _, total in wanted], abs=1e-3)
    print(name, max(abs(a - b) for a, (_, b) in zip(answer["log_probability"], wanted, strict=True)))


@pytest.mark.parametrize("name", ["llama", "transformers-backend", "qwen3-moe"])
def test_visits_share_the_weights_of_their_layer(name, shelf):
    modules = answered(shelf, name)["modules"]
    (in_each,) = set(modules["in_each"])
    assert len(modules["in_each"]) == 6
    assert modules["in_all"] == 4 * in_each >= 4 * 6


def test_each_visit_has_a_slot_of_the_kv_cache_unless_it_reads_another(shelf):
    own, shared = (answered(shelf, name)["kv_tokens"] for name in ("llama", "kv-sharing"))
    assert shared / own == pytest.approx(6 / 4, rel=0.01)


def test_the_server_takes_what_the_command_prints(shelf):
    model, _ = stored(shelf, "served")
    ((tokens, _), _) = expected(model, REPEATED)
    assert ask_server(shelf, "served", REPEATED) == AutoTokenizer.from_pretrained(demo.FOLDER).decode(tokens)
