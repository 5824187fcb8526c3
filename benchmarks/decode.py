"""Decoding and prefill, one text at a time: restack beside transformers and chatllm.cpp.

A random Llama of 303 M parameters (hidden 1024, 24 layers, 16 heads, 4 of keys and values, FFN 2816,
vocabulary 16,000) and two views of it, a self-merge and a prune. Tokens a second of greedy decoding after a
prompt, and of reading the prompt. transformers runs its own `generate` on the model materialised with the
same plan, in float32 and bfloat16. chatllm.cpp runs if its program and that model, converted and quantised
by it, are named; with OMP_WAIT_POLICY active and passive, the better is taken. Each figure is the median of
runs that take turns. On a GPU the steps of both are compiled, over static caches; chatllm.cpp is left out.

The bytes that a token reads, weights and keys and values, a second, are told beside what `torch.sum` reads of
a large tensor in the same run.

    python benchmarks/decode.py --json decode.json      many minutes, 8 GB of memory
    python benchmarks/decode.py --device cuda
    python benchmarks/decode.py --chatllm ../main --chatllm-model 4=q4_0.bin --chatllm-model 8=q8_0.bin
"""

import os
import re
import statistics
import subprocess
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from report import Claim, TokenTimes, conditions, finish, interleaved, options
from transformers import LlamaConfig, LlamaForCausalLM

import restack
from restack.runtime.decoding import decode
from restack.runtime.packed.torch_kernels import multiplies_bfloat16
from restack.views.cost import cost

PLANS = {
    "base": "0:24",
    "self-merge": "0:8,4:12,8:16,12:20,16:24",
    "prune": "0:10,10:20:2,20:",
}
SHAPE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 4,
    "intermediate_size": 2816, "vocab_size": 16_000, "max_position_embeddings": 4096,
}  # fmt: skip
FORMATS = {"int4": 4, "int8": 8, "bfloat16": 16, "float32": 32}
GOALS = {("int4", "float32"): 5.0, ("int4", "bfloat16"): 4.0}  # decoding, against transformers in that dtype
PEER_GOALS = {4: 1.3, 8: 1.0}  # decoding, against chatllm.cpp
PREFILL_GOAL = 2.0
SPEEDS = re.compile(r"(prompt )?eval time.*?([\d.]+) tokens per second")


def multiplies_bfloat16_on(device: torch.device) -> bool:
    """Whether there are instructions that do."""
    return device.type != "cpu" or multiplies_bfloat16()


def made(format: str, device: torch.device) -> Any:
    """The model, with weights of this format."""
    torch.manual_seed(0)
    # Activations of packed models are bfloat16, as those of most checkpoints are, where that is quicker.
    is_narrow = format == "bfloat16" or (format.startswith("int") and multiplies_bfloat16_on(device))
    dtype = torch.bfloat16 if is_narrow else torch.float32
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).to(device, dtype).eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    if device.type != "cpu":
        model.generation_config.cache_implementation = "static"
    return restack.quantize(model, format) if format.startswith("int") else model


def timed(model: Any, prompt: torch.Tensor, tokens: int, is_ours: bool) -> dict[str, float]:
    """Tokens a second of reading, until the first token, and of decoding those after it."""
    watch = TokenTimes()
    began = time.perf_counter()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=1 + tokens,
        streamer=watch,
        **(
            {"custom_generate": partial(decode, stream=watch), "cache_implementation": None}
            if is_ours
            else {}
        ),
    )
    first, last = watch.seen[1], watch.seen[-1]  # the prompt comes before
    return {"prefill": prompt.shape[1] / (first - began), "decode": tokens / (last - first)}


def bandwidth(large: torch.Tensor) -> dict[str, float]:
    """Bytes a second that `torch.sum` reads."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        large.sum().item()
        seconds.append(time.perf_counter() - began)
    return {"bytes": large.nbytes / statistics.median(seconds)}


def of_chatllm(program: str, model: str, plan: str, prompt: int, tokens: int) -> dict[str, float]:
    """What chatllm.cpp says of its own speed, the better of two wait policies."""
    best: dict[str, float] = {}
    for policy in ("active", "passive"):
        command = [
            program, "-m", model, "--layer_spec", plan, "-n", str(torch.get_num_threads()),
            "-p", " ".join(["word"] * prompt), "--format", "completion", "--sampling", "greedy",
            "--max_new_tokens", str(tokens), "--hide_banner",
        ]  # fmt: skip
        done = subprocess.run(
            command, env=os.environ | {"OMP_WAIT_POLICY": policy}, capture_output=True, text=True, check=True
        )
        found = {
            "prefill" if name else "decode": float(speed)
            for name, speed in SPEEDS.findall(done.stdout + done.stderr)
        }
        if not found:
            raise SystemExit(f"{program} says nothing of its speed that this script can read")
        best = {name: max(speed, best.get(name, 0.0)) for name, speed in found.items()}
    return best


def bytes_a_token(model: Any, plan: str, text: int) -> float:
    """Weights that a token of a view reads, without the embedding, and keys and values of a text."""
    seen = cost(model, restack.plan(plan, model))
    beside = model.get_input_embeddings().weight.nbytes
    return seen.effective_bytes - beside + seen.kv_bytes_per_token * text


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--chatllm", metavar="PATH", help="chatllm.cpp's program")
    parser.add_argument(
        "--chatllm-model", action="append", default=[], metavar="BITS=FILE", help="the model, converted by it"
    )
    parser.add_argument("--prompt", type=int, default=665, help="tokens to read")
    parser.add_argument("--runs", type=int, default=3, help="of each measure")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS, help="of the weights")
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu, cuda...")
    asked = parser.parse_args()
    if asked.chatllm_model and asked.device.type != "cpu":
        parser.error("chatllm.cpp is measured on CPUs; leave out --device")
    tokens, runs, prompt = (16, 1, 64) if asked.quick else (48, asked.runs, asked.prompt)
    text = torch.randint(SHAPE["vocab_size"], (1, prompt), generator=torch.Generator().manual_seed(1))
    text, large = text.to(asked.device), torch.ones(100_000_000, device=asked.device)
    formats = ["int4", "float32"] if asked.quick else asked.formats
    converted = dict(each.split("=", 1) for each in asked.chatllm_model)
    claims, told = [], {}
    for name, plan in list(PLANS.items())[: 1 if asked.quick else None]:
        measures: dict[str, Any] = {"torch.sum": partial(bandwidth, large)}
        for format in formats:
            if format not in MODELS:
                MODELS[format] = made(format, asked.device)
            view = restack.view(MODELS[format], plan)
            measures[format] = partial(timed, view, text, tokens, True)
        for dtype in set(formats) & {"float32", "bfloat16"}:
            whole = restack.materialise(MODELS[dtype], plan)
            measures[f"transformers {dtype}"] = partial(timed, whole, text, tokens, False)
        for bits, file in converted.items():
            measures[f"chatllm {bits}"] = partial(of_chatllm, asked.chatllm, file, plan, prompt, tokens)
        found = interleaved(measures, runs)
        read = found["torch.sum"]["bytes"]
        for format in formats:
            speed = found[format]["decode"]
            share = speed * bytes_a_token(MODELS[format], plan, prompt + tokens // 2)
            told[f"{name}, {format}"] = f"{share / 1e9:.1f} GB/s, {share / read:.2f} of torch.sum"
        claims += compared(name, found, formats, asked.quick)
        told[f"torch.sum ({name})"] = f"{read / 1e9:.1f} GB/s"
    told["peer"] = "transformers" if not converted else "transformers, chatllm.cpp"
    if not converted:
        told["left out"] = "chatllm.cpp: name it with --chatllm and --chatllm-model"
    finish(
        asked.json,
        conditions(
            device=str(asked.device),
            prompt=prompt,
            tokens=tokens,
            runs=runs,
            bfloat16_in_hardware=multiplies_bfloat16_on(asked.device),
            **told,
        ),
        claims,
        peer="peer",
    )


MODELS: dict[str, Any] = {}


def compared(
    name: str, found: Mapping[str, Mapping[str, float]], formats: list[str], quick: bool
) -> list[Claim]:
    """Decoding of each format beside transformers' in float32 and bfloat16, and beside chatllm.cpp's."""
    rows = []
    for format in formats:
        for peer, speeds in found.items():
            kind, _, of = peer.partition(" ")
            bits = int(of) if kind == "chatllm" else 0
            if kind == "transformers":
                pairs = [("decode", GOALS.get((format, of)))]
            elif bits == FORMATS[format]:
                pairs = [("decode", PEER_GOALS.get(bits)), ("prefill", PREFILL_GOAL)]
            else:
                continue
            for what, times in pairs:
                goal = None if times is None else times * speeds[what]
                label = f"{what}, {name}, {format} : {peer}"
                rows.append(Claim(label, found[format][what], speeds[what], "token/s", goal, more=True))
    return rows


if __name__ == "__main__":
    main()
