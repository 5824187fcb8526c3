"""The options of `restack serve`."""

from pathlib import Path
from typing import Annotated

import typer

from restack.cli import options as o


def serve(
    model: o.Model,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SPEC", help="A view of the model, served under this name; may be repeated."
        ),
    ] = None,
    scan: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A scan of the model, for the playground to open as a heat map."),
    ] = None,
    fixed_plans: Annotated[
        bool, typer.Option("--fixed-plans", help="Refuse requests for MODEL@SPEC with other plans.")
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(metavar="KEY", envvar="RESTACK_API_KEY", help="Ask requests for this key."),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Answers that are written at once.")] = 8,
    queue: Annotated[int, typer.Option(min=0, help="Answers that may wait; more are refused (429).")] = 64,
    kept: Annotated[
        str,
        typer.Option(
            metavar="SIZE",
            callback=o.checked_size,
            help="Memory for keys and values of conversations between their turns.",
        ),
    ] = "1GB",
    dtype: o.Dtype = "auto",
    quantize: o.Quantize = None,
    is_compiled: o.Compile = False,
    device: o.Device = "cpu",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Serve a model and its views to OpenAI's clients, on one set of weights."""
    from restack.cli import serve

    serve.run(
        model,
        serve.named_plans(plan or ()),
        scan_folder=scan,
        has_fixed_plans=fixed_plans,
        api_key=api_key,
        host=host,
        port=port,
        slots=slots,
        queue=queue,
        kept_bytes=o.size_in_bytes(kept),
        quantize=quantize,
        is_compiled=is_compiled,
        dtype=dtype,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
