"""The command `restack draft`: its options; what it does is in `restack.cli.draft`."""

from typing import Annotated

import typer

from restack.cli import options as o
from restack.cli.prune_app import Folder, TextFile


def draft(
    model: o.Model,
    search: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="greedy (layers left out one after another) or contiguous (layers in a row)."
        ),
    ] = "greedy",
    most: Annotated[
        str, typer.Option(metavar="HOW MANY", help="Layers to leave out at most: 50%, or a number.")
    ] = "50%",
    cost: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="Of a step: measured, on this machine; or visits, by the weights it reads."
        ),
    ] = "measured",
    longest: Annotated[int, typer.Option(min=1, max=64, help="Tokens drafted at once, at most.")] = 8,
    out: Folder = None,
    layers: o.Layers = None,
    ratio: o.Ratio = None,
    kv: o.KvMap = None,
    text: TextFile = None,
    texts: Annotated[
        int,
        typer.Option(
            min=4,
            max=10_000,
            help="That the model writes: half of them to choose on, the others to report on.",
            rich_help_panel="Text",
        ),
    ] = 64,
    prompt_tokens: Annotated[
        int, typer.Option(min=2, help="Of the text that it goes on from.", rich_help_panel="Text")
    ] = 32,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", "--max-new-tokens", min=1, help="That it writes.", rich_help_panel="Text"
        ),
    ] = 64,
    as_json: o.AsJson = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Choose a view with fewer layers to draft for the model (self-speculative decoding), if one pays."""
    from restack.cli import draft, loading

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
    settings = {"search": search, "most": most, "length": max_tokens, "longest": longest, "costs": cost}
    draft.run(source, text, (texts, prompt_tokens), settings, out, as_json=as_json)
