"""`restack save`: a view, kept in a folder."""

from pathlib import Path

from restack import recipes
from restack.cli.loading import Source
from restack.cli.units import in_bytes
from restack.errors import UsageError
from restack.plans.pointing import counted
from restack.recipes.merges import lender_of_tokenizer


def run(source: Source, folder: Path, weights: str) -> None:
    """Save the view that is asked for, and say what was made. A recipe loads no weights."""
    plan = source.plan
    if source.quantize is not None and weights != "full":
        raise UsageError("--quantize is for a checkpoint; add --weights full")
    if weights == "none":
        recipes.save_recipe(
            source.reference,
            plan,
            folder,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
        )
    else:
        tokenizer = lender_of_tokenizer(source.reference)
        _, model, _ = source.load()
        recipes.save(model, folder, weights=weights, tokenizer=tokenizer)
    print(
        f"{folder}: {_kinds(weights)} of {source.reference.model}, {counted(len(plan), 'visit')}, "
        f"{_size(folder)}"
    )
    print(f"restack chat {folder} talks with it")


def _kinds(weights: str) -> str:
    return {"none": "a recipe", "shared": "a recipe with weights", "full": "a checkpoint of all visits"}[
        weights
    ]


def _size(folder: Path) -> str:
    return in_bytes(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))
