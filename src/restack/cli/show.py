"""`restack show`: what a model is, what a plan runs, what it costs."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from restack import recipes
from restack.cli.loading import Source
from restack.cli.units import in_bytes, in_parameters
from restack.errors import ViewError
from restack.plans import Plan, own_plan, write_kv_map
from restack.plans.bars import bars
from restack.runtime import context_length
from restack.views import verify, view
from restack.views.cost import cost, running


def facts(source: Source) -> dict[str, Any]:
    """All that `show` tells, as JSON values."""
    plan = source.plan
    model = source.load_empty()
    config = model.config.get_text_config(decoder=True)
    own = own_plan(config)
    costs = cost(model, plan)
    heads = getattr(config, "num_attention_heads", None)
    return {
        "model": source.reference.model,
        "recipe": recipe(source, model),
        "architecture": type(model).__name__,
        "layers": config.num_hidden_layers,
        "own_plan": None if own is None or own.is_identity else own.to_json(),
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
            "of": plan.depths[0],
            "refused": refusal(model, plan),
            "kv_map": write_kv_map(running(model, plan), abbreviate=False),
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


def recipe(source: Source, model: Any) -> dict[str, str] | None:
    """The base of a recipe and its plan, or the models of a merge; None where the model is neither."""
    if source.reference.is_merge:
        models = recipes.Merge.of(source.reference).models
        names = " and ".join(each.model for each in models)
        return {"kind": "merge", "base": names, "plan": str(model.restack_plan)}
    found = recipes.find_reference(source.reference, source.revision, source.trust_remote_code)
    if not found.recipe:
        return None
    return {"kind": "recipe", "base": found.model.model, "plan": str(found.plan)}


def refusal(model: Any, plan: Plan) -> str | None:
    """Why no view of the model can run the plan; None if one can, which is then tried, without weights."""
    try:
        if not plan.is_identity:
            view(model, plan)
    except ViewError as error:
        return str(error)
    return None


def verified(source: Source) -> dict[str, Any]:
    """What `restack.verify` finds of the model that is asked for, which is loaded, or what it refuses."""
    base = source.load_base()
    try:
        found = verify(base if source.plan.is_identity else view(base, source.plan))
    except ViewError as error:
        return {"holds": False, "reason": str(error)}
    return {"holds": True, **asdict(found)}


def refuse_unverified(facts: dict[str, Any]) -> None:
    """End with an error where `verified` found that views of the model are not right."""
    if not facts["verified"]["holds"]:
        raise ViewError(facts["verified"]["reason"])


def tell(facts: dict[str, Any]) -> None:
    """Print the facts for a person."""
    console = Console(highlight=False)
    console.print(Text(facts["model"], style="bold"), Text(f"  {facts['architecture']}"))
    if facts["recipe"]:
        console.print(Text("  a {kind} of {base}: {plan}".format(**facts["recipe"])))
    about = Table.grid(padding=(0, 2))
    for name in ("layers", "heads", "kv_heads", "hidden_size", "vocabulary", "context", "dtype"):
        missing = "no limit in its config" if name == "context" else "unknown"
        about.add_row("  " + name.replace("kv_", "KV ").replace("_", " "), str(facts[name] or missing))
    about.add_row("  parameters", in_parameters(facts["parameters"]))
    if facts["own_plan"]:
        about.add_row("  its own plan", facts["own_plan"]["plan"])
    console.print(about)

    plan = facts["plan"]
    console.print(Text("\nplan", style="bold"), Text(f"  {plan['text']}"))
    drawn = Plan.of(plan["visits"], plan["of"])
    console.print(Text("\n".join(bars(drawn, console.width - 4))))
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
        console.print("  A view keeps the whole base in memory; materialising drops what no visit runs.")
    found = facts.get("verified", {"holds": False})
    if found["holds"]:
        console.print(Text("\nverified", style="bold"), Text(f"  on {found['tokens']} random tokens"))
        console.print(
            f"  the identity view's logits are the model's, bitwise; {found['shared_tensors']} tensors shared"
        )
        console.print(
            f"  decoding with a cache differs from decoding without by {found['cache_difference']:.1g}"
        )
