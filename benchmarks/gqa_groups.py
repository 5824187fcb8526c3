"""Time a sample against the number of KV groups, from one (MQA) to one for each head (MHA): GQA's Figure 6.

A sample is a row of a batch, its prompt's prefill included; prompt and output stand as the paper's 2048 and
512 (2305.13245). Theirs is T5-XXL with 64 heads on TPUs, this is a Llama with 32 heads, so it is the form
that can be compared: each is drawn in times of its own time with one group.

    python benchmarks/gqa_groups.py --json gqa_groups.json --plot gqa_groups.png     some minutes on two cores
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kv_sharing import clear, clock, generate, next_token, random_prompt, static_cache
from report import Claim, conditions, finish, interleaved, options
from rich.console import Console
from rich.table import Table

from restack.llama import RestackLlamaConfig, RestackLlamaForCausalLM

HEADS = 32
# Seconds a sample by groups, as read off Figure 6 of the GQA paper in X-Llama's copy; 64 is MHA
PAPER = {1: 0.49, 4: 0.48, 8: 0.51, 16: 0.59, 32: 0.80, 64: 2.53}


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured on a kind of device."""

    shape: Mapping[str, int]
    dtype: torch.dtype
    batch: int
    prompt: int
    generated: int
    groups: tuple[int, ...]
    runs: int


GROUPS = (1, 2, 4, 8, 16, HEADS)
ON_GPU = Size(
    shape={"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22},
    dtype=torch.bfloat16,
    batch=64,
    prompt=2048,
    generated=512,
    groups=GROUPS,
    runs=3,
)
ON_CPU = Size(
    shape={"vocab_size": 4000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4},
    dtype=torch.float32,
    batch=32,
    prompt=256,
    generated=64,
    groups=GROUPS,
    runs=5,
)
SIZES = {"cuda": ON_GPU, "cpu": ON_CPU}
FEWER = (1, 8, HEADS)
QUICK = {
    "cuda": replace(ON_GPU, generated=64, prompt=256, groups=FEWER, runs=1),
    "cpu": replace(ON_CPU, batch=8, groups=FEWER, runs=1),
}


def attention(groups: int) -> str:
    return {1: "mqa", HEADS: "mha"}.get(groups, "gqa")


def model_of(size: Size, groups: int, device: str) -> RestackLlamaForCausalLM:
    """A model with random weights and this many key and value heads."""
    config = RestackLlamaConfig(
        **size.shape,
        num_attention_heads=HEADS,
        num_key_value_heads=groups,
        attention=attention(groups),
        max_position_embeddings=size.prompt + size.generated,
    )
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(size.dtype)
    try:
        with torch.device(device):
            return RestackLlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(usual)


def kv_bytes(model: RestackLlamaForCausalLM) -> int:
    """Bytes of keys and values that a cache holds for a token."""
    cache = static_cache(model.config, tokens=1)
    next_token(model, random_prompt(model, batch=1, tokens=1), cache)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def sample_seconds(model: RestackLlamaForCausalLM, size: Size, device: str) -> dict[str, float]:
    """Seconds of a generation over its rows: the whole, and its part after the prefill."""
    clear(device)
    prompt = random_prompt(model, size.batch, size.prompt)
    cache = static_cache(model.config, size.prompt + size.generated)
    start = clock(device)
    token = next_token(model, prompt, cache)
    prefilled = clock(device)
    generate(model, token, size.generated - 1, cache)
    end = clock(device)
    return {"whole": (end - start) / size.batch, "decoding": (end - prefilled) / size.batch}


def relative(figures: Mapping[int, float]) -> dict[int, float]:
    """In times of the figure of one group."""
    return {groups: figure / figures[1] for groups, figure in figures.items()}


def show_table(whole: Mapping[int, float], decoding: Mapping[int, float], held: Mapping[int, int]) -> None:
    """Ours and the paper's, by groups."""
    table = Table(title=f"Time a sample by KV groups, {HEADS} heads; (times that of one group)")
    for heading in ("groups", "", "KV bytes a token", "s a sample", "of it decoding", "paper"):
        table.add_column(heading, justify="left" if not heading else "right")
    times = [relative(figures) for figures in (whole, decoding, PAPER)]
    for groups in sorted({*whole, *PAPER}):
        row = [str(groups), "", "", "", "", ""]
        if groups in whole:
            row[1:3] = attention(groups).upper(), f"{held[groups]:,}"
        for place, figures in enumerate((whole, decoding, PAPER)):
            if groups in figures:
                row[3 + place] = f"{figures[groups]:.3g} ({times[place][groups]:.2f}x)"
        table.add_row(*row)
    table.caption = "paper: GQA (2305.13245) Figure 6, T5-XXL, where 64 groups are MHA; read off the picture"
    table.caption_justify = "left"
    Console().print(table)


def draw(file: Path, curves: Mapping[str, tuple[Mapping[int, float], Mapping[str, Any]]], title: str) -> None:
    """A PNG of curves: each a name, figures by groups, and how its line is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullFormatter, StrMethodFormatter

    figure, axes = pyplot.subplots(figsize=(7.2, 4.4), layout="constrained")
    for name, (figures, line) in curves.items():
        axes.plot(list(figures), list(figures.values()), marker="o", markersize=5, label=name, **line)
        last = max(figures)
        label = axes.annotate("MHA", (last, figures[last]), xytext=(-6, 5), textcoords="offset points")
        label.set(ha="right", fontsize=9, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    shown = sorted({groups for figures, _ in curves.values() for groups in figures})
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4, 5]))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}x"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_xlim(0.9, shown[-1] * 1.2)
    axes.set_ylim(top=6)
    axes.set_xlabel("groups of queries that share keys and values")
    axes.set_ylabel("time a sample, in times of one group's (MQA)")
    axes.set_title(title, fontsize=11, loc="left")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    part = file.with_name(file.name + ".part")
    figure.savefig(part, format="png", dpi=150)
    pyplot.close(figure)
    part.replace(file)


def plot(file: Path, size: Size, whole: Mapping[int, float], decoding: Mapping[int, float]) -> None:
    draw(
        file,
        {
            "GQA paper, T5-XXL, 64 heads": (relative(PAPER), {"color": "0.55", "linestyle": "--"}),
            f"restack, {HEADS} heads: decoding alone": (relative(decoding), {"color": "#e8a33d"}),
            f"restack, {HEADS} heads: prefill and decoding": (relative(whole), {"color": "#1f5fa8"}),
        },
        f"Time a sample by KV groups: {size.prompt} tokens in, {size.generated} out, batch {size.batch}",
    )


def parsed() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--batch", type=int, help="rows (32; on a GPU 64, for which it needs 50 GB)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw a PNG there")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    arguments = parsed()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = (QUICK if arguments.quick else SIZES)[device]
    if arguments.batch is not None:
        size = replace(size, batch=arguments.batch)
    models = {groups: model_of(size, groups, device) for groups in size.groups}
    measures = {str(groups): partial(sample_seconds, model, size, device) for groups, model in models.items()}
    figures = interleaved(measures, size.runs)
    whole = {groups: figures[str(groups)]["whole"] for groups in models}
    decoding = {groups: figures[str(groups)]["decoding"] for groups in models}
    show_table(whole, decoding, {groups: kv_bytes(model) for groups, model in models.items()})
    if arguments.plot is not None:
        plot(arguments.plot, size, whole, decoding)
    shape = ", ".join(f"{name} {value}" for name, value in size.shape.items())
    finish(
        arguments.json,
        conditions(
            model=f"Llama, {HEADS} heads, random weights; {shape}",
            dtype=str(size.dtype).removeprefix("torch."),
            sample=f"{size.prompt} tokens in, {size.generated} out, greedy, a row of a batch of {size.batch}",
            seconds=f"medians of interleaved runs ({size.runs}) after a warm-up; StaticCache",
        ),
        [
            Claim(f"{name}: {what}", figures[groups], figures[1], "s")
            for what, figures in (("time a sample", whole), ("of it decoding", decoding))
            for name, groups in (("8 groups", 8), ("MHA", HEADS))
        ],
        peer="MQA",
    )


if __name__ == "__main__":
    main()
