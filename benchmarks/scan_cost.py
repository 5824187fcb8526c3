"""What a scan of all blocks costs: beside every candidate run by itself, and beside writing checkpoints.

A Llama of 303 M parameters (hidden 1024, 24 layers, 16 heads, 4 of keys and values, vocabulary 16,000),
random, in float32; all 300 blocks that can run twice, and the base, read the same texts. By itself, each
candidate is a view that reads them all from the start, as a scan without sharing does. The log-probabilities
of every token are compared between the two.

And how soon a candidate is ready to be scored: a view of the loaded model, beside a merged checkpoint that
transformers writes and loads, as it takes where a tool knows files only. The files stay in the cache of the
operating system, which favours them.

    python benchmarks/scan_cost.py --json scan_cost.json     some 6 minutes on two idle cores, 4 GB
"""

import shutil
import tempfile
import time
from pathlib import Path

import torch
from report import Claim, conditions, finish, interleaved, options
from transformers import LlamaConfig, LlamaForCausalLM

import restack
from restack.scanning import base, grid
from restack.scanning.probe import Row
from restack.scanning.reading import LayerRuns, read

LAYERS, VOCABULARY = 24, 16000
CANDIDATE = "0:16,12:24"
CLOSE = 1e-5


def model_of(layers: int) -> LlamaForCausalLM:
    """303 M parameters with 24 layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


def main() -> None:
    arguments = options(__doc__).parse_args()
    layers, texts, length = (6, 1, 32) if arguments.quick else (LAYERS, 2, 32)
    model = model_of(layers)
    tokens = torch.randint(VOCABULARY, (texts, length), generator=torch.Generator().manual_seed(1))
    rows = [Row(tuple(row), length - 1) for row in tokens.tolist()]
    plans = [candidate.plan for candidate in (base(layers), *grid(layers))]

    list(read(model, plans[:1], rows))  # once, it is seen whether the model can be entered midway
    runs, shared, alone = LayerRuns(), {}, {}
    seconds = {"shared": 0.0, "alone": 0.0}
    sharing = read(model, plans, rows, runs=runs)
    for _ in plans:  # in turn, so that a machine that slows down slows both
        start = time.perf_counter()
        number, shared[number] = next(sharing)
        middle = time.perf_counter()
        _, alone[number] = next(read(model, [plans[number]], rows))
        seconds["shared"] += middle - start
        seconds["alone"] += time.perf_counter() - middle
    difference = max(
        float((ours.log_probabilities - theirs.log_probabilities).abs().max())
        for number in shared
        for ours, theirs in zip(shared[number], alone[number], strict=True)
    )

    def ready() -> dict[str, float]:
        start = time.perf_counter()
        restack.view(model, CANDIDATE if layers == LAYERS else "0:4,2:6")
        return {"seconds": time.perf_counter() - start}

    def through_files() -> dict[str, float]:
        start = time.perf_counter()
        folder = Path(tempfile.mkdtemp())
        restack.materialise(model, CANDIDATE if layers == LAYERS else "0:4,2:6").save_pretrained(folder)
        LlamaForCausalLM.from_pretrained(folder)
        elapsed = time.perf_counter() - start
        shutil.rmtree(folder)
        return {"seconds": elapsed}

    found = interleaved({"view": ready, "files": through_files}, 1 if arguments.quick else 5)
    view, files = found["view"]["seconds"], found["files"]["seconds"]
    claims = [
        Claim("layers run", runs.run, runs.alone, "", goal=0.55 * runs.alone),
        Claim(
            "seconds for all candidates",
            seconds["shared"],
            seconds["alone"],
            "s",
            goal=0.65 * seconds["alone"],
        ),
        Claim("largest difference of a log-probability", difference, None, "nats", goal=CLOSE),
        Claim("a candidate is ready", view, files, "s", goal=files / 20),
    ]
    about = conditions(
        model=f"Llama, {layers} layers, {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M, float32",
        candidates=len(plans),
        texts=f"{texts} of {length} tokens",
    )
    finish(arguments.json, about, claims, "by itself")


if __name__ == "__main__":
    main()
