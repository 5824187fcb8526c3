"""`restack show`: what a model is, what a plan runs, what it costs."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from restack.cli.loading import Source
from restack.cli.units import in_bytes, in_parameters
from restack.errors import ViewError
from restack.plans import Plan, write_kv_map
from restack.runtime import context_length
from restack.views import view
from restack.views.cost import cost

MOST_BARS = 40


def facts(source: Source) -> dict[str, Any]:
    """All that `show` tells, as JSON values."""
    plan = source.plan
    model = source.load_empty()
    config = model.config.get_text_config(decoder=True)
    costs = cost(model, plan)
    heads = getattr(config, "num_attention_heads", None)
    return {
        "model": source.reference.model,
        "architecture": type(model).__name__,
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "hidden_size": config.hidden_size,
        "vocabulary": config.vocab_size,
        "context": context_length(model.config),
        "dtype": str(model.dtype).removeprefix("torch."),
        "parameters": costs.base_parameters,
        "quantised": costs.quantised,
        "plan": {
            "text": str(plan),
            "visits": list(plan.order),
            "refused": refusal(model, plan),
            "kv_map": write_kv_map(plan, abbreviate=False),
            "unique_parameters": costs.unique_parameters,
            "effective_parameters": costs.effective_parameters,
            "weight_bytes": costs.base_bytes,
            "kv_bytes_per_token": costs.kv_bytes_per_token,
            "materialised": {
                "parameters": costs.effective_parameters,
                "weight_bytes": costs.effective_bytes,
                "kv_bytes_per_token": costs.materialised_kv_bytes_per_token,
            },
        },
    }


def refusal(model: Any, plan: Plan) -> str | None:
    """Why no view of the model can run the plan; None if one can, which is then tried, without weights."""
    try:
        if not plan.is_identity:
            view(model, plan)
    except ViewError as error:
        return str(error)
    return None


def tell(facts: dict[str, Any]) -> None:
    """Print the facts for a person."""
    console = Console(highlight=False)
    console.print(Text(facts["model"], style="bold"), Text(f"  {facts['architecture']}"))
    about = Table.grid(padding=(0, 2))
    for name in ("layers", "heads", "kv_heads", "hidden_size", "vocabulary", "context", "dtype"):
        missing = "no limit in its config" if name == "context" else "unknown"
        about.add_row("  " + name.replace("kv_", "KV ").replace("_", " "), str(facts[name] or missing))
    about.add_row("  parameters", in_parameters(facts["parameters"]))
    console.print(about)

    plan = facts["plan"]
    console.print(Text("\nplan", style="bold"), Text(f"  {plan['text']}"))
    console.print(drawing(plan["visits"], facts["layers"], console.width - 4))
    costs = Table(box=None, padding=(0, 2))
    costs.add_column("")
    costs.add_column("as a view", justify="right")
    costs.add_column("materialised", justify="right")
    made = plan["materialised"]
    costs.add_row("visits", str(len(plan["visits"])), str(len(plan["visits"])))
    costs.add_row("unique parameters", in_parameters(plan["unique_parameters"]), "-")
    costs.add_row("effective parameters", *[in_parameters(made["parameters"])] * 2)
    costs.add_row("weights", in_bytes(plan["weight_bytes"]), in_bytes(made["weight_bytes"]))
    costs.add_row("KV a token", in_bytes(plan["kv_bytes_per_token"]), in_bytes(made["kv_bytes_per_token"]))
    console.print(costs)
    if facts["quantised"]:
        console.print(f"  Sizes are those of the weights before {facts['quantised']} quantised them.")
    if plan["refused"]:
        console.print(Text(f"  No view can run this plan: {plan['refused']}."), soft_wrap=True)
    elif plan["weight_bytes"] and plan["unique_parameters"] < facts["parameters"]:
        console.print(
            "  A view keeps the whole base in memory; materialising drops the layers that no visit runs."
        )


def drawing(order: list[int], depth: int, width: int) -> Text:
    """The visits as one bar a run of neighbouring layers, each drawn where its layers lie in the model."""
    runs = bars(Plan.of(order, depth).runs)
    scale = max(1.0, depth / max(10, min(width - 16, 80)))
    lines = []
    for run in runs[:MOST_BARS]:
        start, length = int(min(run) / scale), max(1, round(len(run) / scale))
        name = str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}"
        lines.append(f"  {name:>9}  {' ' * start}{'█' * length}")
    if len(runs) > MOST_BARS:
        lines.append(f"  and {len(runs) - MOST_BARS} more such runs of layers")
    return Text("\n".join(lines))


def bars(runs: Iterable[range]) -> list[range]:
    """The runs, with single layers that descend one by one joined into a run downwards."""
    joined: list[range] = []
    for run in runs:
        last = joined[-1] if joined else range(0)
        if len(run) == 1 and last and run[0] == last[-1] - 1 and (len(last) == 1 or last.step == -1):
            joined[-1] = range(last[0], run[0] - 1, -1)
        else:
            joined.append(run)
    return joined
