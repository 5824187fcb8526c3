"""The options of `restack vllm-args`."""

from typing import Annotated

import typer

from restack.cli import options as o


def vllm_args(
    model: o.Model,
    layers: o.Layers = None,
    ratio: o.Ratio = None,
    kv: o.KvMap = None,
    transformers_backend: Annotated[
        bool,
        typer.Option(
            "--transformers", help="Run transformers' class of the model, where vLLM has its own too."
        ),
    ] = False,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print keyword arguments of vllm.LLM instead.")
    ] = False,
) -> None:
    """What to give `vllm serve` so that it runs a view: restack vllm-args MODEL@SPEC | xargs vllm serve"""
    from restack.cli import loading, vllm_args

    source = loading.Source(
        model=model,
        layers=layers,
        ratio=ratio,
        kv=kv,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    vllm_args.run(source, transformers_backend, as_json)
