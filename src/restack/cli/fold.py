"""`restack convert fold`: layers folded into fewer that run in a cycle, with a LoRA for each visit."""

from pathlib import Path
from shlex import quote
from typing import Any

from restack import recipes, views
from restack.cli.convert import tokenizer_of
from restack.cli.loading import Source
from restack.cli.units import in_bytes
from restack.conversion.folding import checked_cycle, folded
from restack.plans.pointing import counted
from restack.recipes.saving import BASE


def run(source: Source, block: str | None, loops: int, init: str, rank: int, folder: Path) -> None:
    """Fold the model that is asked for, save it with its tokenizer, and say what was made."""
    cycle = checked_cycle(len(source.plan), block, loops, init, rank)
    model, tokenizer = views.view(source.load_base(), source.plan), tokenizer_of(source)
    before, layers = _bytes(model), len(source.plan)
    found = folded(model, block, loops, init, rank)
    del model
    recipes.save(found.view, folder, weights="shared")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / BASE)
    after, adapters = _bytes(found.view), _bytes(found.view, "lora_")
    print(f"{folder}: {source.model}, layers {cycle.start}:{cycle.stop} folded into {cycle.length}")
    print(f"  layers    {layers} -> {found.view.restack_plan.depths[0]}, {found.view.restack_plan}")
    print(f"  weights   {in_bytes(before)} -> {in_bytes(after - adapters)}")
    if rank:
        told = f"{in_bytes(adapters)}, rank {rank}, for {counted(cycle.stop - cycle.start, 'visit')}"
        print(f"  adapters  {told}; they leave {found.left:.1%} of what the shared matrices lack")
    if tokenizer is not None:
        print(f"restack chat {quote(str(folder))} talks with it")


def _bytes(model: Any, part_of_name: str = "") -> int:
    """Of the parameters whose names have this in them, those that are shared once."""
    sizes = {
        parameter: parameter.nbytes for name, parameter in model.named_parameters() if part_of_name in name
    }
    return sum(sizes.values())
