"""Probes whose answers a test decides: noise, and effects that are planted."""

import hashlib

import numpy as np

from restack.scanning import FreeProbe


class Noise(FreeProbe):
    """Scores drawn at random for each plan and question, the same each time; no gain but a planted one.

    Args:
        seed: of the noise.
        count: questions.
        planted: what is added to the chance of a right answer, by the plan's text.
    """

    def __init__(self, seed=0, count=80, planted=None, right=0.6, name="noise"):
        self.name, self.seed, self.count, self.right = name, seed, count, right
        self.planted = planted or {}
        self.asked = []

    def __len__(self):
        return self.count

    def fingerprint(self):
        return f"noise {self.seed} {self.count}"

    def scores(self, model, questions):
        plan = str(model.restack_plan)
        self.asked.append((plan, tuple(questions)))
        digest = hashlib.sha256(f"{self.seed}/{plan}".encode()).digest()
        drawn = np.random.default_rng(int.from_bytes(digest[:8])).random(self.count)
        chance = self.right + self.planted.get(plan, 0)
        return [float(drawn[question] < chance) for question in questions]
