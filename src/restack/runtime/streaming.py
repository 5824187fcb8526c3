"""Text out of tokens, as they come."""

from collections.abc import Callable, Collection, Sequence
from time import perf_counter
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

REPLACEMENT = "\ufffd"  # stands at the end of a text whose last character is not whole
MISSING = 3  # bytes, each of which may be one, of a character of up to four


class TextStream(BaseStreamer):  # type: ignore[misc]
    """Turns the tokens that `generate` of transformers streams into text, as soon as characters are whole.

    Text goes on as far as the first stop string; what may be the beginning of one is held back.

    Attributes:
        tokens: those that were generated.
        text: of them, as far as it was passed on.
        first_token_at: when the first came, by `time.perf_counter`; None before.
        is_stopped: whether a stop string was found.
    """

    def __init__(
        self,
        tokenizer: Any,
        on_text: Callable[[str], None],
        *,
        stop: Sequence[str] = (),
        before: Sequence[int] = (),
        shown: Collection[int] = (),
    ) -> None:
        """A stream of one answer.

        Args:
            tokenizer: of the model.
            on_text: is given the pieces.
            stop: the strings that end the text; they are no part of it.
            before: tokens that the text follows within a sentence, so that its first blank counts.
            shown: special tokens that are text here; all others are left out.
        """
        self.on_text = on_text
        self.stop = stop
        self.tokens: list[int] = []
        self.text = ""
        self.first_token_at: float | None = None
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._decode = _decoder(tokenizer, shown)
        self._waiting = list(before)  # tokens whose text is not passed on, after those that it depends on
        self._known = len(self._waiting)  # how many of them only give the others their place
        self._held = ""
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, and then each token."""
        if self._is_prompt:
            self._is_prompt = False
            return
        if self.first_token_at is None:
            self.first_token_at = perf_counter()
        new = value.flatten().tolist()
        self.tokens += new
        self._waiting += new
        if self._is_byte(new[-1]):  # what it stands for depends on those after it
            return
        before, text = self._decode(self._waiting[: self._known]), self._decode(self._waiting)
        if len(text) > len(before) and not text.endswith(REPLACEMENT):
            # How a token is written may depend on the one before it: keep those of the last piece.
            self._waiting = self._waiting[self._known :]
            self._known = len(self._waiting)
            self._pass_on(text[len(before) :])

    def end(self) -> None:
        """Pass on what was held back."""
        before, text = self._decode(self._waiting[: self._known]), self._decode(self._waiting)
        self._pass_on(_whole(text[len(before) :]), is_end=True)

    def _is_byte(self, token: int) -> bool:
        """Whether a token is a single byte of a character, as SentencePiece writes those: <0xE2>."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        return isinstance(name, str) and len(name) == 6 and name.startswith("<0x") and name.endswith(">")

    def _pass_on(self, text: str, *, is_end: bool = False) -> None:
        if self.is_stopped:
            return
        text = self._held + text
        found = [at for string in self.stop if (at := text.find(string)) >= 0]
        end = min(found, default=len(text))
        self.is_stopped = bool(found)
        if not found and not is_end:
            beginnings = (
                at for at in range(end) if any(string.startswith(text[at:]) for string in self.stop)
            )
            end = next(beginnings, end)
        self._held = text[end:]
        if end:
            self.text += text[:end]
            self.on_text(text[:end])


def text_of(
    tokenizer: Any, tokens: Sequence[int], *, before: Sequence[int] = (), shown: Collection[int] = ()
) -> str:
    """The text of tokens at once; the arguments are those of a `TextStream`."""
    decode = _decoder(tokenizer, shown)
    known = decode(list(before))
    return _whole(decode([*before, *tokens])[len(known) :])


def _whole(text: str) -> str:
    """A text without a last character whose end is missing: what goes on with the text can write it anew."""
    whole = text.rstrip(REPLACEMENT)
    return whole if len(text) - len(whole) <= MISSING else text


def _decoder(tokenizer: Any, shown: Collection[int]) -> Callable[[list[int]], str]:
    """How tokens become text: without special tokens, but for those that are to be shown."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    if not special & set(shown):
        return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))
    hidden = (special | set(tokenizer.all_special_ids)) - set(shown)
    return lambda tokens: str(tokenizer.decode([token for token in tokens if token not in hidden]))
