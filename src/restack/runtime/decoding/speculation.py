"""Lossless speculation on one set of weights: a view drafts tokens, another checks them in one pass.

The text is that of the checking view, as if it had drawn every token by itself: greedy, the same tokens;
sampled, the same distribution. Both views share the keys, the values and the hidden states of the visits that
they begin with: what the draft ran there is not run again (LayerSkip, arXiv 2404.16710, does so for a draft
that leaves early; here it is any two plans).

Source of the sampling: Leviathan et al. 2023, arXiv 2211.17192, section 2.3.
"""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from restack.runtime import cache_slots
from restack.runtime.decoding.pace import Pace
from restack.runtime.decoding.stepper import Recorder, Stepper
from restack.runtime.decoding.structure import Structure, structure
from restack.runtime.native import quiet_kernel
from restack.runtime.prompt_cache import common_beginning
from restack.views.leading import leading_visits

ScoresOf = Callable[[Sequence[int], torch.Tensor], torch.Tensor]


class Drafter:
    """A view, or another model with the same tokenizer, that drafts; it learns how much of that pays.

    Attributes:
        model: that drafts.
        pace: what is known of it; a drafter may be used for many texts.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.pace = Pace()
        self._tokens: list[int] = []  # of the text that it has read last
        self._cache: DynamicCache | None = None

    def read(self, tokens: list[int]) -> DynamicCache:
        """A cache of a text; of one that begins like the last one, only what is new is read."""
        cache, self._cache = self._cache, None
        known = min(common_beginning(self._tokens, tokens), len(tokens) - 1)
        surplus = len(self._tokens) - known
        if cache is None or not known or (surplus and not cache_slots.is_croppable(cache)):
            cache, known = DynamicCache(config=self.model.config), 0
        elif surplus:
            cache_slots.crop(cache, surplus)
        most = self.model.get_input_embeddings().num_embeddings - 1  # another model may know fewer tokens
        new = torch.tensor([tokens[known:]]).clamp(max=most)
        self.model(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def keep(self, tokens: list[int], cache: DynamicCache) -> None:
        """Keep a cache of a text for the next one."""
        self._tokens, self._cache = tokens, cache

    def structure(self, target: Structure, tokens: int = 0) -> Structure | None:
        """What the native step needs to know of it; None where it cannot draft for a model.

        Args:
            target: the model's structure.
            tokens: that a text may have.
        """
        found = structure(self.model)
        if found is None or not found.turns_alike(tokens):
            return None
        return found if found.takes_several and target.takes_several else None


def is_assisted(model: Any, drafter: Drafter) -> bool:
    """Whether transformers' assisted generation is to draft: our own loop cannot run the two.

    Not for models that see nothing of a token's own keys and values: they are exact a token at a time alone.
    """
    found = structure(model)
    if found is not None and not found.takes_several:
        return False
    if found is not None and quiet_kernel() is not None and drafter.structure(found) is not None:
        return False
    sizes = {each.config.get_text_config(decoder=True).vocab_size for each in (model, drafter.model)}
    return len(sizes) == 1 and not getattr(model, "_is_stateful", False)


class Speculation:
    """Rounds of drafting and checking on one text.

    Of the text, the checking view has run all tokens but the last. Of the visits that only the draft makes,
    some last tokens may be missing: what enters these visits is kept until the next draft.
    """

    def __init__(
        self,
        target: Stepper,
        model: Any,
        drafter: Drafter,
        found: Structure,
        read: list[int],
        *,
        is_sampled: bool,
    ) -> None:
        """Read the text with the draft too.

        Args:
            target: the steps of the checking view, which has read it.
            model: that view.
            drafter: drafts.
            found: its structure.
            read: the tokens.
            is_sampled: whether tokens are drawn by chance; else the likeliest is taken.
        """
        self.target, self.drafter, self.is_sampled = target, drafter, is_sampled
        self.common = leading_visits(model, drafter.model)
        room = target.lengths[0] + 1
        self.draft = Stepper(target.kernel, found, target.firsts, room, beside=target, common=self.common)
        self._cache = drafter.read(read)
        self.draft.take(self._cache, self.common)
        self._pieces: list[Pieces] = []
        self._embeds_alike = found.embedding.weight is target.structure.embedding.weight
        # What enters the first visit that the two have not in common: in this round, of each of the two; and
        # for tokens for which the draft has not run its own visits.
        self._entered: list[torch.Tensor] = []
        self._entered_draft: list[torch.Tensor] = []
        self._waiting: list[torch.Tensor] = []

    def draw(
        self, text: Sequence[int], most: int, scores_of: ScoresOf, recordings: Sequence[Recorder] = ()
    ) -> list[int]:
        """Tokens after a text: one, and before it those that were drafted rightly. `keep` is to follow.

        Args:
            text: its tokens.
            most: how many there may be.
            scores_of: what is drawn by after a text with these logits, (V,): log-probabilities.
            recordings: record what enters visits of the checking view.
        """
        began = perf_counter()
        length = min(self.drafter.pace.next_length(), most - 1)
        place, self._pieces = self.target.lengths[0], [Pieces(each) for each in recordings]
        self._entered, self._entered_draft = [], []
        self._enter(text[-1], place)
        guesses: list[int] = []
        chances: list[torch.Tensor] = []
        for number in range(length):
            logits = self._drafted(place + number + 1)
            chances.append(scores_of([*text, *guesses], logits))
            guesses.append(drawn(chances[-1], self.is_sampled))
            self._enter(guesses[-1], place + number + 1)
        between = perf_counter()
        hidden = torch.cat(self._entered)
        self._run(self.target, range(self.common, len(self.target.structure.visits)), hidden, place)
        logits = self.target.logits(hidden)
        tokens: list[int] = []
        while len(tokens) <= length and tokens == guesses[: len(tokens)]:
            number = len(tokens)
            scores = scores_of([*text, *tokens], logits[number])
            if number == length:
                tokens.append(drawn(scores, self.is_sampled))
            else:
                tokens.append(checked(scores, guesses[number], chances[number], self.is_sampled))
        right = len(tokens) - 1
        self.drafter.pace.note(length, right, between - began, perf_counter() - between)
        return tokens

    def keep(self, tokens: int) -> None:
        """Have so many of the tokens that were drawn be part of the text."""
        place, length = self.target.lengths[0], len(self._entered) - 1
        self.target.lengths = [place + tokens]
        if tokens > length:  # the last one that was run is one that the draft has not run itself
            self._waiting.append(self._entered_draft[length])
        for each in self._pieces:
            each.hand_over(tokens)

    def end(self, text: Sequence[int]) -> None:
        """Leave what the draft knows of a text, which is the one that was drawn, for the next."""
        known = self.target.lengths[0] - sum(map(len, self._waiting))
        self.draft.lengths = [known]
        self.draft.give_back(self._cache)
        self.drafter.keep(list(text[:known]), self._cache)

    def _enter(self, token: int, place: int) -> None:
        """Run the visits that are common to both for one token."""
        hidden = self.target.enter([[token]])
        self._run(self.target, range(self.common), hidden, place)
        self._entered.append(hidden)
        if not self._embeds_alike:
            known = len(self.draft.structure.embedding.weight)
            hidden = self.draft.enter([[min(token, known - 1)]])
        self._entered_draft.append(hidden)

    def _drafted(self, end: int) -> torch.Tensor:
        """The draft's logits, (V,), after the newest token, which ends before `end`."""
        hidden = torch.cat([*self._waiting, self._entered_draft[-1]])
        self._waiting = []
        self._run(self.draft, range(self.common, len(self.draft.structure.visits)), hidden, end - len(hidden))
        logits, count = self.draft.logits(hidden[-1:])[0], self.target.structure.head.out_features
        return F.pad(logits[:count], (0, count - len(logits[:count])), value=-torch.inf)

    def _run(self, stepper: Stepper, visits: range, hidden: torch.Tensor, place: int) -> None:
        """Run hidden states, (T, C), of tokens from a place on through visits."""
        pieces: Sequence[Recorder] = self._pieces if stepper is self.target else ()
        stepper.run(visits, hidden, [len(hidden)], [0], pieces, [place])


class Pieces:
    """What enters visits in a round, until it is known which tokens are kept."""

    def __init__(self, recording: Recorder) -> None:
        self.recording, self.visits = recording, recording.visits
        self._found: dict[int, list[torch.Tensor]] = {}

    def add(self, visit: int, hidden: torch.Tensor) -> None:
        """Take hidden states, (1, T, C)."""
        self._found.setdefault(visit, []).append(hidden.clone())

    def hand_over(self, tokens: int) -> None:
        """Record those of so many first tokens."""
        for visit, parts in self._found.items():
            self.recording.add(visit, torch.cat(parts, dim=1)[:, :tokens])


def drawn(scores: torch.Tensor, is_sampled: bool) -> int:
    """A token by its score, (V,): by chance, or the likeliest."""
    return int(torch.multinomial(scores.softmax(dim=-1), 1)) if is_sampled else int(scores.argmax())


def checked(scores: torch.Tensor, guess: int, drafted: torch.Tensor, is_sampled: bool) -> int:
    """The guess, if it may stay; else a token in its place.

    Args:
        scores: by which the checking view draws, (V,).
        guess: what was drafted.
        drafted: the scores by which that was drawn.
        is_sampled: by chance, or the likeliest.
    """
    if not is_sampled:
        return int(scores.argmax())
    chance, others = scores.softmax(dim=-1), drafted.softmax(dim=-1)
    if torch.rand(()) * others[guess] < chance[guess]:
        return guess
    left = (chance - others).clamp(min=0)
    return int(torch.multinomial(left if left.sum() > 0 else chance, 1))
