"""The demo model's own questions, each answered in one pass."""

from collections.abc import Sequence
from typing import Any

from restack.demo.families import CHANCE
from restack.demo.probes import FAMILIES, probes
from restack.errors import UsageError
from restack.scanning.probe import ForcedProbe, Outcome, Row
from restack.scanning.probes.digest import digest
from restack.scanning.probes.questions import continued

CHECKED = "story"  # has no single right answer
ANSWERED = tuple(family for family in FAMILIES if family != CHECKED)


class Demo(ForcedProbe):
    """Held-out questions of the families of `restack.demo`, right if the greedy answer is so to the letter.

    The answer is not written but read: greedy decoding says it, and ends, if each of its tokens and the end
    is the likeliest after those before. (An answer that is the same text in other tokens counts as wrong.)
    """

    def __init__(self, name: str, tokenizer: Any, families: Sequence[str], count: int, seed: int = 0) -> None:
        """Make questions.

        Args:
            name: of the probe.
            tokenizer: of the demo model.
            families: all but "story" if there are none.
            count: questions of all of them together, as many of each; fewer of a family that has not so many.
            seed: which.

        Raises:
            UsageError: there is no such family, or fewer than two questions of each.
        """
        families = tuple(families) or ANSWERED
        for family in families:
            if family not in ANSWERED:
                raise UsageError(f"there is no {family!r} to be scanned; choose from {', '.join(ANSWERED)}")
        each = count // len(families)
        if each < 2:
            raise UsageError(
                f"{count} questions are fewer than two of each family; ask {2 * len(families)} or more"
            )
        self.name = name
        # Small families repeat themselves; a question that came twice could be searched with and held out.
        found = list(dict.fromkeys(probe for family in families for probe in probes(family, each, seed)))
        self.chance = sum(CHANCE[family] for family in families) / len(families)
        self.groups = [probe.family for probe in found] if len(families) > 1 else None
        self._rows = []
        for probe in found:
            prompt = tokenizer.apply_chat_template(probe.messages, tokenize=False, add_generation_prompt=True)
            self._rows.append(continued(tokenizer, (prompt, False), probe.accept[0], ends=True))

    def __len__(self) -> int:
        return len(self._rows)

    def fingerprint(self) -> str:
        return digest([(row.tokens, row.targets) for row in self._rows])

    def rows(self, question: int) -> list[Row]:
        return [self._rows[question]]

    def score(self, question: int, outcomes: Sequence[Outcome]) -> float:
        return float(outcomes[0].is_top.all())
