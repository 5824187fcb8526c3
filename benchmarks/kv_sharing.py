"""What sharing keys and values buys: the largest batch, and tokens a second, of a KV budget.

The form is Table 1 of LCKV (2405.10637): standard Llama beside KV maps that keep the keys and values of 3
(`lckv-w2`) or 11 of 22 layers, each with the largest batch whose cache fits, prefill included. The batch must
grow as layers over owners do. On a GPU: the shape of TinyLlama 1.1B, its memory capped at the 24 GB of the
paper's RTX 3090, and the largest batch that runs. On a CPU: TinyLlama's 22 layers at a sixteenth of its
widths, and the largest batch whose cache fits a budget in bytes, weights not counted.

Long generations are timed in windows: some steps at each of several context lengths, with random keys and
values in the cache, and the area under them. Once they are held against a generation end to end.

The cache has room for all tokens from the start, since growing one needs memory for two. By default it shows
attention the tokens that it has, as transformers' DynamicCache does. Its StaticCache shows all the room and a
mask: no step is cheaper than the last, and a prefill with a mask repeats the keys and values of all the room.

    python benchmarks/kv_sharing.py --json kv_sharing.json     about ten minutes on two cores
    python benchmarks/kv_sharing.py --cache static             in transformers' StaticCache
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from report import Claim, conditions, finish, interleaved, options
from rich.console import Console
from rich.table import Table
from transformers import StaticCache
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from restack.llama import RestackLlamaConfig, RestackLlamaForCausalLM

LLAMA = "Llama"
MAPS = ("lckv-w2", "lckv-w10", "cla2", "sandwich-middle:11")
# Table 1 of LCKV, 1.1B on one RTX 3090: the largest batch, and tokens a second
PAPER = {
    "5+8187": {LLAMA: (48, 1424.96), "lckv-w2": (384, 4113.37), "lckv-w10": (119, 2374.05)},
    "5+2043": {LLAMA: (239, 5142.86), "lckv-w2": (1150, 10033.40), "lckv-w10": (289, 7239.92)},
}
PAPER_GAIN = 2.9  # of tokens a second: lckv-w2 over Llama at 5+8187
BATCH_SLACK = 5  # percent that a batch ratio may be away from layers over owners
STEPS = 10  # of a window
MIB, GB = 2**20, 10**9


@dataclass(frozen=True, slots=True)
class Setting:
    """How many tokens are given and generated, and in how many windows that is timed (None: end to end)."""

    prompt: int
    generated: int
    windows: int | None = None

    def __str__(self) -> str:
        return f"{self.prompt}+{self.generated}"

    @property
    def tokens(self) -> int:
        """What the cache must have room for."""
        return self.prompt + self.generated


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured on a kind of device; the first setting is the long one."""

    name: str
    shape: Mapping[str, int]
    dtype: torch.dtype
    settings: tuple[Setting, ...]
    check: Setting | None  # is timed both in windows and end to end
    runs: int


LAYERS = 22
TINYLLAMA = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
SIXTEENTH = {
    "vocab_size": 2000,
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
}
ON_GPU = Size(
    name="TinyLlama 1.1B",
    shape=TINYLLAMA,
    dtype=torch.bfloat16,
    settings=(Setting(5, 8187, windows=9), Setting(5, 2043, windows=9)),
    check=Setting(5, 2043, windows=9),
    runs=3,
)
ON_CPU = Size(
    name="TinyLlama's layers at a sixteenth of their widths",
    shape=SIXTEENTH,
    dtype=torch.float32,
    settings=(Setting(5, 1019, windows=9), Setting(5, 251), Setting(64, 128)),
    check=Setting(5, 251, windows=9),
    runs=3,
)
SIZES = {"cuda": ON_GPU, "cpu": ON_CPU}
QUICK = {
    "cuda": replace(ON_GPU, settings=(Setting(5, 8187, windows=4),), check=None, runs=1),
    "cpu": replace(ON_CPU, settings=(Setting(5, 1019, windows=4),), check=Setting(5, 59, windows=4), runs=1),
}


# ---- Caches: room for all tokens from the start, so that no budget is spent on copies ----


class InPlaceLayer(DynamicLayer):  # type: ignore[misc]
    """A cache slot with room for all tokens, that shows those it has: no mask is needed, nothing copied."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the room, for keys and values (B, nh_kv, any, hs)."""
        super().lazy_initialization(key_states, value_states)
        batch, heads, _, width = key_states.shape
        self.whole = tuple(key_states.new_zeros(batch, heads, self.room, width) for _ in range(2))
        self.show(0)

    def show(self, tokens: int) -> None:
        """Have this many tokens."""
        self.keys, self.values = (whole[:, :, :tokens] for whole in self.whole)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values (B, nh_kv, T, hs) of new tokens; all there are, (B, nh_kv, S, hs)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.keys.shape[2]
        self.show(before + key_states.shape[2])
        self.keys[:, :, before:] = key_states
        self.values[:, :, before:] = value_states
        return self.keys, self.values


def static_cache(config: Any, tokens: int) -> Cache:
    return StaticCache(config=config, max_cache_len=tokens)


def in_place_cache(config: Any, tokens: int) -> Cache:
    return Cache(layers=[InPlaceLayer(tokens) for _ in config.layer_types])


CACHES: dict[str, Callable[[Any, int], Cache]] = {"static": static_cache, "in-place": in_place_cache}


def fill(cache: Cache) -> None:
    """Random keys and values in all the room there is, without a copy of any."""
    for layer in cache.layers:
        if isinstance(layer, InPlaceLayer):
            layer.show(layer.room)
        layer.keys.normal_()
        layer.values.normal_()


def show(cache: Cache, tokens: int) -> None:
    """Have this many tokens, of those that are there."""
    for layer in cache.layers:
        if isinstance(layer, StaticLayer):
            layer.cumulative_length.fill_(tokens)
        else:
            layer.show(tokens)


# ---- Decoding ----


def next_token(model: torch.nn.Module, tokens: torch.Tensor, cache: Cache) -> torch.Tensor:
    """The greedy tokens (B, 1) after tokens (B, T) and what the cache has."""
    return model(tokens, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)


def generate(model: torch.nn.Module, prompt: torch.Tensor, generated: int, cache: Cache) -> torch.Tensor:
    """Greedy tokens (B, generated) after a prompt (B, T): its prefill, then a step for each further token."""
    tokens = [next_token(model, prompt, cache)]
    while len(tokens) < generated:
        tokens.append(next_token(model, tokens[-1], cache))
    return torch.cat(tokens, dim=1)


def random_prompt(model: torch.nn.Module, batch: int, tokens: int) -> torch.Tensor:
    return torch.randint(model.config.vocab_size, (batch, tokens), device=model.device)


def clock(device: str) -> float:
    """Seconds, once the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def clear(device: str) -> None:
    """Give back the memory of what is not used any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


# ---- What is measured ----


@dataclass(frozen=True, slots=True)
class Bench:
    """A size on a device, with a kind of cache."""

    size: Size
    device: str
    new_cache: Callable[[Any, int], Cache]
    budget: float  # bytes: of the cache on a CPU; of all memory on a GPU

    def models(self) -> dict[str, RestackLlamaForCausalLM]:
        """Llama and a model of each KV map, with the same random weights; nothing is there twice."""
        models = {LLAMA: self.model(LLAMA)}
        weights = models[LLAMA].state_dict()
        for kv_map in MAPS:
            models[kv_map] = self.model(kv_map)
            its = {name: weights[name] for name in models[kv_map].state_dict()}
            models[kv_map].load_state_dict(its, assign=True)
        return models

    def model(self, name: str) -> RestackLlamaForCausalLM:
        given = {} if name == LLAMA else {"kv_map": name}
        longest = max(setting.tokens for setting in self.size.settings)
        config = RestackLlamaConfig(
            **self.size.shape, num_hidden_layers=LAYERS, max_position_embeddings=longest, **given
        )
        torch.manual_seed(0)
        usual = torch.get_default_dtype()
        torch.set_default_dtype(self.size.dtype)
        try:
            with torch.device(self.device):
                return RestackLlamaForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(usual)

    def kv_bytes(self, model: RestackLlamaForCausalLM) -> int:
        """Bytes of keys and values a token, found in a cache; they must be what arithmetic says."""
        rows, tokens, config = 2, 7, model.config
        cache = self.new_cache(config, tokens)
        next_token(model, random_prompt(model, rows, tokens), cache)
        found = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) / (rows * tokens)
        each = 2 * config.num_key_value_heads * config.head_dim * self.size.dtype.itemsize
        if found != each * owners(model):
            raise SystemExit(f"{config.kv_map} keeps {found} bytes a token, not {each} for each owner")
        return each * owners(model)

    def largest_batch(self, model: RestackLlamaForCausalLM, setting: Setting) -> tuple[int, int]:
        """The largest batch by arithmetic, and the largest that runs; on a CPU they are the same."""
        on_gpu = self.device == "cuda"
        weights = sum(parameter.nbytes for parameter in model.parameters()) if on_gpu else 0
        counted = int((self.budget - weights) / (self.kv_bytes(model) * setting.tokens))
        fits, too_many = 0, counted + 1
        while on_gpu and too_many - fits > 1:
            batch = (fits + too_many) // 2
            if self.runs(model, setting, batch):
                fits = batch
            else:
                too_many = batch
        runs = fits if on_gpu else counted
        if not runs:
            raise SystemExit(f"the budget is too small for one row of {setting} tokens; give more")
        return counted, runs

    def runs(self, model: RestackLlamaForCausalLM, setting: Setting, batch: int) -> bool:
        """Whether the prefill and the last steps of a generation fit the memory."""
        clear(self.device)
        try:
            cache = self.new_cache(model.config, setting.tokens)
            token = next_token(model, random_prompt(model, batch, setting.prompt), cache)
            fill(cache)
            show(cache, setting.tokens - STEPS)
            generate(model, token, STEPS, cache)
            clock(self.device)
        except torch.OutOfMemoryError:
            return False
        return True

    def speed(self, model: RestackLlamaForCausalLM, setting: Setting, batch: int) -> dict[str, float]:
        """Tokens a second of a whole generation, prefill included."""
        measure = self.end_to_end if setting.windows is None else self.in_windows
        return {"tokens/s": batch * setting.generated / measure(model, setting, batch)}

    def end_to_end(self, model: RestackLlamaForCausalLM, setting: Setting, batch: int) -> float:
        """Seconds of a generation."""
        clear(self.device)
        prompt = random_prompt(model, batch, setting.prompt)
        start = clock(self.device)
        generate(model, prompt, setting.generated, self.new_cache(model.config, setting.tokens))
        return clock(self.device) - start

    def in_windows(self, model: RestackLlamaForCausalLM, setting: Setting, batch: int) -> float:
        """Seconds of a generation: the prefill's, and the area under those of steps at some lengths."""
        assert setting.windows is not None
        clear(self.device)
        prompt = random_prompt(model, batch, setting.prompt)
        cache = self.new_cache(model.config, setting.tokens)
        start = clock(self.device)
        token = next_token(model, prompt, cache)
        prefill = clock(self.device) - start
        fill(cache)
        last = setting.tokens - 1  # the last token is not run
        middles, seconds = [], []
        for first in torch.linspace(setting.prompt + 1, last - STEPS, setting.windows).long().tolist():
            show(cache, first - 1)
            next_token(model, token, cache)  # to warm up
            start = clock(self.device)
            for _ in range(STEPS):
                next_token(model, token, cache)
            seconds.append((clock(self.device) - start) / STEPS)
            middles.append(first + STEPS / 2)
        lengths = torch.tensor([setting.prompt, *middles, last], dtype=torch.float64)
        heights = torch.tensor([seconds[0], *seconds, seconds[-1]], dtype=torch.float64)
        return prefill + torch.trapezoid(heights, lengths).item()


def owners(model: RestackLlamaForCausalLM) -> int:
    """How many layers keep keys and values."""
    return len(set(model.config.whole_plan.owners))


@dataclass(frozen=True, slots=True)
class Row:
    """A setting, with figures of each model: the batch by arithmetic and that runs, and tokens a second."""

    setting: Setting
    counted: dict[str, int]
    batch: dict[str, int]
    speed: dict[str, float]


def measured(bench: Bench, models: Mapping[str, RestackLlamaForCausalLM], setting: Setting) -> Row:
    """All models, with their largest batches, in turns."""
    batches = {name: bench.largest_batch(model, setting) for name, model in models.items()}
    batch = {name: runs for name, (_, runs) in batches.items()}
    measures = {name: partial(bench.speed, models[name], setting, batch[name]) for name in models}
    speeds = interleaved(measures, bench.size.runs)
    return Row(
        setting,
        {name: counted for name, (counted, _) in batches.items()},
        batch,
        {name: figures["tokens/s"] for name, figures in speeds.items()},
    )


def window_error(bench: Bench, model: RestackLlamaForCausalLM, setting: Setting) -> float:
    """Percent by which seconds in windows are away from those end to end; once each."""
    batch = bench.largest_batch(model, setting)[1]
    bench.in_windows(model, setting, batch)  # to warm up
    windows = bench.in_windows(model, setting, batch)
    whole = bench.end_to_end(model, setting, batch)
    return 100 * abs(windows / whole - 1)


# ---- What is shown ----


def cells(figures: Mapping[str, float]) -> list[str]:
    """Of each model, a figure and in brackets how many times Llama's it is."""
    base = figures[LLAMA]
    shown = []
    for name in (LLAMA, *MAPS):
        if name not in figures:
            shown.append("")
            continue
        value = f"{figures[name]:,.0f}"
        shown.append(value if name == LLAMA else f"{value} ({figures[name] / base:.2f}x)")
    return shown


def show_table(rows: list[Row], device: str) -> None:
    """Table 1 of LCKV: ours, then the paper's."""
    table = Table(title="Largest batch and tokens a second; (times Llama's)")
    table.add_column("prompt+ generated")
    table.add_column("")
    for name in (LLAMA, *MAPS):
        table.add_column(name.replace("-m", "- m"), justify="right")  # may be broken there
    for row in rows:
        label = f"{row.setting}{' *' if row.setting.windows else ''}"
        if device == "cuda":
            table.add_row(label, "batch by arithmetic", *cells(row.counted))
            label = ""
        table.add_row(label, "batch", *cells(row.batch))
        table.add_row("", "tokens/s", *cells(row.speed), end_section=True)
    for setting, figures in PAPER.items():
        table.add_row(f"paper, {setting}", "batch", *cells({name: row[0] for name, row in figures.items()}))
        table.add_row("", "tokens/s", *cells({name: row[1] for name, row in figures.items()}))
    table.caption = (
        "* timed in windows and integrated over the context\n"
        "paper: LCKV (2405.10637) Table 1, 1.1B on an RTX 3090 of 24 GB; its batches depend on its allocator"
    )
    table.caption_justify = "left"
    Console().print(table)


def batch_claim(rows: list[Row], name: str, expected: float) -> Claim:
    """How far the batch ratios of a KV map are from layers over owners, at the setting where it is worst."""
    away = max(abs(row.batch[name] / row.batch[LLAMA] / expected - 1) for row in rows)
    return Claim(f"{name}: batch ratio, away from {expected:.2f} by", 100 * away, None, "%", goal=BATCH_SLACK)


def row_claims(row: Row, gain: float | None) -> Iterator[Claim]:
    """The figures of a setting beside Llama's; `gain` is what lckv-w2 must reach, in times Llama's."""
    for name in MAPS:
        yield Claim(f"{row.setting}, {name}: batch", row.batch[name], row.batch[LLAMA], "rows", more=True)
    for name in MAPS:
        goal = gain * row.speed[LLAMA] if gain is not None and name == "lckv-w2" else None
        yield Claim(
            f"{row.setting}, {name}: speed", row.speed[name], row.speed[LLAMA], "tokens/s", goal, more=True
        )


def arguments_and_bench() -> tuple[argparse.Namespace, Bench]:
    parser = options(__doc__)
    parser.add_argument(
        "--cache", choices=CACHES, default="in-place", help="in-place (the default), or transformers' static"
    )
    parser.add_argument(
        "--budget", type=float, default=8.25, metavar="MIB", help="on a CPU: of keys and values (8.25)"
    )
    parser.add_argument("--memory", type=float, default=24, metavar="GB", help="on a GPU: of all (24)")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    budget = arguments.budget * MIB
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        budget = min(arguments.memory * GB, total)
        torch.cuda.set_per_process_memory_fraction(budget / total)
    size = (QUICK if arguments.quick else SIZES)[device]
    return arguments, Bench(size, device, CACHES[arguments.cache], budget)


@torch.inference_mode()
def main() -> None:
    arguments, bench = arguments_and_bench()
    on_gpu, size = bench.device == "cuda", bench.size
    models = bench.models()
    rows = [measured(bench, models, setting) for setting in size.settings]
    show_table(rows, bench.device)
    errors = {}
    if size.check is not None:
        errors = {name: window_error(bench, models[name], size.check) for name in (LLAMA, "lckv-w2")}
    gains = [PAPER_GAIN if on_gpu and row is rows[0] else None for row in rows]
    parameters = sum(parameter.numel() for parameter in models[LLAMA].parameters())
    budget = f"{bench.budget / GB:g} GB for all" if on_gpu else f"{bench.budget / MIB:g} MiB for the cache"
    finish(
        arguments.json,
        conditions(
            model=f"{size.name}: {LAYERS} layers, {parameters / 1e6:,.0f}M parameters, random weights",
            dtype=str(size.dtype).removeprefix("torch."),
            memory=budget,
            kv_bytes_a_token=", ".join(f"{name} {bench.kv_bytes(model):,}" for name, model in models.items()),
            cache=arguments.cache,
            speed=f"prefill, greedy decoding; medians of interleaved runs ({size.runs}) after a warm-up",
            windows=f"{STEPS} steps at each of {size.settings[0].windows} context lengths, random KV",
            goal="the paper's 2.9x is a GPU's" if on_gpu else "none for speed: the paper's 2.9x is a GPU's",
        ),
        [
            *(batch_claim(rows, name, LAYERS / owners(models[name])) for name in MAPS),
            *(claim for row, gain in zip(rows, gains, strict=True) for claim in row_claims(row, gain)),
            *(
                Claim(f"{size.check}, {name}: time in windows, away from end to end by", error, None, "%")
                for name, error in errors.items()
            ),
        ],
        peer="Llama",
    )


if __name__ == "__main__":
    main()
