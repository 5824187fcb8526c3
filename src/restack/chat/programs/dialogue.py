"""Two models talk to each other."""

from dataclasses import dataclass, field

from restack.chat.messages import Message
from restack.chat.programs.agent import Agent, check_names
from restack.chat.programs.audience import Audience, Line
from restack.chat.programs.repetition import Repeat, RepetitionDetector
from restack.chat.programs.stage import Part, Stage, over
from restack.errors import UsageError
from restack.runtime import ContextFull


@dataclass(frozen=True, slots=True)
class Duet:
    """What came of a duet: the messages, and why it ended."""

    lines: list[Line] = field(default_factory=list)
    ending: str = ""


def duet(
    first: Agent,
    second: Agent,
    start: str,
    *,
    turns: int = 8,
    repetition: float = 0.8,
    audience: Audience | None = None,
) -> Duet:
    """Let two agents talk to each other (chatllm.cpp's scripts/crosstask.py).

    The first says `start`, the second answers, the first answers that... Each keeps its own history. What one
    thinks (between <think> tags) the other does not hear.

    Args:
        first: with `speaks="user"`, it plays the user: two assistants soon offer each other help, for ever.
        second: may have the same model, or a view of it.
        start: the first message of the first agent.
        turns: how many messages each of them says at most, the start included.
        repetition: the duet ends when a message repeats an earlier one by this share of its words, as
            `RepetitionDetector` has it; 0: never.
        audience: is told what is said as it is said.

    Returns:
        The lines, and why it ended: the turns were over, or a message repeats another or is empty, or a
        context was full.

    Raises:
        UsageError: the start is empty, there are no turns, the names are the same, or the start alone fills
            the context.
        KeyboardInterrupt: somebody stopped it; the audience has heard what was said.
    """
    check_names([first.name, second.name])
    if not start.strip():
        raise UsageError("the start of a duet is empty; write what the first of the two says")
    if turns < 1:
        raise UsageError(f"turns {turns}: write 1 or more")
    detector = RepetitionDetector(repetition) if repetition else None
    stage = Stage(audience)
    one, other = stage.enter(first), stage.enter(second)
    text, ending = start, over(turns)
    try:
        for number in range(2 * turns):
            if number % 2 == 0:
                stage.turn += 1
            part = (one, other)[number % 2]
            message = part.ask(text) if number else _begin(one, start)
            text, own = message.answer.strip(), _own(message) if number else start
            if not text or not own.strip():
                ending = f"{part.name} has nothing to say"
                break
            repeat = detector.hear(own) if detector else None
            if repeat and number < 2 * turns - 1:
                ending = _told(repeat, stage.lines)
                break
    except ContextFull as error:
        if len(stage.lines) < 2:  # nothing but the start was said
            raise
        ending = f"the context is full: {error}"
    stage.note(f"The duet ends: {ending}.")
    return Duet(stage.lines, ending)


def _begin(part: Part, start: str) -> Message:
    """Put the start into the first agent's mouth, where its template lets it speak before the other."""
    trial = part.agent.conversation(lambda text: None)
    trial.hear(start, role=part.agent.speaks)
    trial.hear(start)
    try:
        trial.prompt()
    except ContextFull:
        pass  # the answer will tell
    except UsageError:
        trial.reset()
        trial.hear(start)
        trial.prompt()  # or it is something else that the template refuses
        part.stage.note(
            f"{part.name}'s chat template begins with the other side: it does not remember the start."
        )
        return part.say(start, is_remembered=False)
    return part.say(start)


def _own(message: Message) -> str:
    """What the model itself said: prefixes are alike in all messages."""
    return "".join(piece.text for piece in message.pieces if piece.kind == "answer" and not piece.given)


def _told(repeat: Repeat, lines: list[Line]) -> str:
    now, before = lines[repeat.number - 1], lines[repeat.of - 1]
    first = f"{before.speaker} said in turn {before.turn}"
    same = "" if repeat.likeness == 1 else f" ({repeat.likeness:.0%} of its words)"
    return f"what {now.speaker} says in turn {now.turn} repeats what {first}{same}"
