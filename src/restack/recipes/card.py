"""The model card of a saved view: what it runs, drawn, and how to load it."""

from restack.plans import Plan
from restack.plans.bars import bars
from restack.plans.pointing import counted

LONGEST_TEXT = 1500  # characters of a plan that a card shows
COLUMNS = 76

STORED = {
    "none": "No weights are stored here: they are those of the base, which is fetched when this is loaded.",
    "shared": "The weights are in `base`, each layer once: that folder is a model of its own.",
    "full": "The weights of every visit are stored, so that it loads like any model, without Restack.",
    "house": "The weights of every visit are stored; it is a restack-llama, and loads once that is imported.",
}
LOADING = """\
```python
import restack
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER)  # or restack.open(FOLDER), or FOLDER@SPEC
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
```

FOLDER is this folder, or its id on the hub. `pip install restack` first; `restack chat FOLDER` talks with it.
"""


ADAPTED = (
    "Each visit has an adapter of its own (LoRA), in `adapter`; to load it: `pip install 'restack[train]'`."
)


def card(plan: Plan, base: str | None, is_on_hub: bool, weights: str, is_adapted: bool = False) -> str:
    """README.md of a saved view, as the hub reads it.

    Args:
        plan: what the view runs.
        base: its name; None if it has none. Not told where there are several.
        is_on_hub: whether that is a hub id.
        weights: "none", "shared" or "full"; or "house", which is full and of a restack-llama.
        is_adapted: whether an adapter is stored beside the plan.
    """
    several = len(plan.depths) > 1
    title = base.rpartition("/")[2] if base and not several else "A model"
    layers = " + ".join(map(str, plan.depths))
    source = (
        counted(len(plan.depths), "model") if several else f"`{base}`" if base else "a model without a name"
    )
    parts = [
        _front_matter(base if is_on_hub and not several else None),
        f"# {title}, restacked",
        f"{counted(len(plan), 'visit')} of the {layers} layers of {source}, in order:",
        "```text\n" + "\n".join(bars(plan, COLUMNS)) + "\n```",
        f"The plan, as Restack writes it: {_shortened(str(plan))}",
        STORED[weights],
    ]
    if is_adapted:
        parts.append(ADAPTED)
    if weights != "full":
        parts += ["## How to load it", LOADING.rstrip()]
    return "\n\n".join(parts) + "\n"


def _front_matter(hub_id: str | None) -> str:
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [restack, merge]"]
    if hub_id:
        lines += [f"base_model: {hub_id}", "base_model_relation: merge"]
    return "\n".join(["---", *lines, "---"])


def _shortened(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return f"`{text}`"
    return f"`{text[:LONGEST_TEXT]}`... (whole in config.json)"
