"""Asks vLLM: models of random weights in folders, and a process for each case."""

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

import torch
import transformers

import restack
from restack import demo
from restack.engines.vllm import vllm_arguments

PROMPTS = [[5, 17, 200, 33], [7, 250, 8, 9, 101, 64, 3]]
TOKENS = 12
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
TWO_WORKERS = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
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
    "lckv": lambda: restack.llama.LCKVLlamaConfig(**SIZES, layer_types="0_3_3_3"),
    "served-lckv": lambda: restack.llama.LCKVLlamaConfig(
        **SIZES | {"vocab_size": 1088}, layer_types="0_3_3_3"
    ),
    "house": lambda: restack.llama.RestackLlamaConfig(**SIZES, qk_norm=True, kv_map="0_2_2_3"),
    "nodiag": lambda: restack.llama.RestackLlamaConfig(
        **SIZES, attention_bias=True, attention_out_bias=False, force_nodiag=True, kv_map="0_0_2_3"
    ),
    "sequential": lambda: restack.llama.RestackLlamaConfig(
        **SIZES, kv_map="0_3_3_3", forward_passes=0, backward_passes=1, use_sequential=True
    ),
    "few-passes": lambda: restack.llama.RestackLlamaConfig(
        **SIZES, kv_map="3_3_3_3", forward_passes=2, backward_passes=1
    ),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=320, n_embd=128, n_layer=4, n_head=4, n_positions=128),
}


@dataclass(frozen=True)
class Case:
    """What vLLM is asked, beside the prompts."""

    model: str
    plan: str
    options: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    compiled: bool = False
    transformers_backend: bool = False


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


def ask(shelf, case, prompts=PROMPTS):
    """What vLLM says to a case, in a process of its own."""
    model, folder = stored(shelf, case.model)
    read, write = os.pipe()
    asked = {
        "arguments": {
            "enforce_eager": not case.compiled,
            "enable_prefix_caching": False,
            **vllm_arguments(f"{folder}@{case.plan}", transformers_backend=case.transformers_backend),
            **case.options,
        },
        "prompts": prompts,
        "tokens": TOKENS,
        "depth": len(restack.plan(case.plan, model.config)),
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


def ask_server(shelf, kind, plan):
    """The text that vLLM's own OpenAI server, given what the command prints, says to the first prompt.

    The script `vllm` does not find its version in the build for processors.
    """
    _, folder = stored(shelf, kind)
    for name in TOKENIZER:
        (folder / name).write_bytes((demo.FOLDER / name).read_bytes())
    printed = subprocess.run(
        [sys.executable, "-m", "restack", "vllm-args", f"{folder}@{plan}"],
        capture_output=True,
        text=True,
        check=True,
    )
    arguments = shlex.split(printed.stdout)
    name = arguments[arguments.index("--served-model-name") + 1]
    with served(shelf, arguments) as address:
        body = {
            "model": name, "prompt": PROMPTS[0], "max_tokens": TOKENS, "temperature": 0,
            "ignore_eos": True,
        }  # fmt: skip
        request = urllib.request.Request(
            f"{address}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)["choices"][0]["text"]


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
