"""Questions in a file, one JSON object a line, and the tokens that they come to."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from restack.errors import UsageError
from restack.scanning.probe import Row

ASKED = ("question", "prompt")


def read_questions(path: Path, keys: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions in a file: where each stands, and what it says.

    A `question` is put by the tokenizer's chat template, if it has one, after a `system` prompt if there is
    one; a `prompt` stands as it is.

    Args:
        path: of a file of JSON lines; empty lines are passed over.
        keys: that a question may have beside those.

    Raises:
        UsageError: the file cannot be read, holds no question, or a line is none; the message names it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines breaks JSON at U+2028
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}; name a JSONL file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 at byte {error.start}; convert it") from None
    if not any(line.strip() for line in lines):
        raise UsageError(f"{path} holds no questions; write a JSON object a line")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _question(line, where, {*keys, *ASKED, "system"})


def text_of(said: dict[str, Any], key: str, where: str) -> str:
    """A text that a question must have.

    Raises:
        UsageError: it has none.
    """
    value = said.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{where}: {key} is {value!r:.60}; write a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: {key} has half a character at {error.start}; write it whole") from None
    return value


def prompt_of(tokenizer: Any, said: dict[str, Any], where: str) -> tuple[str, bool]:
    """What a model is given to answer, and whether the tokenizer is to put its special tokens before it."""
    asked = [key for key in ASKED if key in said]
    if len(asked) != 1:
        raise UsageError(f"{where}: write a question (for the chat template) or a prompt (as it stands)")
    text = text_of(said, asked[0], where)
    if asked == ["prompt"] or not getattr(tokenizer, "chat_template", None):
        return text, True
    system = text_of(said, "system", where) if said.get("system") else ""
    asked_for = {"role": "user", "content": text}
    if not system:
        return _templated(tokenizer, [asked_for], where), False
    try:
        return _templated(tokenizer, [{"role": "system", "content": system}, asked_for], where), False
    except UsageError:  # a template without such a role
        return _templated(tokenizer, [{"role": "user", "content": f"{system}\n\n{text}"}], where), False


def _templated(tokenizer: Any, messages: list[dict[str, str]], where: str) -> str:
    """A conversation as the model is given it, without thoughts before the answer."""
    try:
        options = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return str(tokenizer.apply_chat_template(messages, **options))
    except Exception as error:  # of a template's own making
        raise UsageError(f"{where}: the chat template refuses it: {error}; write a prompt instead") from None


def continued(tokenizer: Any, prompt: tuple[str, bool], text: str, ends: bool = False) -> Row:
    """A prompt and the text that is to follow it, tokenized together: the tokens of the text are the targets.

    Args:
        tokenizer: of the model.
        prompt: of `prompt_of`.
        text: that follows.
        ends: the token that ends a text follows it too.
    """
    before, special = prompt
    alone = tokenizer(before, add_special_tokens=special, verbose=False)["input_ids"]
    both = tokenizer(before + text, add_special_tokens=special, verbose=False)["input_ids"]
    same = next(
        (n for n, pair in enumerate(zip(alone, both, strict=False)) if len(set(pair)) > 1), len(alone)
    )
    if ends:
        both = [*both, tokenizer.eos_token_id]
    start = max(1, min(same, len(both) - 1))
    return Row(tuple(both), len(both) - start)


def check_length(row: Row, context: int | None, where: str) -> Row:
    """The row, if it fits into the model's context.

    Raises:
        UsageError: it does not.
    """
    if context is not None and len(row.tokens) > context:
        raise UsageError(
            f"{where} has {len(row.tokens)} tokens, and the model's context is {context}; shorten it"
        )
    return row


def _question(line: str, where: str, keys: Collection[str]) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: no JSON ({error}); write an object a line") from None
    if not isinstance(said, dict):
        raise UsageError(f"{where}: {said!r:.60} is no JSON object; write one as in {{...}}")
    if others := sorted(said.keys() - keys):
        raise UsageError(f"{where}: there is no {others[0]!r:.60}; the keys are {', '.join(sorted(keys))}")
    return said
