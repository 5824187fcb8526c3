"""Plans on vLLM answer as models of transformers do that have the visits as layers.

These run in an environment of their own, which has vLLM: `make test-vllm`.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed; make test-vllm has it")

import transformers

import restack
from restack import demo
from restack.engines.vllm import vllm_arguments
from tests.engines.vllm import reference

PROMPTS = [[5, 17, 200, 33], [7, 250, 8, 9, 101, 64, 3]]
TOKENS = 12
SIZES = {
    "vocab_size": 320, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}  # fmt: skip
MODELS = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "served": lambda: transformers.LlamaConfig(**SIZES | {"vocab_size": 1088}),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=48
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SIZES, sliding_window=8, layer_types=["sliding_attention", "full_attention"] * 2
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=320, n_embd=128, n_layer=4, n_head=4, n_positions=128),
}
REPEATED = "0:3,1:4"
DAMPED = "0@0.5,1:3,1:4@0.5"
SHARED = "0:3,1:4;kv=0_1_2_1_2_5"
TWO_WORKERS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}


@dataclass(frozen=True)
class Case:
    """What vLLM is asked, beside the prompts."""

    model: str
    plan: str
    options: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    compiled: bool = False
    transformers_backend: bool = False


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


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@cache
def stored(shelf, kind):
    """A model with random weights, and its folder."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[kind](), dtype=torch.float32).eval()
    with torch.no_grad():  # larger than at the beginning of a training, or all tokens would be as likely
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(shelf / kind)
    return model, shelf / kind


def environment(shelf, **more):
    return {
        **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(shelf / "cache"), "VLLM_ALLOW_INSECURE_SERIALIZATION": "1", **more,
    }  # fmt: skip


@cache
def answered(shelf, name):
    """What vLLM says to a case, in a process of its own."""
    case = CASES[name]
    _, folder = stored(shelf, case.model)
    read, write = os.pipe()
    asked = {
        "arguments": vllm_arguments(f"{folder}@{case.plan}", transformers_backend=case.transformers_backend),
        "options": {**case.options, "enforce_eager": not case.compiled},
        "prompts": PROMPTS,
        "tokens": TOKENS,
        "depth": len(restack.plan(case.plan, 4)),
        "to": write,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.engines.vllm.answer", json.dumps(asked)],
        cwd=Path(__file__).parents[3], env=environment(shelf, **case.environment), pass_fds=[write],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        log, _ = process.communicate(timeout=900)
    os.close(write)
    with os.fdopen(read) as answer:
        assert process.returncode == 0, log[-6000:]
        return json.loads(answer.read())


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
    """vLLM's own OpenAI server; the script `vllm` does not find its version in the build for processors."""
    model, folder = stored(shelf, "served")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((demo.FOLDER / name).read_bytes())
    reference_of = f"{folder}@{REPEATED}"
    printed = subprocess.run(
        [sys.executable, "-m", "restack", "vllm-args", reference_of],
        capture_output=True,
        text=True,
        check=True,
    )
    with served(shelf, shlex.split(printed.stdout)) as address:
        body = {
            "model": reference_of, "prompt": PROMPTS[0], "max_tokens": TOKENS, "temperature": 0,
            "ignore_eos": True,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            text = json.load(answer)["choices"][0]["text"]
    ((tokens, _), _) = expected(model, REPEATED)
    assert text == transformers.AutoTokenizer.from_pretrained(folder).decode(tokens)


@contextmanager
def served(shelf, arguments):
    """A server of vLLM's until the end of the block: its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    model, *options = arguments
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *options,
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "64",
    ]  # fmt: skip
    log = shelf / "server.log"
    with (
        log.open("wb") as to,
        subprocess.Popen(command, env=environment(shelf), stdout=to, stderr=subprocess.STDOUT) as process,
    ):
        try:
            for _ in range(900):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    assert process.poll() is None, log.read_text()[-6000:]
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
