"""The command `restack train`: its options; what it does is in `restack.cli.train`."""

from pathlib import Path
from typing import Annotated

import typer

from restack.cli import options as o


def train(
    model: o.Model,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="What to train on: .txt files, .jsonl files, or datasets of the hub (NAME or NAME:CONFIG).",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Where the run and its model go: not there yet, empty, or an unfinished run of the same "
            "command, which then goes on.",
        ),
    ],
    layers: o.Layers = None,
    ratio: o.Ratio = None,
    kv: o.KvMap = None,
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The key or column to read: text, or messages of a chat. Without: text, or else messages.",
            rich_help_panel="Data",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Of a dataset.", rich_help_panel="Data")] = "train",
    length: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="Of a row; without: 1024, or the model's context if that is shorter.",
            rich_help_panel="Data",
        ),
    ] = None,
    eval_data: Annotated[
        list[str] | None,
        typer.Option(
            "--eval", metavar="DATA", help="What to evaluate on; may be repeated.", rich_help_panel="Data"
        ),
    ] = None,
    eval_share: Annotated[
        float,
        typer.Option(
            help="Without --eval: this share of the rows is kept for evaluation; 0: none.",
            rich_help_panel="Data",
        ),
    ] = 0.05,
    skip_bad_lines: Annotated[
        bool,
        typer.Option("--skip-bad-lines", help="Leave out lines that cannot be used.", rich_help_panel="Data"),
    ] = False,
    steps: Annotated[int | None, typer.Option(help="How long to train.", rich_help_panel="Training")] = None,
    epochs: Annotated[
        float | None,
        typer.Option(help="Or how often to read the data: 1 without --steps.", rich_help_panel="Training"),
    ] = None,
    batch: Annotated[
        int, typer.Option(help="Rows that each process takes at once.", rich_help_panel="Training")
    ] = 8,
    accumulate: Annotated[
        int, typer.Option(help="Batches of a step; saves memory.", rich_help_panel="Training")
    ] = 1,
    lr: Annotated[
        float | None,
        typer.Option(
            help="The highest learning rate; without: 2e-5, with --lora 2e-4.", rich_help_panel="Training"
        ),
    ] = None,
    warmup: Annotated[
        float, typer.Option(help="Share of the steps in which the rate rises.", rich_help_panel="Training")
    ] = 0.03,
    schedule: Annotated[
        str, typer.Option(help="Of the rate after that: cosine or constant.", rich_help_panel="Training")
    ] = "cosine",
    weight_decay: Annotated[
        float | None, typer.Option(help="0.01; with --lora 0.", rich_help_panel="Training")
    ] = None,
    clip: Annotated[float, typer.Option(help="Longest gradient; 0: any.", rich_help_panel="Training")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the order of rows.", rich_help_panel="Training")] = 0,
    bf16: Annotated[
        bool,
        typer.Option("--bf16", help="Compute in bfloat16 (autocast); faster.", rich_help_panel="Training"),
    ] = False,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing",
            help="Compute each visit twice; saves memory.",
            rich_help_panel="Training",
        ),
    ] = False,
    eval_every: Annotated[
        int | None,
        typer.Option(metavar="STEPS", help="A tenth of the run, at most 500.", rich_help_panel="Training"),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(metavar="STEPS", help="A tenth of the run, at most 500.", rich_help_panel="Training"),
    ] = None,
    keep_checkpoints: Annotated[
        bool,
        typer.Option(
            "--keep-checkpoints", help="Leave the last two there at the end.", rich_help_panel="Training"
        ),
    ] = False,
    parallel: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Under torchrun: fsdp shards the model over GPUs, ddp gives each process all of it; "
            "auto is fsdp on GPUs and ddp on CPUs.",
            rich_help_panel="Training",
        ),
    ] = "auto",
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK",
            help="Train adapters of this rank, one a visit; the weights stay.",
            rich_help_panel="LoRA",
        ),
    ] = None,
    lora_visits: Annotated[
        str,
        typer.Option(
            metavar="VISITS",
            help="repeated (those of layers that run more than once; all if none does), all, or a spec: 4:8.",
            rich_help_panel="LoRA",
        ),
    ] = "repeated",
    lora_alpha: Annotated[
        float | None,
        typer.Option(help="Adapters count alpha / rank; without: 2 * rank.", rich_help_panel="LoRA"),
    ] = None,
    dtype: o.Dtype = "auto",
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Train a model or a view of it on text; the same command goes on with a run that was stopped."""
    from restack.training import Training

    settings = Training(
        steps=steps,
        epochs=epochs,
        batch=batch,
        accumulate=accumulate,
        length=length,
        lr=lr,
        warmup=warmup,
        schedule=schedule,
        weight_decay=weight_decay,
        clip=clip,
        seed=seed,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        eval_share=eval_share,
        eval_every=eval_every,
        save_every=save_every,
        keep_checkpoints=keep_checkpoints,
        parallel=parallel,
        lora=lora,
        lora_visits=lora_visits,
        lora_alpha=lora_alpha,
        column=column,
        split=split,
        skip_bad_lines=skip_bad_lines,
    )  # told before the seconds that torch takes
    from restack.cli import loading, train

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
    train.run(source, data, eval_data, out, settings)
