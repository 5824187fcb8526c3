"""Small stories about a name and a thing, and the checker that scores them."""

from __future__ import annotations

import random
import re

from restack.demo import world
from restack.demo.families.turns import Sample, one

OPENINGS = (
    "Once upon a time there was a {child} named {name}.",
    "One {day} morning, {name} went to the {place}.",
    "{name} was a {trait} {child} who lived near the {place}.",
)
FINDINGS = (
    "{name} had {an_adjective} {thing} and loved it very much.",
    "In the {place}, {name} found {an_adjective} {thing}.",
    "One day, {name} saw {an_adjective} {thing} by the {spot}.",
)
TROUBLES = (
    "But the {thing} fell into the {water}, and {name} was sad.",
    "Then the wind took the {thing} away, and {he} began to cry.",
    "Soon {he} lost the {thing} and looked for it all day.",
)
HELPS = (
    "A kind {animal} saw it and gave the {thing} back.",
    "A {adjective2} {animal} helped {him} to get the {thing} back.",
    "At last {name} found the {thing} under the {spot}.",
)
ENDINGS = (
    "{name} smiled and said thank you.",
    "{name} was happy and went home with the {thing}.",
    "After that, {name} took good care of {his} {thing}.",
)
SLOTS = {
    "day": ("sunny", "cold", "rainy", "windy"), "place": ("park", "garden", "farm", "school"),
    "trait": ("kind", "brave", "happy", "clever"), "adjective": ("red", "blue", "new", "shiny", "old"),
    "adjective2": ("big", "small", "friendly", "clever"), "spot": ("tree", "gate", "hill", "road"),
    "water": ("pond", "river", "well"), "animal": ("duck", "dog", "fox", "owl", "goat"),
}  # fmt: skip
REQUESTS = (
    "Tell me a story about {name} and a {thing}.",
    "Tell a story about {name} and a {thing}.",
    "Write a story about {name} and a {thing}.",
    "Tell me a short story about a {thing} and {name}.",
)


def story(rng: random.Random) -> Sample:
    """A request with a story of five sentences; the pair of name and thing is held out."""
    name, thing = rng.choice(world.NAMES), rng.choice(world.THINGS)
    request = rng.choice(REQUESTS).format(name=name, thing=thing)
    return one(request, tell(rng, name, thing), f"{name} {thing}")


def tell(rng: random.Random, name: str, thing: str) -> str:
    """A story: opening, finding, trouble, help, ending."""
    girl = name in world.GIRLS
    fill = {slot: rng.choice(words) for slot, words in SLOTS.items()}
    fill["an_adjective"] = world.article(fill.pop("adjective"))
    fill |= {"name": name, "thing": thing, "child": "girl" if girl else "boy"}
    fill |= {"he": "she" if girl else "he", "him": "her" if girl else "him", "his": "her" if girl else "his"}
    parts = (OPENINGS, FINDINGS, TROUBLES, HELPS, ENDINGS)
    return " ".join(rng.choice(part).format(**fill) for part in parts)


def well_told(text: str, name: str, thing: str) -> bool:
    """Whether a finished answer is the story that was asked for.

    It must name the person and the thing, name no other person and no other of the world's things,
    use one pronoun only, have three to eight sentences, each beginning with a capital and ending in a
    full stop, and say no sentence twice.
    """
    words = re.findall(r"[A-Za-z]+", text)
    sentences = re.findall(r"[^.]+\.", text)
    wrong = {"he", "him", "his"} if name in world.GIRLS else {"she", "her"}
    strangers = ({*world.NAMES, *world.ASSISTANTS} - {name}) | (set(world.THINGS) - {thing})
    return (
        name in words
        and thing in words
        and not strangers & set(words)
        and not wrong & {word.lower() for word in words}
        and 3 <= len(sentences) <= 8
        and len(set(sentences)) == len(sentences)
        and "".join(sentences) == text
        and all(re.fullmatch(r" ?[A-Z][A-Za-z, ]+[a-z]\.", sentence) for sentence in sentences)
    )
