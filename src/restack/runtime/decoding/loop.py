"""The loop that draws a token at a time, put into transformers' `generate` by its `custom_generate`."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Protocol

import torch
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache
from transformers.generation import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import logits_process as processors
from transformers.generation.streamers import BaseStreamer

from restack.runtime.decoding.pace import Pace
from restack.runtime.decoding.routes import route
from restack.runtime.decoding.speculation import Drafter, Speculation
from restack.runtime.decoding.stepper import FEW, ROOM, Stepper
from restack.runtime.decoding.structure import Structure, structure
from restack.runtime.decoding.together import Step
from restack.runtime.native import Kernel, quiet_kernel
from restack.runtime.static_cache import in_static_memory
from restack.views.recording import Recording, recordings_here

# What depends on nothing but the tokens and the scores: a draft may ask in any order.
PROCESSORS = (
    processors.MinLengthLogitsProcessor,
    processors.MinNewTokensLengthLogitsProcessor,
    processors.MinPLogitsWarper,
    processors.NoRepeatNGramLogitsProcessor,
    processors.RepetitionPenaltyLogitsProcessor,
    processors.SuppressTokensLogitsProcessor,
    processors.TemperatureLogitsWarper,
    processors.TopKLogitsWarper,
    processors.TopPLogitsWarper,
    processors.TypicalLogitsWarper,
)
# What transformers may hand to a decoding method, and the loop takes into account.
UNDERSTOOD = (
    "attention_mask", "cache_position", "logits_to_keep", "past_key_values", "position_ids", "use_cache",
)  # fmt: skip
PIECE = 256  # tokens of prompts that are read at a time: enough for the speed, few for memory and who waits
QUICK = (4, 8, 16)  # bits of weights with which the kernel reads prompts: in float32 torch does it faster
MODES = ("greedy_search", "sample")
EXTRAS = (
    "return_dict_in_generate",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
    "prefill_chunk_size",
)


class Company(Protocol):
    """Others who write texts at the same time, in other threads."""

    def between(self) -> None:
        """Let them go on meanwhile. What it raises ends the text."""

    def run(self, step: Step) -> torch.Tensor:
        """Run a step, maybe together with theirs: its logits. What it raises ends the text."""


class Pausing(StoppingCriteria):  # type: ignore[misc]
    """Lets others go on after each token, and ends no text."""

    def __init__(self, company: Company) -> None:
        self._company = company

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._company.between()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def draws_one_by_one(model: Any, options: Mapping[str, Any]) -> bool:
    """Whether `generate` with these keyword arguments draws token after token, as `decode` does: no beams."""
    settings = copy.deepcopy(options.get("generation_config") or model.generation_config)
    settings.update(**{name: value for name, value in options.items() if name != "generation_config"})
    is_other = "custom_generate" in options or settings.stop_strings
    return not is_other and settings.get_generation_mode(options.get("assistant_model")) in MODES


def decode(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: Any,
    stream: BaseStreamer | None = None,
    drafter: Drafter | None = None,
    company: Company | None = None,
    **model_kwargs: Any,
) -> torch.Tensor:
    """Draw tokens until all texts have ended: all tokens, shape (B, T), filled up behind the ends.

    The tokens are those that transformers' `_sample` draws, whose arguments these are; where the native step
    cannot run the model, it draws them.
    A drafter may draft for one text. One text may have company: its prompt is read in pieces, the others go
    on between, and each step is run by them.
    """
    found, compiled = _lean(model, input_ids, generation_config, model_kwargs)
    if found is None or compiled is None:
        if company is not None:
            stopping_criteria = StoppingCriteriaList([*stopping_criteria, Pausing(company)])
        cache, room = model_kwargs.get("past_key_values"), generation_config.max_length
        with in_static_memory(model, cache, len(input_ids), room) as used:
            if used is not cache:
                model_kwargs["past_key_values"] = used
            return model._sample(  # type: ignore[no-any-return]
                input_ids,
                logits_processor,
                stopping_criteria,
                generation_config,
                streamer=stream,
                **model_kwargs,
            )
    cache, mask = model_kwargs["past_key_values"], model_kwargs.get("attention_mask")
    batch, pad = len(input_ids), generation_config._pad_token_tensor
    began = perf_counter()
    room = min(generation_config.max_length, input_ids.shape[1] + ROOM)
    stepper = Stepper(compiled, found, _firsts(input_ids, mask), room, longest=generation_config.max_length)
    recordings = [each for each in recordings_here() if each.model is model]
    logits = _read(model, input_ids, stepper, cache, model_kwargs, recordings, company)
    reading = perf_counter() - began
    text = Text(
        tokens=input_ids,
        processors=logits_processor,
        criteria=stopping_criteria,
        is_sampled=bool(generation_config.do_sample),
        pad=input_ids.new_zeros(()) if pad is None else pad,
        stream=stream,
        recordings=recordings,
        company=company,
    )
    drafting = None
    if drafter is not None and batch == 1 and all(type(each) in PROCESSORS for each in logits_processor):
        drafting = drafter.structure(found, generation_config.max_length)
    try:
        text.add(text.drawn(logits))
        if drafter is None or drafting is None:
            _draw(text, stepper)
        else:
            begin = partial(Speculation, stepper, model, drafter, drafting, is_sampled=text.is_sampled)
            share, longest = len(drafting.visits) / len(found.visits), generation_config.max_length
            pays = partial(drafter.pace.pays_to_begin, reading, share)
            _draw_drafted(text, stepper, begin, drafter.pace, pays, longest)
    finally:
        if batch == 1:
            stepper.give_back(cache)
    if stream is not None:
        stream.end()
    return text.tokens


@dataclass(slots=True)
class Text:
    """Texts that are being written, and how.

    Attributes:
        tokens: of all of them, shape (B, T).
        processors: what becomes of the logits.
        criteria: when a text has ended.
        is_sampled: whether tokens are drawn by chance; else the likeliest is taken.
        pad: what fills up texts that have ended.
        stream: is given the tokens.
        recordings: record what enters visits.
        company: others who write at the same time, beside one text.
        left: the texts that have not ended.
    """

    tokens: torch.Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    is_sampled: bool
    pad: torch.Tensor
    stream: BaseStreamer | None
    recordings: Sequence[Recording]
    company: Company | None = None
    left: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.left = list(range(len(self.tokens)))

    def drawn(self, logits: torch.Tensor) -> torch.Tensor:
        """A token for each text that is left, by its logits: (left, V) to (left,)."""
        scores = logits
        if self.processors and len(self.left) == len(self.tokens):
            scores = self.processors(self.tokens, logits)
        elif self.processors:  # which may know something of each text, ended or not
            of_all = logits.new_zeros(len(self.tokens), logits.shape[1]).index_copy(0, self._left(), logits)
            scores = self.processors(self.tokens, of_all)[self.left]
        if not self.is_sampled:
            return scores.argmax(dim=-1)
        return torch.multinomial(F.softmax(scores, dim=-1), num_samples=1).squeeze(1)

    def add(self, drawn: torch.Tensor) -> None:
        """Write a token into each text that is left, (left,), and see which have ended."""
        batch = len(self.tokens)
        tokens = self.pad.repeat(batch).index_copy(0, self._left(), drawn)
        self.tokens = torch.cat([self.tokens, tokens[:, None]], dim=1)
        if self.stream is not None:
            self.stream.put(tokens)
        has_ended = self.criteria(self.tokens, None).tolist()
        self.left = [text for text in self.left if not has_ended[text]]

    def _left(self) -> torch.Tensor:
        return torch.tensor(self.left)


def _draw(text: Text, stepper: Stepper) -> None:
    """Draw a token at a time until all texts have ended."""
    if text.company is not None:
        _draw_in_company(text, stepper, text.company)
    while text.left:
        _draw_one(text, stepper)


def _draw_in_company(text: Text, stepper: Stepper, company: Company) -> None:
    """Draw a token at a time until the text has ended; each step is run together with those of others."""
    ours = route(stepper.reads, frozenset(visit for each in text.recordings for visit in each.visits))
    while text.left:
        step = Step(stepper, ours, int(text.tokens[0, -1]))
        logits = company.run(step)
        for visit, hidden in step.entered.items():
            for each in text.recordings:
                each.add(visit, hidden)
        text.add(text.drawn(logits))


def _draw_one(text: Text, stepper: Stepper) -> None:
    newest = text.tokens[text.left, -1:].tolist()
    text.add(text.drawn(stepper.step(newest, text.left, text.recordings)))


def _draw_drafted(
    text: Text,
    stepper: Stepper,
    begin: Callable[[list[int]], Speculation],
    pace: Pace,
    pays: Callable[[int], bool],
    longest: int,
) -> None:
    """Draw as many tokens at a time as were drafted rightly, until the text has ended.

    Args:
        text: one.
        stepper: of the model.
        begin: has the draft read tokens.
        pace: of the draft.
        pays: whether it is worth while to begin a draft, with so many tokens remaining.
        longest: tokens that the text may have.
    """

    def scores_of(tokens: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        if not text.processors:
            return logits
        return text.processors(torch.tensor([tokens]), logits[None])[0]  # type: ignore[no-any-return]

    speculation, is_decided = None, False
    pace.begin()
    while text.left and not pace.is_over:
        began = perf_counter()
        if not is_decided and pace.knows_steps:
            is_decided = True
            pace.is_over = not pays(longest - text.tokens.shape[1])
            if not pace.is_over:
                speculation = begin(text.tokens[0, :-1].tolist())
                pace.note_reading(perf_counter() - began)
        elif speculation is None:
            _draw_one(text, stepper)
            pace.note(0, 0, 0.0, perf_counter() - began)
        else:
            tokens, used = text.tokens[0].tolist(), 0
            for token in speculation.draw(tokens, longest - len(tokens), scores_of, text.recordings):
                if text.left:
                    text.add(torch.tensor([token]))
                    used += 1
            speculation.keep(used)
        if text.company is not None:
            text.company.between()
    if speculation is not None:
        speculation.end(text.tokens[0].tolist())
    _draw(text, stepper)


def _lean(
    model: Any, input_ids: torch.Tensor, generation_config: Any, model_kwargs: dict[str, Any]
) -> tuple[Structure | None, Kernel | None]:
    """The structure and the kernel, if the native step can do what is asked for."""
    cache: Any = model_kwargs.get("past_key_values")
    asked = {name for name, value in model_kwargs.items() if value is not None and name not in UNDERSTOOD}
    is_recorded = any(each.model is model for each in recordings_here())
    if (
        asked
        or any(getattr(generation_config, name, None) for name in EXTRAS)
        or type(cache) is not DynamicCache
        or cache.offloading
        or (is_recorded and len(input_ids) > 1)
        or not _counts_from_the_first(input_ids, model_kwargs)
    ):
        return None, None
    found = structure(model)
    if found is None or not found.turns_alike(generation_config.max_length):
        return None, None
    return found, quiet_kernel()


def _firsts(input_ids: torch.Tensor, mask: torch.Tensor | None) -> list[int]:
    """How much padding there is before each text."""
    if mask is None:
        return [0] * len(input_ids)
    return mask.long().argmax(dim=1).tolist()  # type: ignore[no-any-return]


def _counts_from_the_first(input_ids: torch.Tensor, model_kwargs: dict[str, Any]) -> bool:
    """Whether all padding comes before the texts, and positions count from their first tokens."""
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    if mask is not None:
        if mask.shape != input_ids.shape:
            return False
        mask = mask.long()
        if not ((mask.diff(dim=1) >= 0).all() and mask[:, -1].all()):
            return False
    if positions is None:
        return True
    if positions.shape[1] != input_ids.shape[1]:
        return False
    firsts = torch.tensor(_firsts(input_ids, mask), device=positions.device)[:, None]
    expected = torch.arange(input_ids.shape[1], device=positions.device) - firsts
    return bool(((positions == expected) | (expected < 0)).all())


def _read(
    model: Any,
    input_ids: torch.Tensor,
    stepper: Stepper,
    cache: DynamicCache,
    model_kwargs: Mapping[str, Any],
    recordings: Sequence[Recording],
    company: Company | None,
) -> torch.Tensor:
    """The logits, float32, shape (B, V), after the texts, of which the cache may hold the beginning.

    The stepper reads them where that is quicker than the model's own forward, and takes them over where not.
    """
    takes_several, is_alone = stepper.structure.takes_several, len(input_ids) == 1
    known = cache.get_seq_length()
    is_long = (input_ids.shape[1] - known) * len(input_ids) > FEW
    is_quick = stepper.kernel.is_quick_with_many and stepper.bits in QUICK
    if is_long and takes_several and is_quick and _has_slots(model, cache):
        stepper.take(cache)
        try:
            logits = stepper.read(input_ids, PIECE, recordings, None if company is None else company.between)
        except BaseException:  # what was read until then is kept
            stepper.give_back(cache)
            raise
        if not is_alone:
            stepper.give_back(cache)
        return logits
    if takes_several and company is not None:
        for end in range(known + PIECE, input_ids.shape[1], PIECE):
            _forwarded(model, input_ids[:, :end], cache, model_kwargs)
            company.between()
    logits = _forwarded(model, input_ids, cache, model_kwargs)
    stepper.take(cache)
    return logits


def _has_slots(model: Any, cache: DynamicCache) -> bool:
    """Whether a cache has all its slots before the model's forward has linked or added some."""
    is_linked = any("restack_role" in vars(layer) for layer in model.model.layers)
    return not is_linked and len(cache.layers) == len(DynamicCache(config=model.config).layers)


def _forwarded(
    model: Any, input_ids: torch.Tensor, cache: DynamicCache, model_kwargs: Mapping[str, Any]
) -> torch.Tensor:
    """The logits, float32, shape (B, V), after beginnings of texts, as the model's own forward has them."""
    known, end = cache.get_seq_length(), input_ids.shape[1]
    mask, positions = model_kwargs.get("attention_mask"), model_kwargs.get("position_ids")
    output = model(
        input_ids[:, known:],
        attention_mask=None if mask is None else mask[:, :end],
        position_ids=None if positions is None else positions[:, known:end],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()  # type: ignore[no-any-return]
