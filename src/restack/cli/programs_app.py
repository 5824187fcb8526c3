"""The options of `restack duet`, `cobblers` and `think`; what they do is in `restack.cli.programs`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from restack.cli import experts as e
from restack.cli import options as o
from restack.cli import traits as t
from restack.errors import UsageError

TRAITS, CHOICE, THOUGHT, RUN = "Each of the two", "Choice", "Thought", "Run"


def _checked_pairs(option: typer.CallbackParam, texts: list[str] | None) -> list[str] | None:
    t.pairs(texts, option.opts[0], more=["name"])
    return texts


def _checked_expert(texts: list[str] | None) -> list[str] | None:
    for text in texts or ():
        e.expert_of(text)
    return texts


def _checked_optional_model(model: str | None) -> str | None:
    return None if model is None else o.checked_model(model)


def _checked_transcript(path: Path | None) -> Path | None:
    if path is None:
        return None
    from restack.chat.programs.transcript import check_transcript

    check_transcript(path.expanduser())
    return path.expanduser()


def _checked_count(option: typer.CallbackParam, count: int | None) -> int | None:
    if count is not None and count < 1:
        raise UsageError(f"{option.opts[0]} {count}: write 1 or more")
    return count


def _checked_share(option: typer.CallbackParam, share: float | None) -> float | None:
    if share is not None and not 0 <= share <= 1:
        raise UsageError(f"{option.opts[0]} {share}: write a number from 0 to 1")
    return share


def _model(metavar: str, text: str) -> object:
    return typer.Argument(metavar=metavar, callback=o.checked_model, help=text)


Own = typer.Option(
    metavar="KEY=VALUE",
    callback=_checked_pairs,
    help=f"For this one alone; may be repeated. Keys: name, {', '.join(t.KINDS)}.",
    rich_help_panel=TRAITS,
)
TranscriptFile = Annotated[
    Path | None,
    typer.Option(
        "--transcript",
        metavar="FILE",
        callback=_checked_transcript,
        help="Write each message there as it is said: .md to read, or .jsonl, an object a line.",
        rich_help_panel=RUN,
    ),
]
Questions = Annotated[
    int | None,
    typer.Option(
        "--turns", metavar="N", callback=_checked_count, help="Questions at most.", rich_help_panel=RUN
    ),
]


def duet(
    first: Annotated[str, _model("A", "Speaks first: MODEL or MODEL@SPEC, as everywhere.")],
    second: Annotated[str, _model("B", "Answers; a plan of the same model needs no more weights.")],
    start: Annotated[
        str, typer.Option(metavar="TEXT", callback=o.checked_text, help="The first message, which A says.")
    ],
    turns: Annotated[
        int,
        typer.Option(metavar="N", callback=_checked_count, help="Messages of each.", rich_help_panel=RUN),
    ] = 8,
    reversed_role: Annotated[
        bool,
        typer.Option(
            "--reversed-role",
            "--reversed_role",
            help="A plays the user: two assistants soon do nothing but offer help.",
            rich_help_panel=TRAITS,
        ),
    ] = False,
    a: Annotated[list[str] | None, Own] = None,
    b: Annotated[list[str] | None, Own] = None,
    repetition: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            callback=_checked_share,
            help="End when a message has this share of its words in common with an earlier one; 0: never.",
            rich_help_panel=RUN,
        ),
    ] = 0.8,
    transcript: TranscriptFile = None,
    hide_thoughts: o.HideThoughts = False,
    thought_tags: o.ThoughtTags = None,
    system: o.System = None,
    ai_prefix: o.AiPrefix = "",
    overflow: o.Overflow = "stop",
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    repetition_penalty: o.RepetitionPenalty = None,
    max_tokens: o.MaxTokens = 512,
    seed: o.Seed = None,
    dtype: o.Dtype = "auto",
    quantize: o.Quantize = None,
    is_compiled: o.Compile = False,
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Let two models, or two plans of one, talk to each other."""
    if not start.strip():
        raise UsageError("--start is empty; write what A says first")
    from restack.cli import programs

    setting = programs.Setting(
        "restack duet",
        t.common(system, ai_prefix, temperature, top_p, top_k, repetition_penalty, max_tokens),
        seed=seed,
        overflow=overflow,
        transcript=transcript,
        hide_thoughts=hide_thoughts,
        thought_tags=thought_tags,
        dtype=dtype,
        quantize=quantize,
        is_compiled=is_compiled,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    own = t.pairs(a, "--a", more=["name"]), t.pairs(b, "--b", more=["name"])
    if reversed_role:
        own[0]["speaks"] = "user"
    programs.run_duet(setting, (first, second), own, start, turns=turns, repetition=repetition)


def cobblers(
    router: Annotated[
        str | None,
        typer.Option(metavar="MODEL", callback=_checked_optional_model, help="Chooses the expert."),
    ] = None,
    expert: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            callback=_checked_expert,
            help="Answers what its name says; two or more. MODEL or MODEL@SPEC, as everywhere.",
        ),
    ] = None,
    experts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Or all of them in YAML: experts, a list of name, model and "
            f"{', '.join(t.KINDS)}; router; fallback; confidence.",
        ),
    ] = None,
    per_question: Annotated[
        bool,
        typer.Option(
            "--per-question",
            help="Choose for each question; without, the first one's expert stays until /restart.",
            rich_help_panel=CHOICE,
        ),
    ] = False,
    fallback: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The expert that answers where the router is not sure; without, the last.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    confidence: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            callback=_checked_share,
            help="The router is sure from this probability on; without, 0.5.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    router_prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            callback=o.checked_text,
            help=r"What the router is asked; {prompt} is the question, {classes} the names; \n is a newline.",
            rich_help_panel=CHOICE,
        ),
    ] = None,
    turns: Questions = None,
    transcript: TranscriptFile = None,
    hide_thoughts: o.HideThoughts = False,
    thought_tags: o.ThoughtTags = None,
    system: o.System = None,
    ai_prefix: o.AiPrefix = "",
    overflow: o.Overflow = "stop",
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    repetition_penalty: o.RepetitionPenalty = None,
    max_tokens: o.MaxTokens = 512,
    seed: o.Seed = None,
    dtype: o.Dtype = "auto",
    quantize: o.Quantize = None,
    is_compiled: o.Compile = False,
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Ask experts; a router chooses who answers."""
    if (expert is None or not expert) == (experts is None):
        raise UsageError("name the experts in one way: --expert NAME=MODEL for each, or --experts FILE")
    cast = e.read_cast(experts.expanduser()) if experts else e.Cast(tuple(map(e.expert_of, expert or ())))
    if router is not None:
        cast = replace(cast, router=e.Expert("router", router))
    if router_prompt is not None:
        cast = replace(cast, prompt=o.unescaped(router_prompt))
    cast = replace(
        cast,
        fallback=cast.fallback if fallback is None else fallback,
        confidence=cast.confidence if confidence is None else confidence,
    )
    from restack.cli import programs

    setting = programs.Setting(
        "restack cobblers",
        t.common(system, ai_prefix, temperature, top_p, top_k, repetition_penalty, max_tokens),
        seed=seed,
        overflow=overflow,
        transcript=transcript,
        hide_thoughts=hide_thoughts,
        thought_tags=thought_tags,
        dtype=dtype,
        quantize=quantize,
        is_compiled=is_compiled,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    programs.run_cobblers(setting, cast, per_question=per_question, turns=turns)


def think(
    thinker: Annotated[str, _model("THINKER", "Thinks: MODEL or MODEL@SPEC, as everywhere.")],
    summariser: Annotated[
        str | None,
        typer.Option(
            "--summariser",
            "--summarizer",
            metavar="MODEL",
            callback=_checked_optional_model,
            help="Answers, by what was thought; without, the thinker.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="TEXT",
            callback=o.checked_text,
            help="The question; without, you are asked for questions.",
        ),
    ] = None,
    passes: Annotated[
        int,
        typer.Option(
            metavar="N",
            callback=_checked_count,
            help="1: think; 2: think and check; more: think again in between.",
            rich_help_panel=THOUGHT,
        ),
    ] = 3,
    budget: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            callback=_checked_count,
            help="Of the thoughts about a question, in all.",
            rich_help_panel=THOUGHT,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="YAML with other words than the original's: prefix, again, check, system, summary.",
            rich_help_panel=THOUGHT,
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix",
            "--ai-prefix",
            "--ai_prefix",
            metavar="TEXT",
            callback=o.checked_text,
            help=r"What the thinker begins with; \n is a newline, here and below.",
            rich_help_panel=THOUGHT,
        ),
    ] = None,
    again: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", callback=o.checked_text, help="To think again.", rich_help_panel=THOUGHT
        ),
    ] = None,
    check: Annotated[
        str | None,
        typer.Option(metavar="TEXT", callback=o.checked_text, help="To check.", rich_help_panel=THOUGHT),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            "--system",
            "-s",
            metavar="TEXT",
            callback=o.checked_text,
            help="The thinker's system prompt.",
            rich_help_panel=THOUGHT,
        ),
    ] = None,
    summary_system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            callback=o.checked_text,
            help="The summariser's system prompt.",
            rich_help_panel=THOUGHT,
        ),
    ] = None,
    summary: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            callback=o.checked_text,
            help="What the summariser is asked, with {prompt} and {thoughts} in it.",
            rich_help_panel=THOUGHT,
        ),
    ] = None,
    turns: Questions = None,
    transcript: TranscriptFile = None,
    hide_thoughts: o.HideThoughts = False,
    thought_tags: o.ThoughtTags = None,
    overflow: o.Overflow = "stop",
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    repetition_penalty: o.RepetitionPenalty = None,
    max_tokens: o.MaxTokens = 512,
    seed: o.Seed = None,
    dtype: o.Dtype = "auto",
    quantize: o.Quantize = None,
    is_compiled: o.Compile = False,
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Have one model think, and another sum up (without --temperature: at 0.7, and at 0)."""
    if prompt is not None and not prompt.strip():
        raise UsageError("--prompt is empty; write a question")
    words = t.prompts(
        prompts, prefix=prefix, again=again, check=check, system=summary_system, summary=summary
    )
    from restack.chat.programs import Prompts
    from restack.cli import programs

    setting = programs.Setting(
        "restack think",
        t.common(None, None, temperature, top_p, top_k, repetition_penalty, max_tokens),
        seed=seed,
        overflow=overflow,
        transcript=transcript,
        hide_thoughts=hide_thoughts,
        thought_tags=thought_tags,
        dtype=dtype,
        quantize=quantize,
        is_compiled=is_compiled,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    programs.run_think(
        setting,
        (thinker, summariser or thinker),
        prompt,
        Prompts(**words),
        system=system,
        passes=passes,
        budget=budget,
        turns=turns,
    )
