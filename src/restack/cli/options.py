"""Options that several commands share."""

import re
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A folder, a hub id or [bold]demo[/]; MODEL@SPEC is a view of it."),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        "--layer_spec",
        metavar="SPEC",
        help="The layers to run, in order: 0:8,4:12 or 0:10,10:20:2,20: or (45,52) or a mergekit YAML file.",
        rich_help_panel="Plan",
    ),
]
Ratio = Annotated[
    str | None,
    typer.Option(
        metavar="RANGES",
        help="Depth ranges to run, 0 the first layer, 1 the last: 0:0.5,0.3:0.8,0.5:1 (David's).",
        rich_help_panel="Plan",
    ),
]
KvMap = Annotated[
    str | None,
    typer.Option(
        "--kv",
        metavar="MAP",
        help="Whose keys and values each visit reads: 0_0_2_2, or cla2, yoco, lckv-w2...",
        rich_help_panel="Plan",
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        metavar="DTYPE", help="auto (as stored), float32, bfloat16 or float16.", rich_help_panel="Model"
    ),
]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, mps.", rich_help_panel="Model")
]
Revision = Annotated[
    str | None,
    typer.Option(metavar="REV", help="Branch, tag or commit of a model on the hub.", rich_help_panel="Model"),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run code that comes with the model.", rich_help_panel="Model"),
]
System = Annotated[
    str | None,
    typer.Option("--system", "-s", metavar="TEXT", help="The system prompt.", rich_help_panel="Conversation"),
]
AiPrefix = Annotated[
    str,
    typer.Option(
        "--ai-prefix",
        "--ai_prefix",
        metavar="TEXT",
        help=r"Every answer begins with this text; \n is a newline.",
        rich_help_panel="Conversation",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", "--temp", help="0 takes the likeliest token.", rich_help_panel="Sampling"),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", "--top_p", help="Sample from this much probability.", rich_help_panel="Sampling"),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k", "--top_k", help="Sample from this many tokens; 0: all.", rich_help_panel="Sampling"
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty",
        "--repeat_penalty",
        help="Above 1: say the same less often.",
        rich_help_panel="Sampling",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Of the random numbers.", rich_help_panel="Sampling")]
MaxTokens = Annotated[
    int,
    typer.Option(
        "--max-tokens", "--max_new_tokens", "--max_length", help="Of an answer.", rich_help_panel="Sampling"
    ),
]


def unescaped(text: str) -> str:
    r"""`text` with \n, \t and \\ for what they stand for, as chatllm.cpp reads a prefix."""
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[1]], text)
