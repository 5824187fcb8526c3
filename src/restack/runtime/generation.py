"""Streamed generation: transformers' `generate`, with a decoding loop of our own where it can be leaner."""

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from transformers.generation.stopping_criteria import (
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from restack.errors import UsageError
from restack.runtime.decoding import Company, Drafter, Pausing, decode, draws_one_by_one, is_assisted
from restack.runtime.prompt_cache import PromptCache, Reuse
from restack.runtime.static_cache import is_static
from restack.runtime.streaming import TextStream, text_of

FINEST = 1e-6  # dividing logits by much less than this gives infinities, of which no token can be drawn


class ContextFull(UsageError):
    """The prompt alone fills the model's context."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; None leaves a setting to the model's own generation config.

    Attributes:
        temperature: 0 takes the likeliest token; above, the logits are divided by it.
        top_p: sample from the likeliest tokens that together hold this much probability.
        top_k: sample from this many likeliest tokens; 0 from all.
        repetition_penalty: above 1, tokens that were said before are less likely (Keskar et al. 2019, CTRL).
        max_tokens: at most this many new tokens.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_tokens: int = 512

    def __post_init__(self) -> None:
        temperature, penalty = self.temperature, self.repetition_penalty
        checks = (
            (
                temperature in (None, 0) or FINEST <= temperature < math.inf,
                f"temperature {temperature}: write 0, or a number from {FINEST:f} up",
            ),
            (
                self.top_p is None or 0 < self.top_p <= 1,
                f"top-p {self.top_p}: write a number above 0, at most 1",
            ),
            (self.top_k is None or self.top_k >= 0, f"top-k {self.top_k}: write 0 or more"),
            (
                penalty is None or FINEST <= penalty < math.inf,
                f"repetition penalty {penalty}: write a number from {FINEST:f} up; 1 changes nothing",
            ),
            (self.max_tokens >= 1, f"max tokens {self.max_tokens}: write 1 or more"),
        )
        for fine, wrong in checks:
            if not fine:
                raise UsageError(wrong)

    def settings(self) -> dict[str, Any]:
        """The keyword arguments of transformers' `generate`."""
        given = {"top_p": self.top_p, "top_k": self.top_k, "repetition_penalty": self.repetition_penalty}
        settings = {name: value for name, value in given.items() if value is not None}
        if self.temperature == 0:
            return {"do_sample": False} | {k: v for k, v in settings.items() if k == "repetition_penalty"}
        if self.temperature is not None:
            settings["temperature"] = self.temperature
        if settings.keys() - {"repetition_penalty"}:
            settings["do_sample"] = True
        return settings


def context_length(config: Any) -> int | None:
    """How many tokens a model has positions for; None where its config names no limit (XLNet's says -1)."""
    length = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return length if length is not None and length > 0 else None


def check_room(model: Any, tokens: torch.Tensor) -> int | None:
    """How many tokens fit into the model's context after a prompt, shape (1, tokens); None without a limit.

    Raises:
        ContextFull: none does.
    """
    prompt, context = tokens.shape[1], context_length(model.config)
    if context is None:
        return None
    if prompt >= context:
        raise ContextFull(f"the prompt has {prompt} tokens and the model's context is {context}; shorten it")
    return context - prompt


@dataclass(frozen=True, slots=True)
class Generated:
    """What `generate` wrote.

    Attributes:
        text: without the string that stopped it.
        tokens: that were generated, the last one included.
        finish: why it ended: "stop" (the model ended it, or a stop string was found), "length" (max_tokens)
            or "context" (there was no room for more).
        read: how many tokens of the prompt went through the model.
        reused: how many of them did not, since their keys and values were kept.
        first_visit: from which visit on the model read those reused, which another view had read; None where
            it had read them itself.
        reason: why those before had to be read again, where they had been kept; "" otherwise.
        first_token_seconds: until the first token was there.
        seconds: until the last one was.
    """

    text: str
    tokens: tuple[int, ...]
    finish: str
    read: int
    reused: int
    first_visit: int | None
    reason: str
    first_token_seconds: float
    seconds: float


def generate(
    model: Any,
    tokenizer: Any,
    tokens: torch.Tensor,
    sampling: Sampling,
    on_text: Callable[[str], None] = lambda text: None,
    /,
    *,
    stop: Sequence[str] = (),
    prompt_cache: PromptCache | None = None,
    drafter: Drafter | None = None,
    follows: int = 0,
    shown: Collection[int] = (),
    company: Company | None = None,
    **options: Any,
) -> Generated:
    """The text that the model writes after a prompt; `on_text` gets each piece as soon as it is whole.

    Args:
        model: a causal language model of transformers, or a view of one.
        tokenizer: its tokenizer.
        tokens: the prompt, shape (1, tokens).
        sampling: how tokens are chosen.
        on_text: called with pieces of text that together are the text.
        stop: the text ends before the first of these strings; transformers keeps the string itself.
        prompt_cache: holds what the model has read before, and then this; the prompt's beginning is not read
            again.
        drafter: drafts tokens that the model checks, several in a pass: the text is the model's all the same.
            Where our own loop cannot run the two, transformers' assisted generation does it, without what the
            prompt cache holds.
        follows: how many tokens at the end of the prompt the text follows within a sentence; the tokenizers
            that leave out the blank before a first word keep it then.
        shown: special tokens that are part of the text.
        company: others who write at the same time. They go on after each token; where our own loop runs the
            model, also between the pieces in which a long prompt is read then, and steps are run together.
        options: more keyword arguments of transformers' `generate`.

    Raises:
        ContextFull: the prompt alone fills the model's context.
    """
    start = perf_counter()
    prompt = tokens[0].tolist()
    room = check_room(model, tokens)
    limit = sampling.max_tokens if room is None else min(sampling.max_tokens, room)
    before = prompt[len(prompt) - follows :]
    stream = TextStream(tokenizer, on_text, stop=stop, before=before, shown=shown)
    if drafter is not None and is_assisted(model, drafter):
        options["assistant_model"], prompt_cache = drafter.model, None
    is_one_by_one = draws_one_by_one(model, options)
    if is_static(model) and not is_one_by_one:
        prompt_cache = None
    reading = nullcontext(Reuse(None)) if prompt_cache is None else prompt_cache.reading(model, prompt)
    with reading as reuse:
        if reuse.cache is not None:
            options["past_key_values"] = reuse.cache
        if reuse.cache is not None or (is_one_by_one and is_static(model)):
            options["cache_implementation"] = None  # one is enough; `decode` takes a static one by itself
        if is_one_by_one:
            options["custom_generate"] = partial(decode, stream=stream, drafter=drafter, company=company)
        further = options.pop("stopping_criteria", ())
        if stop:
            further = (*further, _Stopped(stream))
        if company is not None and "custom_generate" not in options:
            further = (*further, Pausing(company))
        try:
            model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=limit,
                streamer=stream,
                stopping_criteria=StoppingCriteriaList(further),
                **sampling.settings(),
                **options,
            )
        finally:
            reuse.read += stream.tokens
    end = perf_counter()
    return Generated(
        text=stream.text,
        tokens=tuple(stream.tokens),
        finish=_finish(model, stream, limit, room),
        read=len(prompt) - reuse.tokens,
        reused=reuse.tokens,
        first_visit=reuse.first_visit,
        reason=reuse.reason,
        first_token_seconds=(stream.first_token_at or end) - start,
        seconds=end - start,
    )


def _finish(model: Any, stream: TextStream, limit: int, room: int | None) -> str:
    """Why a text ended."""
    if stream.is_stopped or len(stream.tokens) < limit or stream.tokens[-1] in _ends(model):
        return "stop"
    return "context" if limit == room else "length"


def generate_all(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[torch.Tensor],
    sampling: Sampling,
    /,
    *,
    stop: Sequence[str] = (),
    follows: int = 0,
    shown: Collection[int] = (),
    **options: Any,
) -> list[str]:
    """The texts that the model writes after several prompts, which may differ in length, in one batch.

    Without sampling (temperature 0), each is what `generate` gives for its prompt alone, but for rounding.
    Arguments and errors are those of `generate`; each prompt has the shape (1, tokens).
    """
    lengths = [prompt.shape[1] for prompt in prompts]
    rooms = [check_room(model, prompt) for prompt in prompts]
    if len(prompts) == 1 or any(room is not None and room < sampling.max_tokens for room in rooms):
        # In one batch, all answers would end where the longest prompt's fills the context.
        return [generate(model, tokenizer, each, sampling, stop=stop, **options).text for each in prompts]
    width = max(lengths)
    # Padding comes first and is not seen; it is a token that the row has, or penalties would be others.
    rows = [torch.cat([row[:, :1].expand(1, width - row.shape[1]), row], dim=1) for row in prompts]
    mask = torch.tensor([[0] * (width - length) + [1] * length for length in lengths])
    tokens = torch.cat(rows)
    if draws_one_by_one(model, options):
        options["custom_generate"] = decode
        if is_static(model):
            options["cache_implementation"] = None
    output = model.generate(
        tokens,
        attention_mask=mask.to(tokens.device),
        max_new_tokens=sampling.max_tokens,
        stopping_criteria=_criteria(tokenizer, stop, options.pop("stopping_criteria", ())),
        **sampling.settings(),
        **options,
    )
    ends = _ends(model)
    texts = []
    for row in output.tolist():
        before, row = row[width - follows : width], row[width:]
        length = next((number for number, token in enumerate(row, start=1) if token in ends), len(row))
        text = text_of(tokenizer, row[:length], before=before, shown=shown)
        texts.append(text[: _end(text, stop)])
    return texts


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    """Ends a text where a stop string was found in it.

    transformers' own looks at all tokens of the vocabulary first, which takes seconds with a large one.
    """

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full(
            (len(input_ids),), self._stream.is_stopped, dtype=torch.bool, device=input_ids.device
        )


def _criteria(tokenizer: Any, stop: Sequence[str], further: Sequence[Any]) -> StoppingCriteriaList:
    """What ends a text besides the model and its length."""
    strings = [StopStringCriteria(tokenizer, list(stop))] if stop else []
    return StoppingCriteriaList([*strings, *further])


def _ends(model: Any) -> set[int]:
    """The tokens that end a text; rows of a batch that have ended are filled up behind them."""
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _end(text: str, stop: Sequence[str]) -> int:
    """Where the first of the stop strings begins, or the text ends."""
    return min((at for string in stop if (at := text.find(string)) >= 0), default=len(text))
