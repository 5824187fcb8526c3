"""`restack generate`: one prompt, one answer; several prompts, a batch."""

import sys
from typing import Any

from restack.chat import Conversation
from restack.chat.programs.terminal import CONTROL
from restack.cli.loading import Source
from restack.cli.text_input import read_all
from restack.errors import UsageError
from restack.runtime import Sampling, generate_all
from restack.runtime import generate as generate_text


def run(
    source: Source,
    prompts: list[str] | None,
    raw: bool,
    system: str | None,
    ai_prefix: str,
    sampling: Sampling,
) -> None:
    """Stream the answer to standard output; of several prompts, print each with its answer."""
    if raw and (system or ai_prefix):
        raise UsageError("--raw continues the prompt as it stands; it takes no --system and no --ai-prefix")
    if not prompts:
        if sys.stdin.isatty():
            raise UsageError("there is no prompt; write --prompt TEXT, or pipe it in")
        prompts = [read_all(sys.stdin)]
    if not all(prompt.strip() for prompt in prompts):
        which = "the prompt" if len(prompts) == 1 else "a prompt"
        raise UsageError(f"{which} is empty; write something to answer")
    base, model, tokenizer = source.load()
    drafter = source.drafter(base, tokenizer)
    conversation = Conversation(
        model, tokenizer, system=system, ai_prefix=ai_prefix, sampling=sampling, drafter=drafter
    )
    if len(prompts) > 1:
        if raw:
            rows = [_tokens(model, tokenizer, prompt) for prompt in prompts]
            answers = generate_all(model, tokenizer, rows, sampling)
        else:
            answers = conversation.ask_all(prompts)
        parts = (f"> {prompt}\n{answer}\n" for prompt, answer in zip(prompts, answers, strict=True))
        write("\n".join(parts))
        return
    if raw:
        tokens = _tokens(model, tokenizer, prompts[0])
        generate_text(model, tokenizer, tokens, sampling, write, drafter=drafter)
    else:
        conversation.ask(prompts[0], lambda piece: write(piece.text))
    print(flush=True)


def _tokens(model: Any, tokenizer: Any, prompt: str) -> Any:
    return tokenizer(prompt, return_tensors="pt")["input_ids"].to(model.device)


def write(text: str) -> None:
    """Show a piece of an answer at once."""
    if sys.stdout.isatty():
        text = text.translate(CONTROL)
    print(text, end="", flush=True)
