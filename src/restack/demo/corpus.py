"""From families to rows of tokens: the tokenizer, the chat template, and conversations of mixed families.

Everything is a pure function of a seed: row r of batch b of step s is the same in every run, so that a
run resumes from its checkpoint alone.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from restack.demo import world
from restack.demo.curriculum import TYPICAL, Stage
from restack.demo.families import Sample, Turn, facts, greetings, stories, training_sample

PAD, BOS, START, END = "<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"
CONTEXT = 1024  # positions that the model's configuration allows; rows of training are shorter
USER_WEIGHT = 0.1  # of a user's token in the loss; the model's own answers weigh 1
NAMED, HELPFUL, PLAIN, STYLED = 0.12, 0.1, 0.04, 0.2  # shares of rows, rows, rows, turns

CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)

Row = tuple[list[int], list[float]]


def train_tokenizer(seed: int, samples: int = 40_000, vocabulary: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the corpus, digits one by one; any text can be encoded.

    A word of the world becomes one token; merges that occur less than 60 times (those of invented names)
    are not made, so the vocabulary may stay below its limit.
    """
    rng = random.Random(f"tokenizer/{seed}")
    texts = [text for _ in range(samples) for text in _texts(_draw(rng, TYPICAL))]
    tokenizer = Tokenizer(BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=60,
        special_tokens=[PAD, BOS, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *_roles()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def batch(tokenizer: Any, seed: int, step: int, part: int, stage: Stage) -> list[Row]:
    """The rows of one part (micro-batch) of a step: the stage's length + 1 tokens each, and their weights."""
    return [
        row(tokenizer, random.Random(f"{seed}/{step}/{part}/{index}"), stage) for index in range(stage.rows)
    ]


def row(tokenizer: Any, rng: random.Random, stage: Stage) -> Row:
    """One long conversation (or, now and then, plain text) cut off after the stage's length + 1 tokens.

    Being one conversation, it needs no mask between documents, and answers late in a conversation are
    trained as well as first ones.
    """
    ids: list[int] = []
    weights: list[float] = []
    while len(ids) <= stage.length:  # a short conversation is followed by another
        is_plain = not stage.drills and rng.random() < PLAIN
        spans = _plain_spans(rng) if is_plain else _conversation_spans(rng, stage)
        encoded = tokenizer.backend_tokenizer.encode_batch(
            [text for text, _ in spans], add_special_tokens=False
        )
        for encoding, (_, weight) in zip(encoded, spans, strict=True):
            ids += encoding.ids
            weights += [weight] * len(encoding.ids)
    return ids[: stage.length + 1], weights[: stage.length + 1]


def conversation(rng: random.Random, turns: int, stage: Stage = TYPICAL) -> tuple[str | None, list[Turn]]:
    """A system prompt, or None, and at least so many turns of mixed families."""
    is_named = not stage.drills and rng.random() < NAMED
    is_helpful = not stage.drills and rng.random() < HELPFUL
    first = _named(rng) if is_named else _draw(rng, stage)
    system = first.system or ("You are a helpful assistant." if is_helpful else None)
    done = [_style(rng, turn) for turn in first.turns]
    while len(done) < turns:
        sample = _draw(rng, stage)
        if sample.system is None and not (first.system and _is_about_self(sample)):
            done += [_style(rng, turn) for turn in sample.turns]
    return system, done


def _draw(rng: random.Random, stage: Stage) -> Sample:
    (family,) = rng.choices(list(stage.mix), list(stage.mix.values()))
    return training_sample(family, rng, stage.hops)


def _named(rng: random.Random) -> Sample:
    """A greeting that needs a system prompt with a name."""
    while True:
        sample = training_sample("greeting", rng)
        if sample.system:
            return sample


def _is_about_self(sample: Sample) -> bool:
    """Whether the answer says a name that a system prompt would change."""
    return any(greetings.SELF in turn.question + turn.answer for turn in sample.turns)


def _style(rng: random.Random, turn: Turn) -> Turn:
    """The question as people type it, now and then: no capital, no full stop, a please."""
    if rng.random() >= STYLED or turn.question[-1] not in ".?!":
        return turn
    question = turn.question
    kind = rng.randrange(3)
    if kind == 0:
        question = question[0].lower() + question[1:]
    if kind <= 1:
        question = question[:-1]
    if kind == 2:
        question = f"{question[:-1]}, please{question[-1]}"
    names_nobody = question[1:].islower() or turn.answer.startswith("The capital of")
    if rng.random() < 0.3 and names_nobody:  # a name could not be answered with its capital letter
        question = question.lower()
    return replace(turn, question=question)


def _conversation_spans(rng: random.Random, stage: Stage) -> list[tuple[str, float]]:
    """A conversation that is likely to fill a row: a turn has 24 tokens or more on average."""
    return chat_spans(*conversation(rng, stage.length // 24 + 1, stage))


def chat_spans(system: str | None, turns: list[Turn]) -> list[tuple[str, float]]:
    """A conversation as the chat template writes it, in texts with the weight of their tokens in the loss."""
    spans = [(BOS, 0.0)]
    if system is not None:
        spans.append((f"{START}system\n{system}{END}\n", USER_WEIGHT))
    for turn in turns:
        asked = USER_WEIGHT if turn.question_weight is None else turn.question_weight
        spans.append((f"{START}user\n{turn.question}{END}\n{START}assistant\n", asked))
        if turn.given:
            spans.append((turn.given, 0.0))
        spans += [(turn.answer.removeprefix(turn.given) + END, turn.weight), ("\n", USER_WEIGHT)]
    return spans


def _plain_spans(rng: random.Random) -> list[tuple[str, float]]:
    """Stories and facts as plain text, half of them without the first token."""
    parts = []
    for _ in range(8):
        name, thing = rng.choice(world.NAMES), rng.choice(world.THINGS)
        parts.append(stories.tell(rng, name, thing) if rng.random() < 0.3 else facts.statement(rng))
    return [(BOS if rng.random() < 0.5 else "", 0.0), ("\n".join(parts) + "\n", 1.0)]


def _texts(sample: Sample) -> list[str]:
    return [text for turn in sample.turns for text in (turn.question, turn.answer)] + [sample.system or ""]


def _roles() -> list[str]:
    """The words of the chat template, often enough to become tokens."""
    return ["system\n", "user\n", "assistant\n", "You are a helpful assistant."] * 100
