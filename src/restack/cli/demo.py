"""`restack demo`: the embedded model as it is, with a block run twice, and with layers left out."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from restack.chat import Conversation
from restack.cli import show
from restack.cli.loading import Source
from restack.cli.places import PICTURE
from restack.cli.units import in_bytes
from restack.demo.probes import FAMILIES, Probe, answers, is_right, probes
from restack.plans import Plan
from restack.plans import plan as read_plan
from restack.plans.drawing import draw
from restack.runtime import Sampling
from restack.views import view
from restack.views.cost import cost, own_bytes

PLANS = {"base": "all", "self-merge": "0:8,4:12", "pruned": "0:5,7:12"}
QUESTIONS = (
    "What is the capital of France?",
    "What is 34 + 58?",
    "Let a = fox; b = a; p = milk; q = p; c = b; r = q; d = c; s = r; e = d; t = s. What is t?",
    "Tell me a story about Ben and a kite.",
)


def run(out: Path, probes_per_family: int) -> None:
    """Show the model, ask all three the same questions, compare memory and scores, draw the plans."""
    out.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False)
    began = time.perf_counter()
    source = Source(model="demo")
    base, _, tokenizer = source.load()
    show.tell(show.facts(source))
    plans = {name: read_plan(spec, base) for name, spec in PLANS.items()}
    models = {name: base if plan.is_identity else view(base, plan) for name, plan in plans.items()}

    console.print(Text("\nThe same questions, three stacks of one set of weights", style="bold"))
    for question in QUESTIONS:
        console.print(Text(f"\n  {question}"))
        for name, model in models.items():
            talk = Conversation(model, tokenizer, sampling=Sampling(temperature=0, max_tokens=100))
            console.print(Text(f"    {name:<11}", style="bold"), Text(talk.ask(question).content))
    console.print(Text("\nWeights in memory", style="bold"))
    console.print(_memory(base, plans, models))
    title = f"\nHeld-out probes, share answered right ({probes_per_family} a family)"
    console.print(Text(title, style="bold"))
    console.print(_scores(models, tokenizer, probes_per_family, console))
    picture = out / PICTURE
    draw(plans, picture, "Three plans of the demo model")
    console.print(f"\n  The plans are drawn in {picture}. Took {time.perf_counter() - began:.0f} s.")
    console.print("  Next: [bold]restack chat demo[/], and in it: /layers 0:8,4:12")


def _memory(base: Any, plans: dict[str, Plan], models: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 1))
    for name in ("", "plan", "visits", "shared", "its own", "materialised", "KV a token"):
        table.add_column(name, justify="left" if name in ("", "plan") else "right", no_wrap=True)
    for name, plan in plans.items():
        costs = cost(base, plan)
        own = own_bytes(models[name], base)
        table.add_row(
            name,
            str(plan),
            str(len(plan)),
            in_bytes(costs.unique_bytes),
            in_bytes(own),
            in_bytes(costs.effective_bytes),
            in_bytes(costs.kv_bytes_per_token),
        )
    return table


def _scores(models: dict[str, Any], tokenizer: Any, n: int, console: Console) -> Table:
    asked: dict[str, list[Probe]] = {family: probes(family, n) for family in FAMILIES}
    right: dict[str, dict[str, float]] = {name: {} for name in models}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("scoring", total=len(models) * len(FAMILIES))
        for name, model in models.items():
            for family, items in asked.items():
                given = answers(model, tokenizer, items)
                right[name][family] = sum(map(is_right, items, given)) / len(items)
                progress.advance(task)
    table = Table(box=None, padding=(0, 2))
    table.add_column("family")
    for name in models:
        table.add_column(name, justify="right")
    for family in FAMILIES:
        table.add_row(family, *(f"{right[name][family]:.2f}" for name in models))
    means = (sum(right[name].values()) / len(FAMILIES) for name in models)
    table.add_row("mean", *(f"{mean:.2f}" for mean in means), style="bold")
    return table
