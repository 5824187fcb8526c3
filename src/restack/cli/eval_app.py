"""The command `restack eval`: its options; what it does is in `restack.cli.evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from restack.cli import options as o

PANEL = "Tasks"


def evaluate(
    model: o.Model,
    tasks: Annotated[
        list[str],
        typer.Option(
            "--tasks",
            "-t",
            metavar="NAMES",
            help="lm-eval's tasks, groups and tags, by name with commas between; or .yaml files of your own.",
        ),
    ],
    layers: o.Layers = None,
    ratio: o.Ratio = None,
    kv: o.KvMap = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            "--include-path",
            "--include_path",
            metavar="DIR",
            help="A folder with task files of your own, to be named by their tasks.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(
            "--num-fewshot",
            "--num_fewshot",
            metavar="N",
            help="Examples before each question; without: as each task has it. Tasks that say 0 keep it.",
            rich_help_panel=PANEL,
        ),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            metavar="N", help="Questions of each task; below 1 a share of them.", rich_help_panel=PANEL
        ),
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option(
            "--batch-size",
            "--batch_size",
            metavar="N",
            help="Requests at once; auto: as many as fit.",
            rich_help_panel=PANEL,
        ),
    ] = "1",
    apply_chat_template: Annotated[
        bool,
        typer.Option(
            "--apply-chat-template",
            "--apply_chat_template",
            help="Ask as in a chat.",
            rich_help_panel=PANEL,
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(help="Of all random numbers; without: lm-eval's own.", rich_help_panel=PANEL),
    ] = None,
    confirm_run_unsafe_code: Annotated[
        bool,
        typer.Option(
            "--confirm-run-unsafe-code",
            "--confirm_run_unsafe_code",
            help="Run code that the model writes, where a task does so.",
            rich_help_panel=PANEL,
        ),
    ] = False,
    as_json: o.AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the JSON into this file.")
    ] = None,
    dtype: o.Dtype = "auto",
    quantize: o.Quantize = None,
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Put lm-evaluation-harness's tasks to a model or a view of it."""
    from restack.cli import evaluate as command

    wanted = command.Wanted(
        tasks=command.split(tasks),
        include_path=include_path,
        num_fewshot=num_fewshot,
        limit=limit,
        batch_size=command.batch_size(batch_size),
        apply_chat_template=apply_chat_template,
        seed=seed,
        confirm_run_unsafe_code=confirm_run_unsafe_code,
        out=out,
    )  # told before the seconds that torch takes
    asked = command.find(wanted)
    from restack.cli import loading

    source = loading.Source(
        model=model,
        layers=layers,
        ratio=ratio,
        kv=kv,
        dtype=dtype,
        quantize=quantize,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    command.run(source, wanted, asked, as_json=as_json)
