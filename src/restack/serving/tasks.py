"""From a request to the answers that are to be written."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

import torch

from restack.chat import Message as Said
from restack.chat.speech import FOLLOWS
from restack.chat.template import ChatTemplate
from restack.chat.thoughts import special_tokens, tags_of
from restack.errors import UsageError
from restack.runtime import Sampling, check_room
from restack.serving.catalogue import Served
from restack.serving.requests import ChatRequest, CompletionRequest, Message
from restack.serving.scores import TokenScore
from restack.serving.writing import Task

USUAL = 16  # tokens of a completion, if nothing is said
WITHOUT_CONTEXT = 512  # tokens of an answer that nothing else limits
Hear = Callable[[int, str, list[TokenScore]], None]


def chat_tasks(request: ChatRequest, served: Served, hear: Hear) -> list[Task]:
    """The answers to a conversation; where an assistant's message is the last, they go on with it.

    Raises:
        UsageError: the chat template refuses the conversation, or there is no room for an answer.
    """
    *history, last = request.messages
    begun = last.text if last.role == "assistant" else ""
    messages = history if last.role == "assistant" else request.messages
    if not messages:
        raise UsageError("messages: there is nothing before the assistant's message; begin with a user's")
    template = ChatTemplate(served.tokenizer)
    text = template.opened([Said.of(_role(each), each.text) for each in messages], begun=begun)
    tokens: list[int] = served.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    stops = (*request.stops, *template.stops("assistant"))
    return _tasks(request, served, [tokens], stops, hear, usual=None, follows=bool(begun))


def completion_tasks(request: CompletionRequest, served: Served, hear: Hear) -> list[Task]:
    """The continuations of prompts.

    Raises:
        UsageError: a prompt has no tokens, or others than the model's, or there is no room for an answer.
    """
    vocabulary = served.model.config.get_text_config(decoder=True).vocab_size
    prompts = []
    for prompt in request.prompts:
        tokens = served.tokenizer(prompt, verbose=False)["input_ids"] if isinstance(prompt, str) else prompt
        if not tokens:
            raise UsageError("a prompt has no tokens; write something")
        if not all(0 <= token < vocabulary for token in tokens):
            raise UsageError(
                f"a prompt has tokens past the model's {vocabulary}; write 0 to {vocabulary - 1}"
            )
        prompts.append(list(tokens))
    return _tasks(request, served, prompts, request.stops, hear, usual=USUAL, follows=True)


def _tasks(
    request: ChatRequest | CompletionRequest,
    served: Served,
    prompts: Sequence[list[int]],
    stops: Sequence[str],
    hear: Hear,
    *,
    usual: int | None,
    follows: bool,
) -> list[Task]:
    """As many answers to each prompt as are asked for, each with a seed of its own."""
    first = secrets.randbits(62) if request.seed is None else request.seed
    limits = [_limit(request.limit, usual, served.model, prompt) for prompt in prompts]
    shown = frozenset(special_tokens(tags_of(served.tokenizer), served.tokenizer))
    vocabulary = served.model.config.get_text_config(decoder=True).vocab_size
    bias = {int(token): value for token, value in request.logit_bias.items()}
    if any(token >= vocabulary for token in bias):
        raise UsageError(f"logit_bias names token {max(bias)} and the model has {vocabulary}")
    return [
        Task(
            served=served,
            prompt=prompts[number // request.n],
            sampling=_sampling(request, served.model, limits[number // request.n]),
            seed=(first + number) % 2**63,
            on_piece=lambda text, scores, number=number: hear(number, text, scores),  # type: ignore[misc]
            stop=tuple(stops),
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
            bias=bias,
            likeliest=request.likeliest,
            ignores_end=request.ignore_eos,
            follows=min(FOLLOWS, len(prompts[number // request.n])) if follows else 0,
            shown=shown,
        )
        for number in range(len(prompts) * request.n)
    ]


def _role(message: Message) -> str:
    """OpenAI's name for a system prompt of the one who built the program is not one that templates know."""
    return "system" if message.role == "developer" else message.role


def _limit(asked: int | None, usual: int | None, model: Any, prompt: list[int]) -> int:
    """How many tokens an answer may have: as asked for, or so many usually, or what there is room for."""
    room = check_room(model, torch.tensor([prompt]))
    if asked is None:
        wanted = usual or room or WITHOUT_CONTEXT
        return wanted if room is None else min(wanted, room)
    if room is not None and asked > room:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens and max_tokens is {asked}, and the model's context is "
            f"{len(prompt) + room}; shorten the prompt, or ask for {room} at most"
        )
    return asked


def _sampling(request: ChatRequest | CompletionRequest, model: Any, limit: int) -> Sampling:
    """How tokens are chosen: as asked for, else as the model's own config says, else as OpenAI does."""
    own = model.generation_config

    def first(*values: Any) -> Any:
        return next(value for value in values if value is not None)

    return Sampling(
        temperature=first(request.temperature, own.temperature, 1.0),
        top_p=first(request.top_p, own.top_p, 1.0),
        top_k=first(request.top_k, own.top_k, 0),
        max_tokens=limit,
    )
