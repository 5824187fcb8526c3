"""Options that several commands share, and what can be told of them before anything slow is imported."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from restack import recipes
from restack.cli.places import check_out
from restack.cli.text_input import check_argument
from restack.errors import UsageError

OVERFLOWS = ("stop", "drop", "shift")
FORMATS = ("int8", "int4")
SIZES = {"GB": 10**9, "MB": 10**6, "kB": 10**3, "KB": 10**3, "B": 1}
TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}


def checked_text(option: typer.CallbackParam, text: str | None) -> str | None:
    if text is not None:
        check_argument(text, option.opts[0])
    return text


def _checked_texts(option: typer.CallbackParam, texts: list[str] | None) -> list[str] | None:
    for text in texts or ():
        check_argument(text, option.opts[0])
    return texts


def checked_model(model: str) -> str:
    recipes.check_location(recipes.parse_reference(model))
    return model


def checked_new_folder(folder: Path) -> Path:
    recipes.check_new_folder(folder)
    return folder.expanduser()


def checked_size(size: str) -> str:
    size_in_bytes(size)
    return size


def size_in_bytes(size: str) -> int:
    """What 5GB, 500MB, 20kB or a bare number of bytes says, in powers of 1000 as transformers has it.

    Raises:
        UsageError: it is none of these, or nothing.
    """
    found = re.fullmatch(r"([0-9]+)(GB|MB|kB|KB|B)?", size, re.ASCII)
    count = int(found[1]) * SIZES[found[2] or "B"] if found else 0
    if not count:
        raise UsageError(f"{size!r} is no size; write 5GB, 500MB or a number of bytes")
    return count


def _one_of(option: str, choices: Sequence[str]) -> Callable[[str | None], str | None]:
    """What refuses any other value of an option."""

    def checked(value: str | None) -> str | None:
        if value is not None and value not in choices:
            raise UsageError(f"{option} is {value!r}; write one of {', '.join(choices)}")
        return value

    return checked


def _checked_session(file: Path | None) -> Path | None:
    if file is not None and not file.expanduser().is_file():
        raise UsageError(f"there is no session {file}; /save FILE keeps one")
    return file


def _checked_out(out: Path) -> Path:
    check_out(out)
    return out


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        callback=checked_model,
        help="A folder (Meta's own layout too), a hub id, a mergekit config (.yaml) or [bold]demo[/], the "
        "built-in model (./demo is a folder of that name); MODEL@SPEC is a view of it.",
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        "--layers",
        "--layer_spec",
        "--layer-spec",
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
        metavar="DTYPE",
        callback=lambda name: TORCH_NAMES.get(name, name),
        help="auto (as stored), float32, bfloat16 or float16; fp32, bf16 and fp16 too.",
        rich_help_panel="Model",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        callback=_one_of("--quantize", FORMATS),
        help="Pack the weights with 8 or 4 bits when they have been loaded: int8 or int4.",
        rich_help_panel="Model",
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="@SPEC",
        help="Draft tokens with this view of the model, or with another model: the same text, sooner.",
        rich_help_panel="Model",
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="On a GPU: compile steps of decoding. It takes a minute, and then tokens come sooner.",
        rich_help_panel="Model",
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
    typer.Option(
        "--system",
        "-s",
        metavar="TEXT",
        callback=checked_text,
        help="The system prompt.",
        rich_help_panel="Conversation",
    ),
]
AiPrefix = Annotated[
    str,
    typer.Option(
        "--ai-prefix",
        "--ai_prefix",
        metavar="TEXT",
        callback=checked_text,
        help=r"Every answer begins with this text; \n is a newline.",
        rich_help_panel="Conversation",
    ),
]
ReversedRole = Annotated[
    bool,
    typer.Option(
        "--reversed-role",
        "--reversed_role",
        help="It plays the user and begins; you play the assistant.",
        rich_help_panel="Conversation",
    ),
]
Overflow = Annotated[
    str,
    typer.Option(
        metavar="WHAT",
        callback=_one_of("--overflow", OVERFLOWS),
        help="When the context is full: stop; drop the oldest turns; or shift: leave out the oldest tokens, "
        "but not the first few, the attention sinks.",
        rich_help_panel="Conversation",
    ),
]
Load = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=_checked_session,
        help="A conversation that /save kept, to go on with; its prompts and sampling are as they were.",
        rich_help_panel="Conversation",
    ),
]
HideThoughts = Annotated[
    bool,
    typer.Option("--hide-thoughts", help="Do not show what it thinks.", rich_help_panel="Conversation"),
]
ThoughtTags = Annotated[
    tuple[str, str] | None,
    typer.Option(
        "--thought-tags",
        "--thought_tags",
        metavar="BEGIN END",
        help="What a thought stands between; without: <think> </think>, or those of the model's template.",
        rich_help_panel="Conversation",
    ),
]
Prompts = Annotated[
    list[str] | None,
    typer.Option(
        "--prompt",
        "-p",
        metavar="TEXT",
        callback=_checked_texts,
        help="The prompt; standard input without it. Several, each with its own --prompt, are a batch.",
    ),
]
NewFolder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER", callback=checked_new_folder, help="Where to save; not there yet, or empty."
    ),
]
Weights = Annotated[
    str,
    typer.Option(
        metavar="WHICH",
        callback=_one_of("--weights", recipes.WEIGHTS),
        help="none: a recipe, which names its base; shared: each visited layer once, and the plan; "
        "full: a self-merged checkpoint that loads without Restack (but for models of restack-llama).",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Out = Annotated[Path, typer.Option(metavar="FOLDER", callback=_checked_out, help="Where the picture goes.")]
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
        "--max-tokens",
        "--max-new-tokens",
        "--max_new_tokens",
        "--max_length",
        help="Of an answer.",
        rich_help_panel="Sampling",
    ),
]


def unescaped(text: str) -> str:
    r"""`text` with \n, \t and \\ for what they stand for, as chatllm.cpp reads a prefix."""
    return re.sub(r"\\([nt\\])", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}[found[1]], text)
