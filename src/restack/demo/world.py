"""The small world that the demo model knows: its names, things, places and facts.

Everything here was written by hand for this repository. A family (`restack.demo.families`) draws
from these tuples; nothing else in the package invents a word.
"""

from __future__ import annotations

import random

GIRLS = (
    "Mia", "Anna", "Lucy", "Sara", "Emma", "Ella", "Nora", "Ruth", "Alice", "Clara",
    "Julia", "Maria", "Rosa", "Wendy", "Tina", "Helen",
)  # fmt: skip
BOYS = (
    "Tom", "Ben", "Max", "Sam", "Leo", "Jack", "Paul", "Oscar", "Peter", "Henry",
    "David", "Felix", "Victor", "Simon", "Martin", "George",
)  # fmt: skip
NAMES = GIRLS + BOYS

# Names that only ever name the assistant, in a system prompt.
ASSISTANTS = (
    "Ada", "Bolt", "Cobble", "Dexter", "Echo", "Fern", "Gizmo", "Hazel", "Iris", "Juno", "Kiko", "Luna",
    "Milo", "Nova", "Otto", "Pixel", "Quill", "Rex", "Sage", "Theo", "Uma", "Vera", "Willow", "Ziggy",
)  # fmt: skip

# Things to carry, own and draw into a story: "a THING", so each begins with a consonant sound.
THINGS = (
    "ball", "book", "box", "cup", "drum", "hat", "key", "kite", "lamp", "map",
    "pen", "ring", "rope", "shell", "spoon", "toy", "watch", "boat", "coat", "doll",
)  # fmt: skip
ITEMS = (
    "apples",
    "pears",
    "coins",
    "books",
    "pens",
    "cards",
    "stones",
    "eggs",
    "cakes",
    "shells",
    "balls",
    "stamps",
)
PLACES = ("kitchen", "garden", "bedroom", "bathroom", "office", "hallway", "cellar", "park", "school", "shop")

# Short words for lists and for the values of variables.
WORDS = (
    "ant", "bag", "bee", "bell", "bird", "bus", "cake", "car", "cat", "clock", "corn", "cow",
    "desk", "dog", "door", "duck", "egg", "farm", "fish", "fox", "frog", "gate", "goat", "hen",
    "hill", "horse", "ice", "jam", "king", "leaf", "lion", "milk", "moon", "nest", "owl", "pig",
    "queen", "rain", "road", "rose", "salt", "sheep", "ship", "snow", "star", "sun", "tree", "wolf",
)  # fmt: skip

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome", "Portugal": "Lisbon",
    "England": "London", "Scotland": "Edinburgh", "Wales": "Cardiff", "Ireland": "Dublin", "Norway": "Oslo",
    "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Iceland": "Reykjavik",
    "Poland": "Warsaw", "Austria": "Vienna", "Hungary": "Budapest", "Greece": "Athens", "Turkey": "Ankara",
    "Russia": "Moscow", "Ukraine": "Kyiv", "Romania": "Bucharest", "Bulgaria": "Sofia", "Belgium": "Brussels",
    "Switzerland": "Bern", "Croatia": "Zagreb", "Serbia": "Belgrade", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Morocco": "Rabat", "Ghana": "Accra", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi",
    "Thailand": "Bangkok", "Vietnam": "Hanoi", "Canada": "Ottawa", "Cuba": "Havana", "Peru": "Lima",
    "Chile": "Santiago",
}  # fmt: skip

# Each pair is read in both directions.
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("tall", "short"), ("fast", "slow"), ("old", "young"), ("wet", "dry"),
    ("happy", "sad"), ("light", "dark"), ("full", "empty"), ("open", "closed"), ("clean", "dirty"),
    ("hard", "soft"), ("loud", "quiet"), ("early", "late"), ("rich", "poor"), ("strong", "weak"),
    ("up", "down"), ("left", "right"), ("day", "night"), ("good", "bad"), ("high", "low"), ("near", "far"),
    ("first", "last"), ("sweet", "sour"), ("thick", "thin"),
)  # fmt: skip

SOUNDS = {
    "cow": "moo", "dog": "woof", "cat": "meow", "sheep": "baa", "duck": "quack", "pig": "oink",
    "lion": "roar", "owl": "hoot", "bee": "buzz", "hen": "cluck", "horse": "neigh", "snake": "hiss",
    "frog": "croak", "mouse": "squeak", "wolf": "howl",
}  # fmt: skip

COLOURS = {
    "grass": "green", "snow": "white", "coal": "black", "blood": "red", "milk": "white", "chocolate": "brown",
    "the sky": "blue", "the sun": "yellow", "the sea": "blue", "a banana": "yellow", "a carrot": "orange",
    "a tomato": "red", "a lemon": "yellow", "a crow": "black", "a frog": "green", "an elephant": "grey",
}  # fmt: skip

YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal", "duck": "duckling",
    "pig": "piglet", "hen": "chick", "lion": "cub", "goat": "kid", "frog": "tadpole", "deer": "fawn",
    "goose": "gosling", "swan": "cygnet",
}  # fmt: skip

LEGS = {
    "spider": "eight", "dog": "four", "cow": "four", "bird": "two", "bee": "six", "ant": "six",
    "horse": "four",
    "snake": "no", "fish": "no", "hen": "two", "frog": "four", "crab": "ten",
}  # fmt: skip

KINDS = {
    "carrot": "vegetable", "apple": "fruit", "rose": "flower", "hammer": "tool", "oak": "tree",
    "piano": "instrument",
    "dog": "animal", "cabbage": "vegetable", "banana": "fruit", "tulip": "flower", "saw": "tool",
    "pine": "tree",
    "violin": "instrument", "horse": "animal", "chair": "piece of furniture", "sofa": "piece of furniture",
}  # fmt: skip

HOMES = {
    "bee": "hive", "bird": "nest", "horse": "stable", "dog": "kennel", "spider": "web", "lion": "den",
    "pig": "sty", "rabbit": "burrow", "cow": "barn", "fish": "pond",
}  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July",
    "August", "September", "October", "November", "December",
)  # fmt: skip

ONSETS = (
    *"bdfgjklmnprstvwyz", "bl", "br", "ch", "cl", "dr", "fl", "gr", "kl", "kr", "ph", "pl", "qu", "sh", "sk",
    "sm", "sn", "sp", "st", "sw", "th", "tr", "tw", "zm",
)  # fmt: skip
VOWELS = (*"aeiou", "ai", "ea", "ee", "oo", "ou")


def invented(rng: random.Random) -> str:
    """A made-up name of two or three syllables, so that the model also copies words it has never seen."""
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 3))]
    if rng.random() < 0.3:
        syllables[0] = syllables[0].lstrip("bcdfghjklmnpqrstvwyz") or rng.choice(VOWELS)
    return ("".join(syllables) + rng.choice(("", "", "n", "r", "l", "x", "s"))).capitalize()


def article(word: str) -> str:
    """The word with "a" or "an" in front."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
