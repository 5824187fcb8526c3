"""One model thinks, another sums up."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from restack.chat.messages import Message, Piece
from restack.chat.programs.agent import Agent, check_names
from restack.chat.programs.audience import Audience, Line
from restack.chat.programs.stage import Hear, Part, Stage
from restack.errors import UsageError
from restack.runtime import ContextFull, Sampling


@dataclass(frozen=True, slots=True)
class Prompts:
    """The words that make a model think, and another sum up; those of chatllm.cpp's scripts/ya_o1.py.

    Attributes:
        prefix: the thinker begins with it.
        again: put into its mouth when it has ended, in the passes between the first and the last.
        check: the same, in the last pass.
        system: the summariser's system prompt.
        summary: what the summariser is asked: {prompt} stands for the question, {thoughts} for all that the
            thinker said.

    Raises:
        UsageError: the summary lacks one of the two.
    """

    prefix: str = "Let's break it down and think step by step.\n"
    again: str = "\nThis question looks complex. Let me think again.\n"
    check: str = "\nLet me check if my answer is correct or not.\n"
    system: str = (
        "You are an AI assistant that answers questions by checking and summarizing the thought given by "
        "user.\n"
        "ALWAYS use the thought given by user. DO NOT answer it yourself."
    )
    summary: str = (
        "Answer this question by summarizing the given analysis and thoughts:\n\n# Question:\n\n{prompt}\n\n"
        "# Analysis and thought:\n\n{thoughts}\n"
    )

    def __post_init__(self) -> None:
        for name, what in (("{prompt}", "the question"), ("{thoughts}", "what the thinker said")):
            if name not in self.summary:
                raise UsageError(f"the summary prompt lacks {name}, which stands for {what}; write it in")

    def suffixes(self, passes: int) -> list[str]:
        """What each pass after the first begins with: "think again", and in the last "check"."""
        return [*[self.again] * (passes - 2), self.check] if passes > 1 else []

    def asked(self, question: str, thoughts: str) -> str:
        """What the summariser is asked."""
        before, _, after = self.summary.partition(
            "{prompt}"
        )  # a question with {thoughts} in it stays as it is
        parts = (part.replace("{thoughts}", thoughts) for part in (before, after))
        return question.join(parts)


class Thinking:
    """A thinker, a summariser, and the conversation that a person has with them.

    The summariser remembers it; the thinker thinks about each question alone.
    """

    def __init__(
        self,
        thinker: Agent,
        summariser: Agent,
        *,
        prompts: Prompts | None = None,
        passes: int = 3,
        budget: int | None = None,
        audience: Audience | None = None,
    ) -> None:
        """A conversation with nothing said in it; the arguments and errors are those of `think`."""
        check_names([thinker.name, summariser.name])
        if passes < 1:
            raise UsageError(f"passes {passes}: write 1 or more")
        if budget is not None and budget < 1:
            raise UsageError(f"budget {budget}: write 1 token or more")
        self.prompts = prompts or Prompts()
        self.passes = passes
        self.budget = budget
        self.stage = Stage(audience)
        self.thinker = self.stage.enter(replace(thinker, ai_prefix=self.prompts.prefix))
        system = summariser.system or self.prompts.system
        self.summariser = self.stage.enter(replace(summariser, system=system))

    def ask(self, question: str) -> Message:
        """The summariser's answer, after the thinker's thoughts.

        Raises:
            UsageError: the question is empty, or fills a context.
            KeyboardInterrupt: somebody stopped it; what was said is kept.
        """
        if not question.strip():
            raise UsageError("the question is empty; write something to answer")
        with self.stage.next_turn():
            self.stage.question(question)
            self.thinker.conversation.reset()
            thoughts = _Thoughts(self, question)
            thought = self.thinker.speak(thoughts.think, thoughts.details, heading="think #1")
            for note in thoughts.notes:
                self.stage.note(note)
            told = thought.answer.strip("\n") or thought.content
            return self.summariser.ask(self.prompts.asked(question, told))

    def restart(self) -> None:
        """Forget the conversation."""
        self.summariser.conversation.reset()


class _Thoughts:
    """The passes of a thinker over one question."""

    def __init__(self, program: Thinking, question: str) -> None:
        self.stage = program.stage
        self.part: Part = program.thinker
        self.suffixes = program.prompts.suffixes(program.passes)
        self.question = question
        self.left = program.budget  # tokens
        self.passes: list[str] = [""]
        self.details: dict[str, Any] = {"thoughts": self.passes, "tokens": 0}
        self.notes: list[str] = []

    def think(self, hear: Hear) -> Message:
        """All passes as one message."""
        conversation = self.part.conversation

        def hear_thought(piece: Piece) -> None:
            self.passes[-1] += piece.text
            hear(replace(piece, kind="thought"))

        conversation.sampling = self._sampling()
        message = conversation.ask(self.question, hear_thought)
        self._count()
        for number, suffix in enumerate(self.suffixes, start=2):
            if self.left == 0:
                self.notes.append(f"The budget is spent after think #{number - 1}.")
                break
            if message.finish == "context":
                self.notes.append(f"The thinker's context is full after think #{number - 1}.")
                break
            self.stage.begin(self.part.name, f"think #{number}")
            self.passes.append("")
            try:
                message = conversation.continue_(suffix, hear_thought, sampling=self._sampling())
            except ContextFull:
                self.passes.pop()
                self.notes.append(f"The thinker's context is full after think #{number - 1}.")
                break
            self._count()
        return message

    def _sampling(self) -> Sampling:
        sampling = self.part.agent.sampling
        if self.left is None:
            return sampling
        return replace(sampling, max_tokens=min(sampling.max_tokens, self.left))

    def _count(self) -> None:
        last = self.part.conversation.last
        count = len(last.tokens) if last else 0
        self.details["tokens"] += count
        if self.left is not None:
            self.left = max(0, self.left - count)


def think(
    thinker: Agent,
    summariser: Agent,
    questions: Iterable[str],
    *,
    prompts: Prompts | None = None,
    passes: int = 3,
    budget: int | None = None,
    audience: Audience | None = None,
) -> list[Line]:
    """Have one agent think about questions, and another sum up (chatllm.cpp's scripts/ya_o1.py).

    Args:
        thinker: its ai_prefix is that of the prompts.
        summariser: may have the same model; its system prompt is that of the prompts if it has none.
        questions: one after the other.
        prompts: the original's, if None.
        passes: 1 is the prefix alone, 2 also checks, more think again in between.
        budget: of tokens that the thinker generates for a question in all passes; then it is summed up.
        audience: is told what is said as it is said; thoughts are pieces of that kind.

    Returns:
        Of each question three lines: the question, the thoughts (details: thoughts, one text a pass, and the
        number of tokens), and the answer.

    Raises:
        UsageError: a number is out of range, the names are the same, a question is empty or fills a context.
        KeyboardInterrupt: somebody stopped it; the audience has heard what was said.
    """
    program = Thinking(thinker, summariser, prompts=prompts, passes=passes, budget=budget, audience=audience)
    for question in questions:
        program.ask(question)
    return program.stage.lines
