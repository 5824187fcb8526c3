"""The survey: views of every decoder architecture of the installed transformers, compared with their twins.

    python -m tests.views.survey [FILE]

surveys them all, in some minutes, and writes the table that is docs/architectures.md.
"""

import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from torch import nn

import restack
from tests.views.survey_models import NO_DECODERS, VOCABULARY, WINDOW, decoders, tiny
from tests.views.survey_twins import BAKED, twin

PLANS = {"skip": (0, 1, 3), "swap": (0, 2, 1, 3), "repeat": (0, 1, 2, 1, 2, 3), "reverse": (3, 2, 1, 0)}
PROMPT = torch.randint(3, VOCABULARY, (2, WINDOW + 3), generator=torch.Generator().manual_seed(5))
NEW_TOKENS = 5
SPECIAL = [0, 1, 2]  # padding, and the ends of texts
OWN_CACHE = "decodes otherwise with its cache than without, as its twin does"
TABLE = Path(__file__).parents[2] / "docs" / "architectures.md"


class Differs(AssertionError):
    """A view is not its twin."""


@dataclass(frozen=True)
class Finding:
    """What the survey finds of an architecture: a row of the table."""

    model_type: str
    model: str  # its class
    verdict: str  # equal or refused
    notes: str = ""

    def __str__(self) -> str:
        return f"| {self.model_type} | {self.model} | {self.verdict} | {self.notes} |"

    @classmethod
    def read(cls, row: str) -> "Finding":
        return cls(*(cell.strip() for cell in row.strip("|\n").split("|")))


def survey(model_type: str) -> Finding:
    """View a tiny model of an architecture in four orders, and compare with its twins.

    Prefill and each decoded token's logits are bitwise those of the twin, and so are the tokens; decoding
    with a cache equals the forward pass without one.

    Raises:
        Differs: something of this does not hold.
    """
    base = tiny(model_type)
    name = type(base).__name__
    refusals = {}
    notes = []
    if model_type in BAKED:
        notes.append(
            "[by place](#what-stays-the-layers): " + ", ".join(f"`{name}`" for name in BAKED[model_type])
        )
    for plan, order in PLANS.items():
        try:
            view = restack.view(base, list(order))
        except restack.ViewError as error:
            refusals[plan] = str(error)
            continue
        notes += compare(f"{model_type}, {plan}", view, twin(model_type, base, order))
    if len(refusals) == len(PLANS):
        return Finding(model_type, name, "refused", refusals["repeat"])
    notes += [f"{plan} refused: {reason}" for plan, reason in refusals.items()]
    return Finding(model_type, name, "equal", "; ".join(dict.fromkeys(notes)))


def compare(case: str, view: nn.Module, its_twin: nn.Module) -> list[str]:
    """Compare a view with its twin; the result is what there is to note of the architecture."""
    prefill, expected = logits(view, PROMPT), logits(its_twin, PROMPT)
    if not expected.isfinite().all():
        raise Differs(f"{case}: the twin's logits are not numbers")
    if not torch.equal(prefill, expected):
        raise Differs(f"{case}: prefill differs by {(prefill - expected).abs().max():.2g}")
    tokens, chosen_by = decoded(view)
    twins_tokens, twins_chosen_by = decoded(its_twin)
    if not torch.equal(tokens, twins_tokens):
        raise Differs(f"{case}: other tokens are generated")
    if not torch.equal(chosen_by, twins_chosen_by):
        raise Differs(f"{case}: the logits of decoded tokens differ")
    uncached, twins_uncached = (
        logits(model, tokens, use_cache=False)[:, PROMPT.shape[1] - 1 : -1] for model in (view, its_twin)
    )
    if not torch.equal(uncached, twins_uncached):
        raise Differs(f"{case}: without a cache, logits differ")
    notes = [] if view.can_generate() else ["without a head: hidden states compared"]
    if not torch.allclose(chosen_by, uncached, atol=2e-4, rtol=1e-4):
        notes.append(OWN_CACHE)
    return notes


@torch.no_grad()
def logits(model: nn.Module, tokens: torch.Tensor, **options: object) -> torch.Tensor:
    """Logits (B, T, vocabulary), or the last hidden states of a model without a head."""
    output = model(tokens, **options)
    return output.logits if hasattr(output, "logits") else output[0]


def decoded(model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens (B, T) decoded greedily with a cache, and the logits (B, NEW_TOKENS, V) they are chosen by.

    A model without a head is given tokens instead.
    """
    if model.can_generate():
        model.generation_config = transformers.GenerationConfig(pad_token_id=0)  # no token ends or is forced
        output = model.generate(
            PROMPT,
            attention_mask=torch.ones_like(PROMPT),
            suppress_tokens=SPECIAL,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return output.sequences, torch.stack(output.logits, dim=1)
    given = torch.cat([PROMPT, PROMPT[:, :NEW_TOKENS].flip(1)], dim=1)
    cache = transformers.DynamicCache(config=model.config)
    steps = [PROMPT, *given[:, PROMPT.shape[1] : -1].split(1, dim=1)]
    states = [logits(model, step, past_key_values=cache, use_cache=True)[:, -1] for step in steps]
    return given, torch.stack(states, dim=1)


INTRODUCTION = """\
# Architectures

A view of a model equals the model that its own constructor builds in the same order of layers. This is shown
here for the {count} decoder architectures of transformers {version}: causal language models, and the text
models of composites. `python -m tests.views.survey` makes this page; `bash .ci/run` checks every row of it.

Each row is a tiny random model of four layers, of every kind that the architecture has, viewed in four
orders: a layer skipped (0,1,3), two swapped (0,2,1,3), a block repeated (0:3,1:4), all reversed (::-1). Each
view is compared with its twin, which the architecture's own constructor builds from a config written for that
order, and which is given copies of the weights.

- **equal**, {equal}: all logits are bitwise the twin's, in prefill, and in decoding with a cache and without;
  and so are the tokens. Of {cached} of these, decoding with a cache also gives the logits of a pass without
  (to 2e-4).
- **refused**, {refused}: `restack.view` raises a `ViewError` with the reason given.

`restack.verify(model)`, or `restack show MODEL --verify`, checks a loaded model of any architecture in about
a second.
"""
BY_PLACE = """
## What stays the layer's

Some constructors give a layer something by its number, or by the number of all layers. A view leaves a layer
as it is, wherever it is visited; a model loaded anew from a checkpoint of these layers gets it by the new
place, and is another one.

| model type | attributes of the layer |
|---|---|
"""
LEFT_OUT = """
## Not surveyed

| model type | why |
|---|---|
"""


def page(findings: Sequence[Finding]) -> str:
    """The survey as a page of the documentation."""
    equal = [finding for finding in findings if finding.verdict == "equal"]
    lines = [
        INTRODUCTION.format(
            version=transformers.__version__,
            count=len(findings),
            equal=len(equal),
            cached=sum(OWN_CACHE not in finding.notes for finding in equal),
            refused=len(findings) - len(equal),
        ),
        "| model type | class | a view is | notes |",
        "|---|---|---|---|",
        *map(str, findings),
    ]
    constants = [f"| {name} | {', '.join(f'`{each}`' for each in names)} |" for name, names in BAKED.items()]
    left_out = [f"| {name} | {reason} |" for name, reason in NO_DECODERS.items()]
    return "\n".join([*lines, BY_PLACE.rstrip("\n"), *constants, LEFT_OUT.rstrip("\n"), *left_out]) + "\n"


def table() -> tuple[str, dict[str, Finding]]:
    """The committed table: of which transformers, and its rows by model type."""
    text = TABLE.read_text()
    version = re.search(r"of transformers ([0-9.]+):", text)[1]
    rows = text.partition("| model type | class |")[2].partition("\n\n")[0].splitlines()[2:]
    return version, {finding.model_type: finding for finding in map(Finding.read, rows)}


def main() -> None:
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    findings = []
    for model_type in decoders():
        findings.append(survey(model_type))
        print(findings[-1], flush=True)
    Path(sys.argv[1] if len(sys.argv) > 1 else TABLE).write_text(page(findings))


if __name__ == "__main__":
    main()
