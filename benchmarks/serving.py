"""1 to 32 clients over four plans of one model: `restack serve` beside `transformers serve`.

A random Llama of 303 M parameters in float32 (the shape of decode.py) and three views of it. restack serves
them from one set of weights; transformers serves four folders, the plans materialised. Each client asks for
the next of the plans, a prompt of 32 tokens, streamed. Tokens a second over all clients and the median time
to a first token, medians of runs that take turns; and the most memory that each process has held.

    python benchmarks/serving.py --json serving.json      many minutes, 9 GB of memory, 6 GB of disk
"""

import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from decode import PLANS, made
from report import Claim, conditions, finish, options
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import restack

SERVED = {**PLANS, "block": "0:16,12:24"}
PROMPT = 32


def stored(folder: Path) -> dict[str, Path]:
    """The plans as folders of transformers, with a tokenizer of one token a word."""
    base = made("float32")
    vocabulary = {f"w{number}": number for number in range(base.config.vocab_size)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
    places = {}
    for name, plan in SERVED.items():
        places[name] = folder / name
        restack.materialise(base, plan).save_pretrained(places[name])
        tokenizer.save_pretrained(places[name])
    return places


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """A server until the end of the block: its process id."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}") from None
                    time.sleep(0.2)
            yield process.pid
        finally:
            process.terminate()


def asked(port: int, model: str, tokens: int, seed: int) -> tuple[float, int]:
    """Seconds to a first piece of an answer, and how many pieces came."""
    words = random.Random(seed).choices(range(1, 16_000), k=PROMPT)
    body = {
        "model": model, "prompt": " ".join(f"w{word}" for word in words), "max_tokens": tokens,
        "temperature": 0, "stream": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    began, first, pieces = time.perf_counter(), None, 0
    with urllib.request.urlopen(request, timeout=1200) as answer:
        for line in answer:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["text"]:
                    first = first or time.perf_counter() - began
                    pieces += 1
    if first is None:
        raise SystemExit(f"{model} said nothing")
    return first, pieces


def spoken(port: int, names: list[str], clients: int, tokens: int, seed: int) -> dict[str, float]:
    """Tokens a second of so many clients at once, and the median seconds to a first token."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        heard = list(pool.map(lambda n: asked(port, names[n % len(names)], tokens, seed + n), range(clients)))
    took = time.perf_counter() - began
    return {
        "speed": sum(pieces for _, pieces in heard) / took,
        "first": statistics.median(first for first, _ in heard),
    }


def most_memory(process: int) -> float:
    """Bytes that a process has held at its most."""
    status = Path(f"/proc/{process}/status").read_text()
    return float(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> None:
    asked_for = options(__doc__).parse_args()
    counts, tokens, runs = ([1, 4], 8, 1) if asked_for.quick else ([1, 4, 16, 32], 16, 2)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        places = stored(Path(scratch))
        ours, theirs = free_port(), free_port()
        base = places["base"]
        plans = [f"--plan={name}={plan}" for name, plan in SERVED.items() if name != "base"]
        command = [
            sys.executable,
            "-m",
            "restack",
            "serve",
            str(base),
            *plans,
            "--slots",
            "32",
            "--port",
            str(ours),
        ]
        peer = [
            str(Path(sys.executable).with_name("transformers")),
            "serve",
            "--device",
            "cpu",
            "--port",
            str(theirs),
        ]
        sides: dict[str, Any] = {
            "restack": (ours, [str(base), *(name for name in SERVED if name != "base")]),
            "transformers": (theirs, [str(place) for place in places.values()]),
        }
        found: dict[tuple[int, str], list[dict[str, float]]] = {}
        with running(command, ours) as our_process, running(peer, theirs) as their_process:
            for port, names in sides.values():  # all weights are read before anything is timed
                for name in names:
                    asked(port, name, 2, 0)
            for count in counts:
                for run in range(runs):
                    for side, (port, names) in sides.items():
                        heard = spoken(port, names, count, tokens, 1000 * run + count)
                        found.setdefault((count, side), []).append(heard)
            memory = most_memory(our_process), most_memory(their_process)
    claims = [Claim("most memory", memory[0] / 1e6, memory[1] / 1e6, "MB")]
    for count in counts:
        mine, other = (
            {
                name: statistics.median(each[name] for each in found[count, side])
                for name in ("speed", "first")
            }
            for side in ("restack", "transformers")
        )
        claims.append(Claim(f"{count} clients", mine["speed"], other["speed"], "token/s", more=True))
        claims.append(Claim(f"{count} clients, first token", mine["first"], other["first"], "s"))
    finish(
        asked_for.json, conditions(prompt=PROMPT, tokens=tokens, runs=runs), claims, peer="transformers serve"
    )


if __name__ == "__main__":
    main()
