import copy
import json

import pytest
import torch

from restack import view
from restack.chat import Conversation
from restack.chat.messages import Piece
from restack.chat.programs import Agent, Listeners, Stage, Transcript, duet
from restack.errors import UsageError
from restack.runtime import ContextFull, Sampling
from tests.chat.programs.scripted import Heard, Stopped, agent, said

GREEDY = Sampling(temperature=0, max_tokens=32)


def pair(first, second, **settings):
    return agent("A", *first, **settings), agent("B", *second)


def test_they_take_turns():
    heard = Heard()
    result = duet(
        *pair(["And Rome?"], ["In France.", "In Italy."]), "Where is Paris?", turns=2, audience=heard
    )
    assert said(result.lines) == [
        (1, "A", "Where is Paris?"),
        (1, "B", "In France."),
        (2, "A", "And Rome?"),
        (2, "B", "In Italy."),
    ]
    assert result.ending == "2 turns are over"
    assert heard.events[:6] == [
        ("begin", "A", ""),
        ("answer", "Where is Paris?"),
        ("end", (1, "A", "Where is Paris?")),
        ("begin", "B", ""),
        ("answer", "In France."),
        ("end", (1, "B", "In France.")),
    ]
    assert heard.notes == ["The duet ends: 2 turns are over."]


def test_the_first_message_is_given_and_the_roles_are_those_that_are_played():
    lines = duet(*pair(["Fine."], ["Hello."], speaks="user"), "Hi!", turns=1).lines
    assert [(line.message.role, line.message.given) for line in lines] == [("user", "Hi!"), ("assistant", "")]


def test_thoughts_are_not_heard_by_the_other():
    thought = [Piece("<think>", "tag"), Piece("Who?", "thought"), Piece("</think>", "tag"), Piece("\n\nMe.")]
    first, second = pair(["Well."], [thought, "Oh."])
    talks = []
    for each in (first, second):
        make = type(each).conversation
        object.__setattr__(each, "conversation", lambda n, e=each, m=make: talks.append(m(e, n)) or talks[-1])
    lines = duet(first, second, "Who?", turns=2).lines
    assert lines[1].message.content == "<think>Who?</think>\n\nMe."
    assert any([m.content for m in talk.messages] == ["Who?", "Me.", "Well."] for talk in talks)


def test_a_repetition_ends_it_and_both_messages_are_named():
    first, second = pair(["I'm here to assist you as well! How may I help you today?"] * 9, ["Go on."] * 9)
    heard = Heard()
    start = "I'm here to assist you! How can I help you today?"
    result = duet(first, second, start, turns=9, audience=heard)
    assert result.ending == "what A says in turn 2 repeats what A said in turn 1 (85% of its words)"
    assert len(result.lines) == 3
    assert (
        len(
            duet(
                *pair(["Same old words again, again."] * 3, ["Go on."] * 4), "Hm", turns=4, repetition=0
            ).lines
        )
        == 8
    )


def test_a_repetition_in_the_last_message_is_no_other_end():
    result = duet(*pair([], ["One two three four five."]), "One two three four five.", turns=1)
    assert result.ending == "1 turn is over" and len(result.lines) == 2


@pytest.mark.parametrize("nothing", ["", " \n", [Piece("<think>", "tag"), Piece("Hm", "thought")]])
def test_an_empty_message_ends_it(nothing):
    heard = Heard()
    result = duet(*pair(["x"], [nothing]), "Hi!", audience=heard)
    assert result.ending == "B has nothing to say"
    assert len(result.lines) == 2
    assert heard.notes == ["B said nothing.", "The duet ends: B has nothing to say."]


def test_a_prefix_is_no_repetition_and_says_nothing():
    prefix = "Well, let me tell you what I think about that now: "
    first, second = agent("A", "yes", "no", ai_prefix=prefix), agent("B", "one", "two", "", ai_prefix=prefix)
    result = duet(first, second, "Hi!", turns=4)
    assert [line.message.generated for line in result.lines] == ["", "one", "yes", "two", "no", ""]
    assert result.ending == "B has nothing to say"


def test_a_full_context_ends_it_but_for_one_that_the_start_fills():
    result = duet(*pair(["x", ContextFull("full; shorten it")], ["y", "z"]), "Hi!")
    assert len(result.lines) == 4 and result.ending == "the context is full: full; shorten it"
    with pytest.raises(ContextFull):
        duet(*pair([], [ContextFull("full")]), "Hi!", audience=(heard := Heard()))
    assert heard.events == []


@pytest.mark.parametrize("words", ["I was say", ""])
def test_an_interrupt_keeps_what_was_said(tmp_path, words):
    heard, path = Heard(), tmp_path / "talk.jsonl"
    with pytest.raises(KeyboardInterrupt):
        duet(*pair([Stopped(words)], ["Yes?"]), "Hi!", audience=Listeners([heard, Transcript(path)]))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["finish"] for line in lines] == ["stop", "stop", "interrupted"][: 3 if words else 2]
    assert heard.events[-1] == ("end", (2, "A", words) if words else None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"start": " "}, "the start of a duet is empty"),
        ({"turns": 0}, "turns 0: write 1 or more"),
        ({"repetition": 2}, "repetition 2: write a share"),
    ],
)
def test_what_is_refused(change, told):
    with pytest.raises(UsageError, match=told):
        duet(*pair(["x"], ["y"]), **{"start": "Hi!"} | change)


@pytest.mark.parametrize("name", ["A", "", " ", "two\nlines"])
def test_names_that_do_not_tell_them_apart(name):
    with pytest.raises(UsageError, match="name"):
        duet(agent("A", "x"), agent(name, "y"), "Hi!")


def by_hand(first, second, start, turns):
    """The same talk by two conversations."""
    first.hear(start, role=first.speaks)
    texts = [start]
    for number in range(1, 2 * turns):
        texts.append((first, second)[number % 2].ask(texts[-1]).content)
    return texts


@pytest.mark.parametrize("speaks", ["assistant", "user"])
def test_two_plans_of_the_demo(demo, speaks):
    model, tokenizer = demo
    other = view(model, "0:12,4:")
    first = Agent("A", model, tokenizer, sampling=GREEDY, speaks=speaks, system="You are Kim.")
    result = duet(first, Agent("B", other, tokenizer, sampling=GREEDY), "Hello!", turns=3, repetition=0)
    talks = (
        Conversation(model, tokenizer, sampling=GREEDY, speaks=speaks, system="You are Kim."),
        Conversation(other, tokenizer, sampling=GREEDY),
    )
    assert [line.message.content for line in result.lines] == by_hand(*talks, "Hello!", 3)
    assert result.lines[1].message.content == "Hello! How can I help you?"


def test_a_seed_makes_it_the_same(demo):
    warm = Sampling(temperature=1.5, max_tokens=12)

    def run(seed):
        torch.manual_seed(seed)
        agents = [Agent(name, *demo, sampling=warm) for name in "AB"]
        return said(duet(*agents, "Tell me a story.", turns=2).lines)

    assert run(1) == run(1) != run(2)


def test_a_template_that_begins_with_the_user_leaves_out_the_start(demo):
    model, tokenizer = demo
    strict = copy.copy(tokenizer)
    strict.chat_template = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('the user begins') }}{% endif %}"
        + tokenizer.chat_template
    )
    heard = Heard()
    first, second = (Agent(name, model, strict, sampling=GREEDY) for name in "AB")
    lines = duet(first, second, "Hello!", turns=2, audience=heard).lines
    assert len(lines) == 4 and lines[0].message.content == "Hello!"
    assert heard.notes[0] == "A's chat template begins with the other side: it does not remember the start."
    plain = Conversation(model, tokenizer, sampling=GREEDY)
    assert lines[2].message.content == plain.ask(lines[1].message.content).content
    with pytest.raises(UsageError, match="the user begins"):  # it takes no system prompt either
        duet(Agent("A", model, strict, system="You are Kim."), second, "Hello!")


def test_a_turn_in_which_nothing_is_said_does_not_count():
    stage = Stage()
    with pytest.raises(UsageError), stage.next_turn():
        stage.question("Hm?")
        raise UsageError("no")
    with stage.next_turn() as number:
        stage.question("Yes?")
        stage.enter(agent("A", "Well.")).ask("Yes?")
    assert number == 1 and said(stage.lines) == [(1, "You", "Yes?"), (1, "A", "Well.")]
