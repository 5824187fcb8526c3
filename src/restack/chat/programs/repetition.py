"""When a conversation goes round in circles."""

import re
from collections import Counter, deque
from dataclasses import dataclass

from restack.errors import UsageError

WINDOW = 12  # messages that are remembered
SHORT, LONG = 5, 10  # words
# One character is a word where words are written without blanks.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
CONTRACTIONS = (
    (re.compile(r"\bcan't\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"'m\b"), " am"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ll\b"), " will"),
    (re.compile(r"'ve\b"), " have"),
)
NEGATIONS = {"not", "no", "never", "nothing", "nobody", "none"}
NAME = re.compile(r"(?<=[\w,;:] )[A-Z]\w+")  # a capital letter inside a sentence


@dataclass(frozen=True, slots=True)
class Repeat:
    """A message that says what was said before.

    Attributes:
        number: of the message, the first being 1.
        of: the number of the earlier one.
        likeness: the share of words that they have in common.
    """

    number: int
    of: int
    likeness: float


@dataclass(frozen=True, slots=True)
class _Said:
    number: int
    words: tuple[str, ...]
    facts: tuple[str, ...]


class RepetitionDetector:
    """Tells when a message repeats one of the last twelve, whoever said it.

    Texts are compared as words, without case and punctuation, with contractions written out:

    - a message of five words or more repeats another with the same words in the same order;
    - one of ten or more also repeats another that has a share `threshold` of its words in common (Dice's
      coefficient), of those with five to nine half as much may differ; but not where the numbers, the names
      (words with a capital inside a sentence) or the negations are others;
    - a shorter one ("Yes.") repeats another only if what it answers does: the two must follow the same words.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        """A detector that has heard nothing.

        Args:
            threshold: above 0, at most 1: only the same words in any order.

        Raises:
            UsageError: it is not.
        """
        if not 0 < threshold <= 1:
            raise UsageError(f"repetition {threshold}: write a share of words above 0, at most 1; 0 is off")
        self.threshold = threshold
        self._said: deque[_Said] = deque(maxlen=WINDOW + 1)

    def hear(self, text: str) -> Repeat | None:
        """Take the next message, and tell which earlier one it repeats, the latest of them if several."""
        number = self._said[-1].number + 1 if self._said else 1
        said = _Said(number, words_of(text), _facts_of(text))
        self._said.append(said)
        for at in range(len(self._said) - 2, -1, -1):
            likeness = self._likeness(at)
            if likeness:
                return Repeat(number, self._said[at].number, likeness)
        return None

    def _likeness(self, at: int) -> float:
        """How much the last message repeats the one that is remembered there; 0 if it does not."""
        one, last = self._said[at], self._said[-1]
        if len(last.words) < SHORT or len(one.words) < SHORT:
            same = at > 0 and one.words == last.words and self._said[at - 1].words == self._said[-2].words
            return float(same)
        if one.words == last.words:
            return 1.0
        common = sum((Counter(one.words) & Counter(last.words)).values())
        likeness = 2 * common / (len(one.words) + len(last.words))
        is_long = min(len(one.words), len(last.words)) >= LONG
        needed = self.threshold if is_long else (1 + self.threshold) / 2
        return likeness if likeness >= needed and one.facts == last.facts else 0.0


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text as they are compared; the text itself if it has none ("...")."""
    text = text.lower().replace("\u2019", "'")
    for contraction, written_out in CONTRACTIONS:
        text = contraction.sub(written_out, text)
    return tuple(WORD.findall(text)) or (text.strip(),)


def _facts_of(text: str) -> tuple[str, ...]:
    """What makes sentences of the same words different ones: numbers, names, negations."""
    words = [word for word in words_of(text) if word.isdecimal() or word in NEGATIONS]
    return (*words, *NAME.findall(text))
