"""Every command of `restack`; what a command does is in the module of its name, imported when it runs."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from restack import __version__
from restack.cli import (
    convert_app,
    draft_app,
    eval_app,
    programs_app,
    prune_app,
    scan_app,
    serve_app,
    train_app,
    vllm_args_app,
)
from restack.cli import options as o

app = typer.Typer(
    name="restack",
    help="Repeat, skip, reorder and share the layers of a language model in memory: "
    "[bold]one set of weights, many models[/].",
    epilog="Start with: [bold]restack chat demo[/], then type /layers 0:8,4:12",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
LOOK, TALK, SEARCH, MAKE = "Look", "Talk", "Search", "Make"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"restack {__version__}")
        raise typer.Exit


@app.callback()
def restack(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(rich_help_panel=LOOK)
def show(
    model: o.Model,
    layers: o.Layers = None,
    ratio: o.Ratio = None,
    kv: o.KvMap = None,
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Load the model too, and check that views of it are right.")
    ] = False,
    device: o.Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
) -> None:
    """What a model is, what a plan of it runs, and what that costs. Reads no weights but to --verify."""
    from restack.cli import loading, show

    source = loading.Source(
        model=model,
        layers=layers,
        ratio=ratio,
        kv=kv,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    facts = show.facts(source)
    if verify:
        facts["verified"] = show.verified(source)
    if as_json:
        json.dump(facts, sys.stdout, indent=2, ensure_ascii=False)
        print()
    else:
        show.tell(facts)
    if verify:
        show.refuse_unverified(facts)


@app.command(rich_help_panel=TALK)
def generate(
    model: o.Model,
    prompt: o.Prompts = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it stands, without a chat template.")
    ] = False,
    layers: o.Layers = None,
    ratio: o.Ratio = None,
    kv: o.KvMap = None,
    system: o.System = None,
    ai_prefix: o.AiPrefix = "",
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    repetition_penalty: o.RepetitionPenalty = None,
    max_tokens: o.MaxTokens = 512,
    seed: o.Seed = None,
    dtype: o.Dtype = "auto",
    quantize: o.Quantize = None,
    is_compiled: o.Compile = False,
    draft: o.Draft = None,
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Answer prompts, or continue them (--raw)."""
    from restack.cli import generate, loading
    from restack.runtime import Sampling

    source = loading.Source(
        model=model,
        layers=layers,
        ratio=ratio,
        kv=kv,
        dtype=dtype,
        quantize=quantize,
        is_compiled=is_compiled,
        draft=draft,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
    )
    loading.set_seed(seed)
    generate.run(source, prompt, raw, system, o.unescaped(ai_prefix), sampling)


@app.command(rich_help_panel=TALK)
def chat(
    model: o.Model,
    layers: o.Layers = None,
    ratio: o.Ratio = None,
    kv: o.KvMap = None,
    system: o.System = None,
    ai_prefix: o.AiPrefix = "",
    reversed_role: o.ReversedRole = False,
    overflow: o.Overflow = "stop",
    load: o.Load = None,
    hide_thoughts: o.HideThoughts = False,
    thought_tags: o.ThoughtTags = None,
    temperature: o.Temperature = None,
    top_p: o.TopP = None,
    top_k: o.TopK = None,
    repetition_penalty: o.RepetitionPenalty = None,
    max_tokens: o.MaxTokens = 512,
    seed: o.Seed = None,
    dtype: o.Dtype = "auto",
    quantize: o.Quantize = None,
    is_compiled: o.Compile = False,
    draft: o.Draft = None,
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Talk with a model; change its layers while you talk."""
    from restack.chat import Tags
    from restack.cli import chat, loading
    from restack.runtime import Sampling

    source = loading.Source(
        model=model,
        layers=layers,
        ratio=ratio,
        kv=kv,
        dtype=dtype,
        quantize=quantize,
        is_compiled=is_compiled,
        draft=draft,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        max_tokens=max_tokens,
    )
    loading.set_seed(seed)
    options = {
        "system": system,
        "ai_prefix": o.unescaped(ai_prefix),
        "sampling": sampling,
        "speaks": "user" if reversed_role else "assistant",
        "overflow": overflow,
        "tags": Tags(*thought_tags) if thought_tags else None,
    }
    chat.run(source, options, session=load, shows_thoughts=not hide_thoughts)


@app.command(rich_help_panel=MAKE)
def save(
    model: o.Model,
    folder: o.NewFolder,
    layers: o.Layers = None,
    ratio: o.Ratio = None,
    kv: o.KvMap = None,
    weights: o.Weights = "none",
    dtype: o.Dtype = "auto",
    quantize: o.Quantize = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Keep a view: a recipe of a few kilobytes, or a checkpoint (--weights shared or full)."""
    from restack.cli import loading, save

    source = loading.Source(
        model=model,
        layers=layers,
        ratio=ratio,
        kv=kv,
        dtype=dtype,
        quantize=quantize,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    save.run(source, folder, weights)


@app.command(rich_help_panel=LOOK)
def demo(
    out: o.Out = Path("demo"),
    probes: Annotated[int, typer.Option(min=1, help="Questions of each family.")] = 40,
) -> None:
    """See it happen: one small model, three stacks of its layers, the same questions."""
    from restack.cli import demo

    demo.run(out, probes)


app.add_typer(convert_app.app, name="convert", rich_help_panel=MAKE)
app.command(rich_help_panel=MAKE)(train_app.train)
for search in (scan_app.scan, prune_app.prune, draft_app.draft):
    app.command(rich_help_panel=SEARCH)(search)
app.command("eval", rich_help_panel=SEARCH)(eval_app.evaluate)
app.command(rich_help_panel=TALK)(serve_app.serve)
app.command(rich_help_panel=TALK)(vllm_args_app.vllm_args)
for program in (programs_app.duet, programs_app.cobblers, programs_app.think):
    app.command(rich_help_panel=TALK)(program)
