"""`restack prune`: which layers to leave out, and what that saves and loses."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from restack import recipes
from restack.cli.convert import Sample
from restack.cli.loading import Source
from restack.cli.units import in_bytes, in_parameters
from restack.demo.probes import probes
from restack.errors import UsageError
from restack.plans import Plan
from restack.plans.pointing import shown
from restack.runtime import context_length
from restack.scanning.probe import Row
from restack.scanning.probes.demo import ANSWERED
from restack.scanning.probes.questions import continued
from restack.scanning.probes.text import text_rows
from restack.scanning.pruning import (
    ANGULAR,
    CONTIGUOUS,
    DEEPEST,
    MEASURES,
    METHODS,
    SLEB,
    Losses,
    Pruning,
    layers_to_drop,
    prune,
)
from restack.views.cost import cost

CHARACTERS = 16  # of a token, at most: of a long file, no more is read than could be used
SHORTEST = 30  # tokens of a question with its answer, about
SECONDS = 10.0  # between two lines of progress, where nobody watches a bar


@dataclass(frozen=True, slots=True)
class Given:
    """What was said of the texts: files, if any, how many tokens to take of each, and of a window."""

    text: Path | None
    held_out: Path | None
    tokens: int
    window: int


@dataclass(frozen=True, slots=True)
class Texts:
    """What is read: to choose on, and to report on; and what each is called."""

    chosen_on: list[Row]
    held_out: list[Row]
    names: tuple[str, str]


def run(source: Source, drop: str, by: str, given: Given, out: Path | None, *, as_json: bool) -> None:
    """Choose, tell, and save if that is asked for; what cannot be is refused before weights are read."""
    if by not in METHODS:
        raise UsageError(f"--by is {shown(by)}; write one of {', '.join(METHODS)}")
    source.check_place()
    layers_to_drop(drop, len(source.plan), "--drop")
    samples = [Sample.of(file) for file in (given.text, given.held_out)]
    base, model, tokenizer = source.load()
    texts = _texts(source, model, tokenizer, given, samples)
    with progress("plans run") as watch:
        found = prune(model, tokenizer, texts.chosen_on, drop, by, held_out=texts.held_out, watch=watch)
    plan = source.plan.then(found.plan)
    if out is not None:
        save(source, plan, out)
    facts = _facts(source, base, plan, found, texts, out)
    if as_json:
        json.dump(facts, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        _tell(facts, found, source.plan)


def save(source: Source, plan: Plan, out: Path) -> None:
    """Keep a plan as a recipe."""
    recipes.save_recipe(
        source.reference, plan, out, revision=source.revision, trust_remote_code=source.trust_remote_code
    )


def asked_by(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """A question as the chat template writes it, up to where the answer begins."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """What tells how far it is: a bar in a terminal, and otherwise a line now and then, both on stderr."""
    if not sys.stderr.isatty():
        told = time.monotonic()

        def tell(done: int, of: int) -> None:
            nonlocal told
            if done < of and time.monotonic() - told >= SECONDS:
                told = time.monotonic()
                print(f"{done} of {of} {what}", file=sys.stderr, flush=True)

        yield tell
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _texts(source: Source, model: Any, tokenizer: Any, given: Given, samples: Sequence[Sample]) -> Texts:
    """The rows to choose on and to report on."""
    sample, other = samples
    longest = given.tokens * CHARACTERS

    def windows(text: str) -> list[Row]:
        return text_rows(tokenizer, text, given.window, context_length(model.config))

    def held_out(rows: list[Row]) -> list[Row]:
        return _cut(rows if given.held_out is None else windows(other.text[:longest]), given.tokens)

    if given.text is None and source.is_demo:
        chosen_on, kept = _questions(tokenizer, given.tokens)
        told = "questions with answers of the demo model's world"
        names = (told, f"other {told}" if given.held_out is None else other.name)
        return Texts(_cut(chosen_on, given.tokens), held_out(kept), names)
    if given.held_out is not None:
        rows = windows(sample.text[:longest])
        return Texts(_cut(rows, given.tokens), held_out([]), (sample.name, other.name))
    rows = windows(sample.text[: 2 * longest])
    half = len(rows) // 2
    names = (f"the first half of {sample.name}", f"the second half of {sample.name}")
    return Texts(_cut(rows[:half], given.tokens), held_out(rows[half:]), names)


def _questions(tokenizer: Any, tokens: int) -> tuple[list[Row], list[Row]]:
    """Held-out questions of the demo model's families in turn; the answer is to be predicted.

    Args:
        tokenizer: of the demo model.
        tokens: at least so many in each of the two lists, which have no question in common.
    """
    count = 2 * (tokens // (SHORTEST * len(ANSWERED)) + 1)
    found: tuple[list[Row], list[Row]] = [], []
    seen = set()
    for number, together in enumerate(zip(*(probes(family, count) for family in ANSWERED), strict=True)):
        for probe in together:
            if (key := (probe.question, probe.system)) in seen:  # small families begin again
                continue
            seen.add(key)
            asked = asked_by(tokenizer, probe.messages)
            found[number % 2].append(continued(tokenizer, (asked, False), probe.accept[0], ends=True))
    return found


def _cut(rows: Sequence[Row], tokens: int) -> list[Row]:
    """The first rows, of so many tokens together at the most; one at least."""
    kept: list[Row] = []
    for row in rows:
        tokens -= len(row.tokens)
        if kept and tokens < 0:
            break
        kept.append(row)
    return kept


def _facts(
    source: Source, base: Any, plan: Plan, found: Pruning, texts: Texts, out: Path | None
) -> dict[str, Any]:
    """All that is told, as JSON values."""
    before, after = cost(base, source.plan), cost(base, plan)

    def losses(of: Losses, rows: list[Row], name: str) -> dict[str, Any]:
        return {
            "text": name,
            "texts": len(rows),
            "read": sum(len(row.tokens) for row in rows),
            "predicted": of.tokens,
            "loss": {"before": of.base, "after": of.pruned},
            "perplexity": dict(zip(("before", "after"), of.perplexities, strict=True)),
        }

    return {
        "model": source.reference.model,
        "by": found.by,
        "layers": len(source.plan),
        "dropped": list(found.dropped),
        "plan": str(plan),
        "measure": MEASURES[found.by],
        "tried": [asdict(tried) for tried in found.tried],
        "chosen_on": losses(found.chosen_on, texts.chosen_on, texts.names[0]),
        "held_out": losses(found.held_out, texts.held_out, texts.names[1]),
        "parameters": {"before": before.effective_parameters, "after": after.effective_parameters},
        "kv_bytes_per_token": {"before": before.kv_bytes_per_token, "after": after.kv_bytes_per_token},
        "recipe": None if out is None else str(out),
    }


def _tell(facts: dict[str, Any], found: Pruning, before: Plan) -> None:
    """Print the facts for a person."""
    console = Console(highlight=False)
    console.print(_table(found, before))
    named = quote(f"{facts['model']}@{facts['plan']}")
    left_out = ", ".join(map(str, facts["dropped"]))
    what = "visits" if not before.is_identity else "layers"
    lines = [
        ("plan", f"{facts['plan']}  ({what} {left_out} of 0..{facts['layers'] - 1} are left out)"),
        ("loss", _changed(facts["chosen_on"], "chosen on")),
        ("", _changed(facts["held_out"], "not chosen on")),
    ]
    for name, key, write in (
        ("parameters", "parameters", in_parameters),
        ("KV a token", "kv_bytes_per_token", in_bytes),
    ):
        lines.append((name, f"{write(facts[key]['before'])} -> {write(facts[key]['after'])}"))
    if facts["recipe"]:
        lines.append(("recipe", facts["recipe"]))
    for name, line in lines:
        console.print(Text(f"  {name:<12}{line}"), soft_wrap=True)
    console.print(
        "  A view keeps the whole base in memory; restack convert full drops what no visit runs.",
        soft_wrap=True,
    )
    console.print(Text(f"\nrestack chat {named} talks with it"), soft_wrap=True)
    healed = f"restack train {named} TEXT.txt -o healed --lora 8"
    console.print(Text(f"{healed} heals it"), soft_wrap=True)


def _changed(losses: dict[str, Any], how: str) -> str:
    loss, perplexity = losses["loss"], losses["perplexity"]
    return (
        f"{loss['before']:.4f} -> {loss['after']:.4f} nats a token (perplexity {perplexity['before']:.4g} -> "
        f"{perplexity['after']:.4g}), {how}: {losses['predicted']:,} tokens of {losses['text']}"
    )


def _table(found: Pruning, before: Plan) -> Table:
    """What was compared, a line for each layer or block, and what became of it."""
    table = Table(box=None, padding=(0, 2))
    is_block = found.by in (ANGULAR, CONTIGUOUS)
    table.add_column("block" if is_block else "layer", justify="right")
    is_view = not before.is_identity
    if is_view:
        table.add_column("of the base", justify="right")
    if found.by != DEEPEST:
        table.add_column(MEASURES[found.by], justify="right")
    table.add_column("")
    for layers, value in _values(found):
        row = [str(layers[0]) if len(layers) == 1 else f"{layers[0]}..{layers[-1]}"]
        if is_view:
            run = [before.order[layer] for layer in layers]
            row.append(str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}")
        if value is not None:
            row.append(f"{value:.4f}")
        is_dropped = set(layers) <= set(found.dropped)
        place = f" {found.dropped.index(layers[0]) + 1}" if is_dropped and found.by == SLEB else ""
        row.append(f"dropped{place}" if is_dropped else "")
        table.add_row(*row, style="bold" if is_dropped else "")
    return table


def _values(found: Pruning) -> list[tuple[tuple[int, ...], float | None]]:
    """Each layer or block with what decided on it last: of one that went one by one, when it went."""
    last: dict[tuple[int, ...], float | None] = {tried.layers: tried.value for tried in found.tried}
    if found.by == DEEPEST:
        last = {(layer,): None for layer in sorted({*found.plan.order, *found.dropped})}
    return sorted(last.items(), key=lambda item: item[0])
