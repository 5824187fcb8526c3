import json

import pytest

from restack import view
from restack.chat import Conversation
from restack.chat.programs import Agent, Prompts, Thinking, Transcript, think
from restack.errors import UsageError
from restack.runtime import ContextFull, Sampling
from tests.chat.programs.scripted import Heard, Stopped, agent, said

GREEDY = Sampling(temperature=0, max_tokens=60)
PREFIX = "Let's break it down and think step by step.\n"
AGAIN = "\nThis question looks complex. Let me think again.\n"
CHECK = "\nLet me check if my answer is correct or not.\n"


def test_three_passes_and_a_summary():
    heard = Heard()
    thinker, summariser = agent("Thinker", "one", "two", "three"), agent("Summariser", "Four.")
    lines = think(thinker, summariser, ["Why?"], audience=heard)
    thoughts = [f"{PREFIX}one", f"{AGAIN}two", f"{CHECK}three"]
    assert said(lines) == [(1, "You", "Why?"), (1, "Thinker", "".join(thoughts)), (1, "Summariser", "Four.")]
    assert lines[1].details == {"thoughts": thoughts, "tokens": 3}
    assert lines[1].message.given == PREFIX + AGAIN + CHECK
    assert [event[1:] for event in heard.events if event[0] == "begin"] == [
        ("Thinker", "think #1"), ("Thinker", "think #2"), ("Thinker", "think #3"), ("Summariser", ""),
    ]  # fmt: skip
    assert "".join(text for kind, text, *_ in heard.events if kind == "thought") == "".join(thoughts)


@pytest.mark.parametrize(
    ("passes", "suffixes"), [(1, []), (2, [CHECK]), (3, [AGAIN, CHECK]), (5, [AGAIN, AGAIN, AGAIN, CHECK])]
)
def test_passes(passes, suffixes):
    lines = think(agent("Thinker", *"abcde"), agent("Summariser", "x"), ["Why?"], passes=passes)
    given = "".join(piece.text for piece in lines[1].message.pieces if piece.given)
    assert given == PREFIX + "".join(suffixes)


def test_the_summariser_is_asked_as_in_the_original_and_remembers():
    program = Thinking(agent("Thinker", "ab", "cd"), agent("Summariser", "x", "y"), passes=1)
    program.ask("Why {thoughts}?")
    program.ask("How?")
    system, first, *_, last, _ = program.summariser.conversation.messages
    assert system.content == (
        "You are an AI assistant that answers questions by checking and summarizing the thought given by "
        "user.\nALWAYS use the thought given by user. DO NOT answer it yourself."
    )
    assert first.content == (
        "Answer this question by summarizing the given analysis and thoughts:\n\n# Question:\n\n"
        f"Why {{thoughts}}?\n\n# Analysis and thought:\n\n{PREFIX}ab\n"
    )
    assert "How?" in last.content
    assert [message.content for message in program.thinker.conversation.messages] == ["How?", f"{PREFIX}cd"]
    program.restart()
    assert len(program.summariser.conversation.messages) == 1
    assert program.stage.turn == 2


def test_the_budget_is_of_all_thoughts_about_a_question():
    heard = Heard()
    thinker = agent("Thinker", "a b c", "d e", "f", sampling=Sampling(max_tokens=4))
    program = Thinking(thinker, agent("Summariser", "x"), passes=9, budget=5, audience=heard)
    program.ask("Why?")
    assert program.thinker.conversation.sampling.max_tokens == 4
    assert program.thinker.conversation.sampling_used.max_tokens == 2
    assert program.stage.lines[1].details == {"thoughts": [f"{PREFIX}a b c", f"{AGAIN}d e"], "tokens": 5}
    assert heard.notes == ["The budget is spent after think #2."]


def test_thoughts_that_fill_the_context_are_summed_up():
    heard = Heard()
    lines = think(
        agent("Thinker", "a", ContextFull("full")), agent("Summariser", "x"), ["Why?"], audience=heard
    )
    assert said(lines)[1:] == [(1, "Thinker", f"{PREFIX}a"), (1, "Summariser", "x")]
    assert lines[1].details["thoughts"] == [f"{PREFIX}a"]
    assert heard.notes == ["The thinker's context is full after think #1."]


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        ((Stopped("on"),), [f"{PREFIX}on"]),
        (("one", Stopped("tw")), [f"{PREFIX}one{AGAIN}tw"]),
        (("one", Stopped("")), [f"{PREFIX}one"]),
        (("one", "two", "three"), [f"{PREFIX}one{AGAIN}two{CHECK}three", "su"]),
    ],
)
def test_interrupted_at_any_time(tmp_path, texts, kept):
    path = tmp_path / "talk.jsonl"
    with pytest.raises(KeyboardInterrupt):
        think(
            agent("Thinker", *texts), agent("Summariser", Stopped("su")), ["Why?"], audience=Transcript(path)
        )
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["content"] for line in lines] == ["Why?", *kept]
    assert [line["finish"] for line in lines] == ["stop"] * len(kept) + ["interrupted"]


def test_other_words():
    prompts = Prompts(prefix="Hm. ", check=" Or? ", system="Be brief.", summary="{thoughts} So: {prompt}")
    program = Thinking(agent("Thinker", "a", "b"), agent("Summariser", "x"), passes=2, prompts=prompts)
    program.ask("Why?")
    assert [m.content for m in program.summariser.conversation.messages] == [
        "Be brief.",
        "Hm. a Or? b So: Why?",
        "x",
    ]
    own = Thinking(agent("Thinker"), agent("Summariser", system="I am Kim."))
    assert own.summariser.agent.system == "I am Kim."


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: Prompts(summary="{prompt}"), "lacks {thoughts}"),
        (lambda: Prompts(summary="{thoughts}"), "lacks {prompt}"),
        (lambda: Thinking(agent("Thinker"), agent("Summariser"), passes=0), "passes 0: write 1 or more"),
        (lambda: Thinking(agent("Thinker"), agent("Summariser"), budget=0), "budget 0: write 1 token"),
        (lambda: Thinking(agent("X"), agent("X")), "names two speakers"),
        (lambda: Thinking(agent("Thinker"), agent("Summariser")).ask(""), "the question is empty"),
    ],
)
def test_what_is_refused(wrong, told):
    with pytest.raises(UsageError, match=told):
        wrong()


def test_the_demo_thinks_and_another_plan_of_it_sums_up(demo):
    model, tokenizer = demo
    other = view(model, "0:8,4:12")
    thinker, summariser = (
        Agent(name, each, tokenizer, sampling=GREEDY)
        for name, each in (("Thinker", model), ("Summariser", other))
    )
    lines = think(thinker, summariser, ["What is 345 + 213?"], passes=2, budget=80)
    by_hand = Conversation(model, tokenizer, ai_prefix=PREFIX, sampling=GREEDY)
    first = by_hand.ask("What is 345 + 213?")
    assert first.content.endswith("So 345 + 213 = 558.")
    tokens = len(by_hand.last.tokens)
    whole = by_hand.continue_(CHECK, sampling=Sampling(temperature=0, max_tokens=min(60, 80 - tokens)))
    assert lines[1].message == whole
    assert lines[1].details["tokens"] == tokens + len(by_hand.last.tokens)
    answers = Conversation(other, tokenizer, system=Prompts().system, sampling=GREEDY)
    assert lines[2].message == answers.ask(Prompts().asked("What is 345 + 213?", whole.content))
