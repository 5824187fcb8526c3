"""`restack draft`: which view of a model drafts for it best, and whether that pays."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from restack.cli.convert import Sample
from restack.cli.loading import Source
from restack.cli.prune import asked_by, progress, save
from restack.demo.probes import FAMILIES, probes
from restack.errors import UsageError
from restack.plans import Plan
from restack.plans.pointing import counted, shown
from restack.scanning.drafting import SEARCHES, Drafter, Drafting, draft
from restack.scanning.pruning import layers_to_drop
from restack.scanning.speculation import COSTS, MEASURED
from restack.scanning.statistics import Interval

MODEL = "(1 - a^(g+1)) / ((1 - a) (g c + v))"


def run(
    source: Source,
    text: Path | None,
    asked: tuple[int, int],
    settings: dict[str, Any],
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Choose, tell, and save if that is asked for; what cannot be is refused before weights are read.

    Args:
        source: the model that is drafted for.
        text: whose parts the model goes on from, if not from the built-in one.
        asked: for how many texts, and how many tokens of a prompt.
        settings: of `restack.scanning.drafting.draft`.
        out: a folder for the recipe of the best.
        as_json: for scripts.
    """
    for option, value, known in (
        ("search", settings["search"], SEARCHES),
        ("cost", settings["costs"], COSTS),
    ):
        if value not in known:
            raise UsageError(f"--{option} is {shown(value)}; write one of {', '.join(known)}")
    source.check_place()
    layers_to_drop(settings["most"], len(source.plan), "--most")
    sample = Sample.of(text)
    _, model, tokenizer = source.load()
    if text is None and source.is_demo:
        prompts, name = _questions(tokenizer, asked[0]), "questions of the demo model's world"
    else:
        prompts, name = _beginnings(tokenizer, sample, *asked), sample.name
    with progress("plans run") as watch:
        found = draft(model, prompts, watch=watch, **settings)
    if out is not None:
        save(source, source.plan.then(found.best.plan), out)
    facts = _facts(source, found, name, settings, out)
    if as_json:
        json.dump(facts, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        _tell(facts, found, source.plan)


def _questions(tokenizer: Any, count: int) -> list[list[int]]:
    """Held-out questions of the demo model's families in turn, for it to answer."""
    lists = [probes(family, -(-count // len(FAMILIES))) for family in FAMILIES]
    asked = [probe for together in zip(*lists, strict=True) for probe in together]
    texts = [asked_by(tokenizer, probe.messages) for probe in asked[:count]]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _beginnings(tokenizer: Any, sample: Sample, count: int, length: int) -> list[list[int]]:
    """The beginnings of parts of a text of one size, each at a word.

    Args:
        tokenizer: what it puts before a text stands before each.
        sample: the text.
        count: parts.
        length: tokens of a beginning, at most.

    Raises:
        UsageError: the text is too short for so many.
    """
    words = sample.text.split(" ")
    size = len(words) // count
    if size < 2:
        raise UsageError(
            f"{sample.name} has {counted(len(words), 'word')}, too few for {count} texts; ask for fewer "
            "(--texts), or give a longer one (--text)"
        )
    parts = [" ".join(words[at * size : at * size + min(size, length)]) for at in range(count)]
    return [tokenizer(part, verbose=False)["input_ids"][:length] for part in parts]


def _facts(
    source: Source, found: Drafting, name: str, settings: dict[str, Any], out: Path | None
) -> dict[str, Any]:
    """All that is told, as JSON values."""
    texts, half = found.texts

    def drafter(each: Drafter) -> dict[str, Any]:
        return {**asdict(each), "plan": str(source.plan.then(each.plan)), "skipped": list(each.skipped)}

    return {
        "model": source.reference.model,
        "layers": len(source.plan),
        "search": found.search,
        "prompts": name,
        "texts": {"chosen_on": half, "held_out": texts - half},
        "own_acceptance": found.own,
        "cost_model": MODEL,
        "costs": asdict(found.costs),
        "drafters": [drafter(each) for each in found.drafters],
        "best": drafter(found.best),
        "pays": found.pays,
        "most_tokens_written": settings["length"],
        "recipe": None if out is None else str(out),
    }


def _tell(facts: dict[str, Any], found: Drafting, before: Plan) -> None:
    """Print the facts for a person."""
    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 1))
    for title in ("left out", "plan"):
        table.add_column(title, overflow="fold")
    for title in ("acceptance a", "cost c", "g", "expected", "replayed"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in found.drafters:
        table.add_row(
            " ".join(map(str, each.skipped)),
            str(before.then(each.plan)),
            _span(each.acceptance),
            f"{each.cost:.2f}",
            str(each.length),
            _span(each.speed_up),
            _span(each.replayed),
            style="bold" if each is found.best else "",
        )
    console.print(table)
    best, texts = facts["best"], facts["texts"]
    lines = [
        "",
        "a: share of the model's own words that the view says too. Chosen on "
        f"{counted(texts['chosen_on'], 'text')} that the model wrote from {facts['prompts']}; told of "
        f"{texts['held_out']} others, {best['tokens']} tokens. The model itself: "
        f"{facts['own_acceptance']:.3f}.",
        f"c: time of a step, {_how(found)}. expected: {MODEL}, Leviathan et al. 2023.",
        "replayed: the rounds that these very texts would take. 95% intervals are over texts, not times.",
        "Others report 1.3 to 1.6 (SWIFT) and 1.3 to 1.7 (CLaSp) of large models.",
        "",
        _verdict(found),
    ]
    if facts["recipe"]:
        lines.append(f"recipe: {facts['recipe']}")
    if found.pays:
        spec = "" if before.is_identity else f"@{before}"
        lines += [
            f"On the command line: restack chat '{facts['model']}{spec}' --draft '@{best['plan']}'",
            f"In Python, with base = restack.open({facts['model']!r}):",
            f"  drafter = restack.view(base, {best['plan']!r})",
            f"  drafter.generation_config.num_assistant_tokens = {best['length']}",
            "  drafter.generation_config.num_assistant_tokens_schedule = 'constant'",
            "  drafter.generation_config.assistant_confidence_threshold = 0",
            f"  {_written(before)}.generate(tokens, do_sample=False, assistant_model=drafter)",
        ]
    for line in lines:
        console.print(Text(line), soft_wrap=line.startswith("  "))


def _written(before: Plan) -> str:
    return "base" if before.is_identity else f"restack.view(base, {str(before)!r})"


def _how(found: Drafting) -> str:
    """How times were got, and v."""
    length = found.best.length
    if found.costs.how != MEASURED or found.costs.seconds is None:
        return "by the bytes of weights that it reads; v = 1, a check takes as long as a step"
    check = found.costs.checks[length - 1]
    return (
        f"measured here, relative to the model's {found.costs.seconds * 1000:.3g} ms; a check of "
        f"{length + 1} tokens takes v = {check:.2f}"
    )


def _verdict(found: Drafting) -> str:
    best = found.best
    left_out = counted(len(best.skipped), "layer")
    drafts = f"Drafting {counted(best.length, 'token')} at a time without {left_out}"
    worth = f"{_words(best.speed_up)} times as fast as the model alone, {_words(best.replayed)} replayed"
    if found.pays:
        return f"{drafts} is expected to be {worth}."
    return f"No drafter pays: decode without one. {drafts}, the best, is expected to be {worth}."


def _span(interval: Interval) -> str:
    return f"{interval.mean:.2f} {interval.low:.2f}-{interval.high:.2f}"


def _words(interval: Interval) -> str:
    return f"{interval.mean:.2f} ({interval.low:.2f} to {interval.high:.2f})"
