"""Answers in the shapes of OpenAI's API."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from restack.runtime import Generated
from restack.runtime.streaming import REPLACEMENT
from restack.serving.scores import TokenScore

FINISH = {"stop": "stop", "length": "length", "context": "length"}


@dataclass(frozen=True, slots=True)
class Shape:
    """One of the two APIs.

    Attributes:
        prefix: of the ids.
        whole, chunk: the `object` of an answer, and of a piece of a stream.
        content: a choice's fields for a whole text.
        opening: a choice's fields before the first piece of a stream; None for none.
        piece: a choice's fields for a piece of text.
        last: a choice's fields at the end of a stream.
        logprobs: of a tokenizer, scores, and how many characters of the answer come before them.
    """

    prefix: str
    whole: str
    chunk: str
    content: Callable[[str], dict[str, Any]]
    opening: dict[str, Any] | None
    piece: Callable[[str], dict[str, Any]]
    last: dict[str, Any]
    logprobs: Callable[[Any, Sequence[TokenScore], int], dict[str, Any]]


def _of_chat(tokenizer: Any, scores: Sequence[TokenScore], offset: int) -> dict[str, Any]:
    def told(token: int, log_probability: float) -> dict[str, Any]:
        text, is_whole = _read(tokenizer, token)
        return {
            "token": text,
            "logprob": log_probability,
            "bytes": list(text.encode()) if is_whole else None,
        }

    content = [
        told(each.token, each.log_probability)
        | {"top_logprobs": [told(token, value) for token, value in each.likeliest]}
        for each in scores
    ]
    return {"content": content, "refusal": None}


def _of_completion(tokenizer: Any, scores: Sequence[TokenScore], offset: int) -> dict[str, Any]:
    tokens = [_text(tokenizer, each.token) for each in scores]
    offsets = [offset + sum(map(len, tokens[:number])) for number in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [each.log_probability for each in scores],
        "top_logprobs": [
            {_text(tokenizer, token): value for token, value in reversed(each.likeliest)}
            | {_text(tokenizer, each.token): each.log_probability}
            for each in scores
        ],
        "text_offset": offsets,
    }


def _read(tokenizer: Any, token: int) -> tuple[str, bool]:
    """The text of a token, or its name where it is part of a character, and whether it is whole."""
    text = str(tokenizer.decode([token]))
    is_whole = REPLACEMENT not in text
    return (text if is_whole else str(tokenizer.convert_ids_to_tokens(token))), is_whole


def _text(tokenizer: Any, token: int) -> str:
    return _read(tokenizer, token)[0]


CHAT = Shape(
    prefix="chatcmpl-",
    whole="chat.completion",
    chunk="chat.completion.chunk",
    content=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    opening={"delta": {"role": "assistant", "content": ""}},
    piece=lambda text: {"delta": {"content": text}},
    last={"delta": {}},
    logprobs=_of_chat,
)
COMPLETION = Shape(
    prefix="cmpl-",
    whole="text_completion",
    chunk="text_completion",
    content=lambda text: {"text": text},
    opening=None,
    piece=lambda text: {"text": text},
    last={"text": ""},
    logprobs=_of_completion,
)


@dataclass(slots=True)
class Choice:
    """What has come of one answer."""

    pieces: list[str] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    written: Generated | None = None


class Answers:
    """The answers to a request, as they come, and what is sent of them."""

    def __init__(
        self, shape: Shape, model: str, tokenizer: Any, prompts: Sequence[int], choices: int, has_logs: bool
    ) -> None:
        """Nothing written yet.

        Args:
            shape: of the API.
            model: its name.
            tokenizer: of the model.
            prompts: how many tokens each prompt has.
            choices: answers to each of them.
            has_logs: whether log probabilities are told.
        """
        self.shape, self.tokenizer, self.prompts, self.has_logs = shape, tokenizer, prompts, has_logs
        self.choices = [Choice() for _ in range(len(prompts) * choices)]
        self._head = {
            "id": f"{shape.prefix}{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }

    @property
    def whole(self) -> dict[str, Any]:
        """All of it, once it has been written."""
        choices = [
            {
                "index": index,
                **self.shape.content("".join(choice.pieces)),
                "logprobs": self._logs(choice.scores, 0),
                "finish_reason": self._finish(choice),
            }
            for index, choice in enumerate(self.choices)
        ]
        return self._head | {"object": self.shape.whole, "choices": choices, "usage": self.usage}

    @property
    def usage(self) -> dict[str, Any]:
        """The tokens of prompts and answers; the cached ones are those that were not read again."""
        written = [choice.written for choice in self.choices if choice.written is not None]
        prompt, answer = sum(self.prompts), sum(len(each.tokens) for each in written)
        firsts = [choice.written for choice in self.choices[:: len(self.choices) // len(self.prompts)]]
        return {
            "prompt_tokens": prompt,
            "completion_tokens": answer,
            "total_tokens": prompt + answer,
            "prompt_tokens_details": {"cached_tokens": sum(each.reused for each in firsts if each)},
        }

    def openings(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        if self.shape.opening is None:
            return []
        return [self._chunk(index, self.shape.opening) for index in range(len(self.choices))]

    def add(self, index: int, text: str, scores: Sequence[TokenScore]) -> dict[str, Any]:
        """Take a piece of an answer; the chunk that tells it."""
        choice = self.choices[index]
        offset = sum(map(len, choice.pieces))
        choice.pieces.append(text)
        choice.scores += scores
        return self._chunk(index, self.shape.piece(text) | {"logprobs": self._logs(scores, offset)})

    def end(self, index: int, written: Generated) -> dict[str, Any]:
        """Take the end of an answer; the chunk that tells it."""
        choice = self.choices[index]
        choice.written = written
        return self._chunk(index, self.shape.last, self._finish(choice))

    def usage_chunk(self) -> dict[str, Any]:
        """The chunk that tells the usage."""
        return self._head | {"object": self.shape.chunk, "choices": [], "usage": self.usage}

    def _chunk(self, index: int, fields: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "logprobs": None, **fields, "finish_reason": finish}
        return self._head | {"object": self.shape.chunk, "choices": [choice]}

    def _logs(self, scores: Sequence[TokenScore], offset: int) -> dict[str, Any] | None:
        return self.shape.logprobs(self.tokenizer, scores, offset) if self.has_logs else None

    @staticmethod
    def _finish(choice: Choice) -> str | None:
        return None if choice.written is None else FINISH[choice.written.finish]
