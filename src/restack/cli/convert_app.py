"""The commands of `restack convert`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from restack.cli import options as o
from restack.plans.pointing import counted

app = typer.Typer(
    help="Make a checkpoint from another: fewer heads, shared keys and values, a plan written out.",
    no_args_is_help=True,
)
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        metavar="DIR",
        callback=o.checked_new_folder,
        help="Where the checkpoint goes: not there yet, or empty. Interrupted, the same command goes on.",
    ),
]
Text = Annotated[
    Path | None,
    typer.Option(
        exists=True, dir_okay=False, readable=True, metavar="FILE", help="What perplexity is measured on."
    ),
]
ShardSize = Annotated[
    str,
    typer.Option("--max-shard-size", metavar="SIZE", callback=o.checked_size, help="Of a file: 5GB, 500MB."),
]


@app.command()
def heads(
    model: o.Model,
    kv_heads: Annotated[
        int, typer.Option("--kv-heads", metavar="G", min=1, help="Heads for keys and values; 1 is MQA.")
    ],
    out: Out,
    pool: Annotated[
        str, typer.Option(metavar="HOW", help="What a group of heads becomes: mean, first or random.")
    ] = "mean",
    seed: Annotated[int, typer.Option(help="Of random heads.")] = 0,
    text: Text = None,
    shard_size: ShardSize = "5GB",
    as_json: o.AsJson = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Pool key and value heads: multi-head attention to grouped (GQA) or multi-query (MQA).

    Reports KV cache and perplexity before and after, measured in --dtype on --device. Then train it on.
    """
    from restack.cli import convert, loading
    from restack.conversion import convert_heads

    source = loading.Source(
        model=model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    largest = o.size_in_bytes(shard_size)
    job = partial(convert_heads, model, kv_heads, out, pool=pool, seed=seed, largest=largest, **source.hub)
    what = f"{counted(kv_heads, 'head')} for keys and values ({pool})"
    convert.run_and_compare(job, source, out, what, text=text, as_json=as_json)


@app.command()
def kv(
    model: o.Model,
    kv_map: Annotated[
        str, typer.Option("--map", metavar="MAP", help="Whose keys and values each visit reads: lckv-w2...")
    ],
    out: Out,
    init: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Layers that are read keep their own, or get the mean of their readers': own or mean.",
        ),
    ] = "own",
    window: Annotated[
        int | None,
        typer.Option(metavar="TOKENS", min=1, help="That sliding visits see, of maps with s such as yoco."),
    ] = None,
    text: Text = None,
    shard_size: ShardSize = "5GB",
    as_json: o.AsJson = False,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Share keys and values between layers: a model of Llama's family to restack-llama under a KV map.

    Reports KV cache and perplexity before and after, measured in --dtype on --device. Then train it on.
    """
    from restack.cli import convert, loading
    from restack.conversion import convert_kv

    source = loading.Source(
        model=model, dtype=dtype, device=device, revision=revision, trust_remote_code=trust_remote_code
    )
    largest = o.size_in_bytes(shard_size)
    job = partial(convert_kv, model, kv_map, out, init=init, window=window, largest=largest, **source.hub)
    what = f"a restack-llama under the KV map {kv_map} ({init})"
    convert.run_and_compare(job, source, out, what, text=text, as_json=as_json)


@app.command()
def meta(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", callback=o.checked_model, help="With params.json and consolidated.*.pth."
        ),
    ],
    out: Out,
    shard_size: ShardSize = "5GB",
) -> None:
    """Make a folder of Meta's one that transformers loads as a Llama."""
    from restack.cli import convert
    from restack.conversion import convert_meta

    convert.run(partial(convert_meta, folder, out, largest=o.size_in_bytes(shard_size)), out)
    convert.tell(out, "a Llama of transformers")


@app.command()
def full(
    model: o.Model,
    out: Out,
    shard_size: ShardSize = "5GB",
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Write a plan out, with the weights of every visit: MODEL@SPEC, a recipe or a mergekit config."""
    from restack.cli import convert, loading
    from restack.conversion import convert_full

    source = loading.Source(model=model, revision=revision, trust_remote_code=trust_remote_code)
    largest = o.size_in_bytes(shard_size)
    convert.run(partial(convert_full, model, out, dtype=dtype, largest=largest, **source.hub), out)
    convert.tell(out, "a checkpoint of all visits")


@app.command()
def fold(
    model: o.Model,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="DIR", callback=o.checked_new_folder, help="Where to save."),
    ],
    block: Annotated[
        str | None,
        typer.Option(metavar="SLICE", help="The layers to fold, as in 4:12; without it, all of them."),
    ] = None,
    loops: Annotated[int, typer.Option(min=2, help="How often the shared layers run.")] = 2,
    init: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="What the shared layers are: average of those that they stand for, stepwise (at even "
            "intervals) or lower (the first ones).",
        ),
    ] = "average",
    rank: Annotated[
        int, typer.Option(min=0, help="Of the LoRA of each visit that makes up for the sharing; 0: none.")
    ] = 16,
    layers: o.Layers = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Fold layers into fewer ones that run in a cycle, with a LoRA for each visit of them."""
    from restack.cli import fold, loading

    source = loading.Source(
        model=model,
        layers=layers,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    fold.run(source, block, loops, init, rank, out)
