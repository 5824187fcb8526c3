"""The command `restack prune`: its options; what it does is in `restack.cli.prune`."""

from pathlib import Path
from typing import Annotated

import typer

from restack.cli import options as o


def checked_folder(folder: Path | None) -> Path | None:
    """A folder that a recipe can be saved in, if one is given."""
    return None if folder is None else o.checked_new_folder(folder)


TextFile = Annotated[
    Path | None,
    typer.Option(
        "--text",
        exists=True,
        dir_okay=False,
        readable=True,
        metavar="FILE",
        help="To choose on; without: a built-in text, or for demo questions of its own world.",
        rich_help_panel="Text",
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="FOLDER", callback=checked_folder, help="Save what was chosen as a recipe."
    ),
]


def prune(
    model: o.Model,
    drop: Annotated[
        str,
        typer.Option(
            metavar="HOW MUCH", help="A share of the layers, 25% (a half is rounded down), or a number, 8."
        ),
    ],
    by: Annotated[
        str,
        typer.Option(
            metavar="METHOD",
            help="block-influence (ShortGPT), angular (Gromov et al.: a block), sleb (SLEB: one by one, by "
            "the loss), contiguous (a block, by the loss) or deepest (the last but one).",
        ),
    ] = "block-influence",
    out: Folder = None,
    layers: o.Layers = None,
    ratio: o.Ratio = None,
    kv: o.KvMap = None,
    text: TextFile = None,
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            exists=True,
            dir_okay=False,
            readable=True,
            metavar="FILE",
            help="To report the loss on; without: the half of the text that was not chosen on.",
            rich_help_panel="Text",
        ),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(
            min=4, max=10**8, help="To choose on, and as many to report on.", rich_help_panel="Text"
        ),
    ] = 8192,
    window: Annotated[
        int, typer.Option(min=2, help="Tokens of a text that are read at once.", rich_help_panel="Text")
    ] = 256,
    as_json: o.AsJson = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Choose layers to leave out, and tell what that loses on a text that took no part in the choice."""
    from restack.cli import loading, prune

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
    prune.run(source, drop, by, prune.Given(text, held_out, tokens, window), out, as_json=as_json)
