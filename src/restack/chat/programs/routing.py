"""Three cobblers: a router chooses the expert that answers."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations

from restack.chat.messages import Message
from restack.chat.programs.agent import Agent, check_names
from restack.chat.programs.audience import Audience, Line
from restack.chat.programs.stage import YOU, Part, Stage
from restack.errors import UsageError
from restack.runtime import option_log_probabilities

CLASSIFY = "Please classify the question to one of these classes:\n{classes}\n\nQuestion: {prompt}"
CONFIDENCE = 0.5  # more likely than all other experts together


@dataclass(frozen=True, slots=True)
class Choice:
    """Which expert is to answer.

    Attributes:
        expert: its name.
        confidence: the probability of the likeliest expert, who may be another where that is too low.
        probabilities: of each expert by name; together 1.
    """

    expert: str
    confidence: float
    probabilities: dict[str, float]


class Cobblers:
    """A router and its experts, and the conversation that a person has with them."""

    def __init__(
        self,
        router: Agent,
        experts: Sequence[Agent],
        *,
        per_question: bool = False,
        fallback: str | None = None,
        confidence: float = CONFIDENCE,
        prompt: str = CLASSIFY,
        audience: Audience | None = None,
    ) -> None:
        """A conversation with nothing said in it; the arguments and errors are those of `cobblers`."""
        names = [expert.name for expert in experts]
        check_experts(names, fallback=fallback, confidence=confidence, prompt=prompt)
        self.router = router
        self.per_question = per_question
        self.fallback = names[-1] if fallback is None else fallback
        self.confidence = confidence
        self.prompt = prompt
        self.stage = Stage(audience)
        self.experts: dict[str, Part] = {}
        self.choice: Choice | None = None
        for expert in experts:
            self.experts[expert.name] = self.stage.enter(expert)

    def ask(self, question: str) -> Message:
        """The answer of the expert that was chosen, or is chosen now.

        Raises:
            UsageError: the question is empty, or fills a context.
            KeyboardInterrupt: somebody stopped it; what was said is kept.
        """
        if not question.strip():
            raise UsageError("the question is empty; write something to answer")
        with self.stage.next_turn():
            before = self.choice
            choice = self.route(question) if before is None or self.per_question else before
            self.stage.question(question)
            if choice is not before:
                self.stage.note(self.told(choice))
            expert = self.experts[choice.expert]
            lines, messages = len(self.stage.lines), len(expert.conversation.messages)
            try:
                return expert.ask(question, expert=choice.expert, confidence=round(choice.confidence, 4))
            finally:
                if len(self.stage.lines) > lines:
                    self.choice = choice
                if self.per_question and len(expert.conversation.messages) > messages:
                    self._let_others_hear(expert)

    def route(self, question: str) -> Choice:
        """Which expert the router chooses: by the probabilities of their names after its prompt.

        The router is asked anew each time. In place of the text that it would write, as the original has it,
        the log-probability of each name decides, so that there always is an answer, and how sure it is.
        """
        names = list(self.experts)
        classes = "\n".join(f"{number}. {name}" for number, name in enumerate(names, start=1))
        asked = self.prompt.replace("{classes}", classes).replace("{prompt}", question)
        conversation = self.router.conversation(self.stage.note)
        conversation.hear(asked)
        # The plain template ends with "Assistant:", and a blank follows.
        blank = "" if self.router.tokenizer.chat_template else " "
        logs = option_log_probabilities(
            self.router.model,
            self.router.tokenizer,
            conversation.prompt(),
            [blank + name for name in names],
        )
        highest = max(logs)
        masses = [math.exp(log - highest) for log in logs]
        shares = {name: mass / sum(masses) for name, mass in zip(names, masses, strict=True)}
        likeliest = max(names, key=lambda name: shares[name])
        expert = likeliest if shares[likeliest] >= self.confidence else self.fallback
        return Choice(expert, shares[likeliest], shares)

    def restart(self) -> None:
        """Forget the conversation, and who answers."""
        self.choice = None
        for part in self.experts.values():
            part.conversation.reset()

    def told(self, choice: Choice) -> str:
        """A choice, for people."""
        shares = sorted(choice.probabilities.items(), key=lambda share: -share[1])
        told = ", ".join(f"{name} {share:.0%}" for name, share in shares)
        unsure = choice.confidence < self.confidence
        return f"{told}; below {self.confidence:.0%}, {choice.expert} answers" if unsure else told

    def _let_others_hear(self, expert: Part) -> None:
        """Experts that take turns are in one conversation: each hears what the others hear and say."""
        question, answer = expert.conversation.messages[-2:]
        if not answer.answer.strip():
            return
        for part in self.experts.values():
            if part is not expert:
                part.conversation.hear(question.content)
                part.conversation.hear(answer.answer, role="assistant")


def cobblers(
    router: Agent,
    experts: Sequence[Agent],
    questions: Iterable[str],
    *,
    per_question: bool = False,
    fallback: str | None = None,
    confidence: float = CONFIDENCE,
    prompt: str = CLASSIFY,
    audience: Audience | None = None,
) -> list[Line]:
    """Have questions answered by the experts that a router chooses (chatllm.cpp's scripts/threecobblers.py).

    The expert of the first question answers the others too, as in the original. Experts may be plans of one
    model.

    Args:
        router: its model chooses; it has no history.
        experts: two or more, named after what they are for: the names are the router's classes.
        questions: one after the other.
        per_question: choose for each question; all experts hear all that is said.
        fallback: the expert that answers where the router is not sure; the last, if None, as in the original.
        confidence: what the probability of the likeliest expert must reach, or the fallback answers.
        prompt: of the router: {prompt} stands for the question, {classes} for the numbered names.
        audience: is told what is said as it is said.

    Returns:
        The questions and answers; the details of an answer are expert and confidence.

    Raises:
        UsageError: there are fewer than two experts, their names are empty or the same or one begins another,
            the fallback is none of them, a question is empty or fills a context.
        KeyboardInterrupt: somebody stopped it; the audience has heard what was said.
    """
    program = Cobblers(
        router,
        experts,
        per_question=per_question,
        fallback=fallback,
        confidence=confidence,
        prompt=prompt,
        audience=audience,
    )
    for question in questions:
        program.ask(question)
    return program.stage.lines


def check_experts(
    names: Sequence[str],
    *,
    fallback: str | None = None,
    confidence: float = CONFIDENCE,
    prompt: str = CLASSIFY,
) -> None:
    """Refuse what a router cannot work with, before models are loaded; the arguments are those of `cobblers`.

    Raises:
        UsageError: so it is; a name may not begin another, for its probability would hold the other's.
    """
    check_names(names)
    if YOU in names:
        raise UsageError(f"the name {YOU!r} is that of the person who asks; name the expert otherwise")
    if len(names) < 2:
        told = "there is one expert" if names else "there are no experts"
        raise UsageError(f"{told}, and a router chooses from two or more; name another")
    for one, other in permutations(names, 2):
        if other.startswith(one):
            raise UsageError(
                f"the name of the expert {one!r} begins that of {other!r}, and a router cannot tell them "
                "apart; rename one"
            )
    if fallback is not None and fallback not in names:
        raise UsageError(f"the fallback {fallback!r} is no expert; name one of {', '.join(names)}")
    if not 0 <= confidence <= 1:
        raise UsageError(f"confidence {confidence}: write a probability from 0 to 1")
    if "{prompt}" not in prompt:
        raise UsageError("the router's prompt lacks {prompt}, which stands for the question; write it in")
