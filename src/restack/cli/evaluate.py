"""`restack eval`: lm-evaluation-harness on a model or a view."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from restack import __version__
from restack.errors import UsageError
from restack.plans.pointing import counted

if TYPE_CHECKING:
    from restack.cli.loading import Source
    from restack.scanning.harness.tasks import Asked

SEEDS = 2**32  # numpy takes no more
VERSIONS = ("lm_eval", "transformers", "torch", "datasets")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be evaluated, but for the model; made before torch is imported.

    Raises:
        UsageError: an option cannot be used.
    """

    tasks: tuple[str, ...]
    include_path: Path | None
    num_fewshot: int | None
    limit: float | None
    batch_size: int | str
    apply_chat_template: bool
    seed: int | None
    confirm_run_unsafe_code: bool
    out: Path | None

    def __post_init__(self) -> None:
        limit, seed = self.limit, self.seed
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UsageError(f"--num-fewshot is {self.num_fewshot}; write 0 or more")
        if limit is not None and not (0 < limit < 1 or (1 <= limit < 2**31 and limit == int(limit))):
            raise UsageError(f"--limit is {limit:g}; write a number of questions, or a share of them below 1")
        if seed is not None and not 0 <= seed < SEEDS:
            raise UsageError(f"--seed is {seed}; write a number from 0 to {SEEDS - 1}")
        if self.out is not None:
            _check_out(self.out)


def run(source: "Source", wanted: Wanted, asked: "Asked", *, as_json: bool) -> None:
    """Evaluate, print the table or JSON, and write the JSON to the file that was asked for."""
    source.check_place()
    plan = source.plan  # a wrong one is told before data are fetched
    tasks = asked.load()
    from restack.recipes.whole_file import write_whole
    from restack.scanning.harness import evaluating
    from restack.scanning.harness.model import RestackLM

    _, model, tokenizer = source.load()
    lm = RestackLM(model, tokenizer=tokenizer, batch_size=wanted.batch_size)
    results = evaluating.evaluate(
        lm,
        tasks,
        num_fewshot=wanted.num_fewshot,
        limit=wanted.limit,
        apply_chat_template=wanted.apply_chat_template,
        seed=wanted.seed,
        confirm_run_unsafe_code=wanted.confirm_run_unsafe_code,
    )
    facts = {
        "model": source.reference.model,
        "plan": str(plan),
        "visits": len(plan.visits),
        "dtype": str(lm.model.dtype).removeprefix("torch."),
        "limit": wanted.limit,
        "apply_chat_template": wanted.apply_chat_template,
        "seed": wanted.seed,
        "cut": lm.cut,
        **evaluating.kept(results),
        "software": {"restack": __version__} | {name: version(name) for name in VERSIONS},
    }
    if wanted.out is not None:
        write_whole(wanted.out.expanduser(), json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        json.dump(facts, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        name = source.reference.model if plan.is_identity else f"{source.reference.model}@{plan}"
        print(f"{name}: {counted(len(plan.visits), 'visit')}")
        print(evaluating.table(results))
    if lm.cut:
        print(
            f"restack: {counted(lm.cut, 'request')} longer than the model's {lm.max_length} tokens lost the "
            "beginning",
            file=sys.stderr,
        )


def find(wanted: Wanted) -> "Asked":
    """Look the tasks up.

    Raises:
        UsageError: one of them does not exist, or lm-eval is not installed.
    """
    from restack.scanning.harness.tasks import find_tasks

    if sys.stderr.isatty():
        print("looking the tasks up", file=sys.stderr, flush=True)
    return find_tasks(wanted.tasks, wanted.include_path)


def split(texts: Sequence[str]) -> tuple[str, ...]:
    """The names in `a,b`, which may be given several times."""
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())


def batch_size(text: str) -> int | str:
    """A number of requests, or auto.

    Raises:
        UsageError: it is neither.
    """
    if text == "auto":
        return text
    if text.isdecimal() and int(text):
        return int(text)
    raise UsageError(f"--batch-size is {text!r}; write a number, or auto")


def _check_out(out: Path) -> None:
    folder = out.expanduser().absolute().parent
    if out.expanduser().is_dir():
        raise UsageError(f"--out {out} is a folder; name a file")
    if os.path.lexists(out.expanduser()):  # a link or a device too, which would be replaced
        raise UsageError(f"--out {out} is there, and would be lost; name another file")
    if not folder.is_dir():
        raise UsageError(f"--out {out}: there is no folder {folder}; make it, or name another file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"--out {out}: {folder} cannot be written into; name another file")
