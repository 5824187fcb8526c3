"""`restack convert`: checkpoints made from others, and what they cost and lose."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from restack import plans, recipes
from restack.cli.loading import Source
from restack.cli.text_input import read_all
from restack.cli.units import in_bytes, in_parameters
from restack.errors import ModelError, UsageError
from restack.runtime import perplexity, sample_text
from restack.views.cost import cost

Convert = Callable[..., Path]  # one of `restack.conversion` but for `progress`, its arguments given


def run(convert: Convert, out: Path) -> None:
    """Convert, with a bar on stderr if that is a terminal."""
    with _bar(out) as progress:
        convert(progress=progress)


def run_and_compare(
    convert: Convert, source: Source, out: Path, what: str, *, text: Path | None, as_json: bool
) -> None:
    """Convert, say what was made, and compare; a text, dtype or device that cannot be is refused before."""
    source.check_place()
    sample = Sample.of(text)
    run(convert, out)
    if not as_json:
        tell(out, what)
    compare(source, out, sample, as_json=as_json)


def tell(out: Path, what: str) -> None:
    """Say what was made."""
    size = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    print(f"{out}: {what}, {in_bytes(size)} of weights")
    if list(out.glob("tokenizer*")):
        print(f"restack chat {quote(str(out))} talks with it")


@dataclass(frozen=True, slots=True)
class Sample:
    """A text that perplexity is measured on, and what it is called."""

    text: str
    name: str

    @classmethod
    def of(cls, file: Path | None) -> "Sample":
        """What is in a file; the built-in text without one.

        Raises:
            UsageError: it is empty, or not UTF-8.
        """
        if file is None:
            return cls(sample_text(), "a built-in text")
        with file.open("rb") as stream:
            text = read_all(TextIOWrapper(stream))
        if not text.strip():
            raise UsageError(f"{file} is empty; perplexity needs a text")
        return cls(text, str(file))


def compare(source: Source, out: Path, sample: Sample, *, as_json: bool) -> None:
    """Tell what a conversion has changed: sizes, and perplexity where there is a tokenizer and memory."""
    before, after = _facts(source.model, source), _facts(str(out), source)
    reason = _measure(source, out, sample, before, after)
    if as_json:
        told = {"before": before, "after": after, "text": sample.name, "perplexity_left_out": reason}
        json.dump(told, sys.stdout, indent=2, ensure_ascii=False)
        print()
        return
    for name, label, write in (
        ("parameters", "parameters", in_parameters),
        ("kv_bytes_per_token", "KV cache a token", in_bytes),
    ):
        print(f"{label}: {write(before[name])} -> {write(after[name])}")
    if reason is None:
        values = f"{before['perplexity']:.2f} -> {after['perplexity']:.2f}"
        print(f"perplexity: {values} on {before['tokens']} tokens of {sample.name}")
    else:
        print(f"perplexity: left out; {reason}")


def _measure(
    source: Source, out: Path, sample: Sample, before: dict[str, Any], after: dict[str, Any]
) -> str | None:
    """Add the perplexities; if there can be none, the reason."""
    tokenizer = tokenizer_of(source)
    if tokenizer is None:
        return "there is no tokenizer"
    for reference, facts in ((source.model, before), (str(out), after)):
        try:
            model = recipes.open(reference, dtype=source.dtype, device=source.device, **source.hub)
        except ModelError as error:  # it does not fit in memory
            return str(error)
        try:
            found = perplexity(model, tokenizer, sample.text)
        except UsageError as error:
            return str(error)
        facts |= {"perplexity": found.value, "tokens": found.tokens}
    return None


def tokenizer_of(source: Source) -> Any:
    """The model's tokenizer, if it has one."""
    try:
        return recipes.open_tokenizer(source.reference, **source.hub)
    except ModelError:
        return None


def _facts(reference: str, source: Source) -> dict[str, Any]:
    spec = recipes.parse_reference(reference).spec
    model = recipes.open_empty(reference, **source.hub)
    costs = cost(model, plans.plan(spec or "all", model.config))
    return {"parameters": costs.base_parameters, "kv_bytes_per_token": costs.kv_bytes_per_token}


@contextmanager
def _bar(out: Path) -> Iterator[Callable[[int, int], None] | None]:
    if not sys.stderr.isatty():
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(out.name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
