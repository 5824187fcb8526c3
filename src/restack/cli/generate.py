"""`restack generate`: one prompt, one answer."""

import sys

from restack.chat import Conversation
from restack.cli.loading import Source
from restack.cli.text_input import read_all
from restack.errors import UsageError
from restack.runtime import Sampling
from restack.runtime import generate as generate_text


def run(
    source: Source, prompt: str | None, raw: bool, system: str | None, ai_prefix: str, sampling: Sampling
) -> None:
    """Stream the answer to standard output."""
    if raw and (system or ai_prefix):
        raise UsageError("--raw continues the prompt as it stands; it takes no --system and no --ai-prefix")
    if prompt is None:
        if sys.stdin.isatty():
            raise UsageError("there is no prompt; write --prompt TEXT, or pipe it in")
        prompt = read_all(sys.stdin)
    if not prompt.strip():
        raise UsageError("the prompt is empty; write something to answer")
    _, model, tokenizer = source.load()
    if raw:
        tokens = tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)
        generate_text(model, tokenizer, tokens, sampling, write)
    else:
        Conversation(model, tokenizer, system=system, ai_prefix=ai_prefix, sampling=sampling).ask(
            prompt, write
        )
    print(flush=True)


# Control characters, but for the end of a line and the tab: a model must not steer the terminal with them.
CONTROL = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})


def write(text: str) -> None:
    """Show a piece of an answer at once."""
    if sys.stdout.isatty():
        text = text.translate(CONTROL)
    print(text, end="", flush=True)
