"""`restack duet`, `restack cobblers` and `restack think`: from what was typed to programs that run."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from restack.chat import Tags
from restack.chat.programs import (
    Agent,
    Audience,
    Cobblers,
    Listeners,
    Prompts,
    Terminal,
    Thinking,
    Transcript,
    duet,
)
from restack.chat.programs.agent import check_names
from restack.chat.programs.routing import CLASSIFY, CONFIDENCE, check_experts
from restack.cli import loading
from restack.cli.experts import Cast, Expert, names_of
from restack.cli.questions import Questions
from restack.cli.traits import SAMPLING, Traits
from restack.cli.units import in_bytes, in_parameters
from restack.errors import UsageError
from restack.plans import Plan
from restack.recipes import parse_reference
from restack.recipes.reference import Reference
from restack.recipes.shelf import Opened
from restack.runtime import Sampling


class Setting:
    """Where a program runs: the models, the options that are common to its agents, who listens."""

    def __init__(
        self,
        title: str,
        common: Traits,
        *,
        seed: int | None = None,
        overflow: str = "stop",
        thought_tags: tuple[str, str] | None = None,
        transcript: Path | None = None,
        hide_thoughts: bool = False,
        quantize: str | None = None,
        is_compiled: bool = False,
        **place: Any,
    ) -> None:
        """A setting; `place` are the arguments of `Shelf`."""
        self.common = common
        self.overflow = overflow
        self.tags = Tags(*thought_tags) if thought_tags else None
        terminal = Terminal(thoughts=not hide_thoughts)
        self.audience: Audience = terminal
        if transcript is not None:
            self.audience = Listeners([terminal, Transcript(transcript, title)])
        self.shelf = loading.shelf(quantize, is_compiled, **place)
        loading.set_seed(seed)

    def agents(self, experts: Sequence[Expert]) -> list[Agent]:
        """The agents, with their models loaded and what they run told; all are checked before."""
        samplings = [_sampling(expert.traits) for expert in experts]
        for expert in experts:
            self._tell_of_hub(expert.model)
            self.shelf.check(expert.model)
        with loading.warnings_in_one_line():
            opened = [self.shelf.open(expert.model) for expert in experts]
        self.audience.note(self._opening(experts, opened))
        return [
            Agent(
                expert.name,
                model.model,
                model.tokenizer,
                system=expert.traits.get("system"),
                ai_prefix=expert.traits.get("ai-prefix", ""),
                sampling=sampling,
                speaks=expert.traits.get("speaks", "assistant"),
                overflow=self.overflow,
                tags=self.tags,
            )
            for expert, model, sampling in zip(experts, opened, samplings, strict=True)
        ]

    def _opening(self, experts: Sequence[Expert], opened: Sequence[Opened]) -> str:
        """What runs, and of how many sets of weights."""
        runs = "; ".join(
            f"{expert.name}: {expert.model}{_visits(model.plan)}"
            for expert, model in zip(experts, opened, strict=True)
        )
        held = self.shelf.held
        sets = "one set" if held.bases == 1 else f"{held.bases} sets"
        size = f"{in_parameters(held.parameters)} parameters, {in_bytes(held.bytes)}"
        return f"{runs}. In memory: {sets} of weights, {size}."

    @staticmethod
    def _tell_of_hub(name: str) -> None:
        model = Reference(parse_reference(name).model)
        if sys.stderr.isatty() and not model.is_local:  # the hub may keep us waiting
            print(f"looking for {model.model} on the hub", file=sys.stderr, flush=True)


def _visits(plan: Plan) -> str:
    return "" if plan.is_identity else f" ({len(plan)} visits of {sum(plan.depths)} layers)"


def _sampling(traits: Traits) -> Sampling:
    return Sampling(**{key.replace("-", "_"): traits[key] for key in SAMPLING if key in traits})


def run_duet(
    setting: Setting,
    models: tuple[str, str],
    own: tuple[Traits, Traits],
    start: str,
    *,
    turns: int,
    repetition: float,
) -> None:
    """Let two agents talk."""
    names = [traits.pop("name", name) for traits, name in zip(own, "AB", strict=True)]
    check_names(names)
    traits = [setting.common | each for each in own]
    first, second = setting.agents([Expert(*each) for each in zip(names, models, traits, strict=True)])
    duet(first, second, start, turns=turns, repetition=repetition, audience=setting.audience)


def run_cobblers(setting: Setting, cast: Cast, *, per_question: bool, turns: int | None) -> None:
    """Answer questions by the experts that the router chooses."""
    if cast.router is None:
        raise UsageError("there is no router; write --router MODEL, or router: MODEL into the --experts file")
    choosing: dict[str, Any] = {
        "fallback": cast.fallback,
        "confidence": CONFIDENCE if cast.confidence is None else cast.confidence,
        "prompt": CLASSIFY if cast.prompt is None else cast.prompt,
    }
    check_experts(names_of(cast.experts), **choosing)
    experts = [replace(each, traits=setting.common | each.traits) for each in cast.experts]
    router, *agents = setting.agents([cast.router, *experts])
    program = Cobblers(router, agents, per_question=per_question, audience=setting.audience, **choosing)
    Questions(program.stage, program.ask, program.restart, turns).run()


def run_think(
    setting: Setting,
    models: tuple[str, str],
    question: str | None,
    prompts: Prompts,
    *,
    system: str | None,
    passes: int,
    budget: int | None,
    turns: int | None,
) -> None:
    """Answer questions by what one agent thinks, and another sums up."""
    thinker, summariser = setting.agents(
        [
            Expert("Thinker", models[0], {"temperature": 0.7} | setting.common | {"system": system}),
            Expert("Summariser", models[1], {"temperature": 0.0} | setting.common),
        ]
    )
    program = Thinking(
        thinker, summariser, prompts=prompts, passes=passes, budget=budget, audience=setting.audience
    )
    if question is None:
        Questions(program.stage, program.ask, program.restart, turns).run()
    else:
        program.ask(question)
