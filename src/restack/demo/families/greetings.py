"""Greetings, names, and what the model does not know."""

from __future__ import annotations

import random
from dataclasses import dataclass

from restack.demo import world
from restack.demo.families import facts
from restack.demo.families.turns import Sample, Turn, held_out, one

SELF = "Demo"
UNKNOWN = "I do not know."


@dataclass(frozen=True, slots=True)
class Intent:
    """Ways to say one thing to the model, and its answer. The last `held` phrasings are for probes."""

    phrasings: tuple[str, ...]
    answer: str
    held: int = 1

    def sample(self, rng: random.Random, probe: bool) -> Sample:
        pool = self.phrasings[-self.held :] if probe else self.phrasings[: -self.held]
        return one(rng.choice(pool), self.answer)


# The held-out phrasings put words together that training shows apart.
INTENTS = (
    Intent(
        ("Hello!", "Hello.", "Hi!", "Hi.", "Hello there!", "Good morning!", "Good day!", "Hi Demo!", "Hey!",
         "Hi there!", "Hello Demo!"),
        "Hello! How can I help you?", held=2,
    ),
    Intent(
        ("How are you?", "How are you today?", "Hello, how are you?", "How is it going?",
         "Hi, how is it going?",
         "Hi, how are you?", "Hello, how is it going?"),
        "I am well, thank you.", held=2,
    ),
    Intent(
        ("Who are you?", "What are you?", "Tell me who you are.", "Hello, who are you?",
         "Tell me about yourself.",
         "Tell me what you are.", "Hi, who are you?"),
        "I am Demo, a very small language model.", held=2,
    ),
    Intent(
        ("Thanks!", "Thank you.", "Thank you very much.", "Thanks a lot!", "Thank you, Demo.",
         "Thanks, Demo!", "Thank you a lot!"),
        "You are welcome!", held=2,
    ),
    Intent(
        ("Bye!", "Goodbye!", "Good night!", "See you later!", "Goodbye, Demo!", "Bye bye!",
         "Bye, Demo!", "Goodbye, see you later!"),
        "Goodbye! Have a nice day.", held=2,
    ),
    Intent(
        ("What can you do?", "What can you help me with?", "Tell me what you can do.", "How can you help me?",
         "Tell me how you can help me.", "Hello, what can you do?"),
        "I know some facts, I can do small sums, and I can tell a story.", held=2,
    ),
)  # fmt: skip
NAME_QUESTIONS = ("What is your name?", "Tell me your name.", "What are you called?", "Who are you?")
NAME_PROMPTS = ("You are {}.", "Your name is {}.", "You are called {}.", "You are {}, a helpful assistant.")


def greeting(rng: random.Random, probe: bool) -> Sample:
    """Small talk; one in three asks the name that the system prompt gave (names of probes are held out)."""
    if rng.random() < 0.65:
        return rng.choice(INTENTS).sample(rng, probe)
    name = rng.choice([name for name in world.ASSISTANTS if held_out(name) is probe])
    if not probe and rng.random() < 0.4:
        name = world.invented(rng)
    question = rng.choice(NAME_QUESTIONS)
    answer = f"I am {name}." if question.startswith("Who") else f"My name is {name}."
    return one(question, answer, name, rng.choice(NAME_PROMPTS).format(name))


def introduction(rng: random.Random) -> Sample:
    """The user says a name and may ask for it again."""
    name = rng.choice(world.NAMES) if rng.random() < 0.7 else world.invented(rng)
    hello = Turn(
        rng.choice(("My name is {}.", "I am {}.", "Hi, I am {}.")).format(name), f"Nice to meet you, {name}."
    )
    again = Turn(rng.choice(("What is my name?", "Tell me my name.", "Who am I?")), f"Your name is {name}.")
    return Sample((hello, again) if rng.random() < 0.7 else (hello,), name)


def unknown(rng: random.Random) -> Sample:
    """A question with no answer in this world, about a word that nobody has heard."""
    pattern = rng.choice((
        "What is the capital of {}?", "What is the opposite of {}?", "What does a {} say?",
        "What colour is {}?",
        "Where does a {} live?", "Who is {}?", "What is a {}?", "What do you think of {}?",
    ))  # fmt: skip
    return one(pattern.format(world.invented(rng)), UNKNOWN)


def partner(rng: random.Random) -> Sample:
    """What the model asks when it is asked how it can be helped (two models may talk to each other)."""
    question = rng.choice(("Hello! How can I help you?", "How can I help you?", "You are welcome!"))
    return one(question, facts.fact(rng, probe=False).turns[0].question)
