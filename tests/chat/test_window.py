"""What is shown of a conversation that is longer than the context."""

import pytest

from restack import recipes
from restack.chat import Conversation, Message
from restack.chat.window import SINKS, Window
from restack.errors import UsageError
from restack.runtime import ContextFull, Sampling

LONG = "Tell me a story about Ben and a kite, and one about Ann and her red boat on the lake."


def words(messages):
    """A tokenizer: a token a word, and one for what opens the answer."""
    return [hash(word) for message in messages for word in message.content.split()] + [0]


def talk_of(*sizes, system=0):
    roles = ["user", "assistant"]
    messages = [Message.of("system", "s " * system)] if system else []
    for number, size in enumerate(sizes):
        messages.append(Message.of(roles[number % 2], " ".join(f"{number}.{i}" for i in range(size))))
    return messages


def test_what_fits_is_shown():
    for overflow in ("stop", "drop", "shift"):
        messages, window = talk_of(10, 20, 10), Window(overflow)
        for context in (64, None):
            assert window.fit(messages, words, context, 8) == (window, words(messages), "")


def test_the_oldest_turns_are_dropped_and_the_system_prompt_is_not():
    messages = talk_of(10, 20, 10, 20, 10, system=3)
    window, tokens, note = Window("drop").fit(messages, words, 64, 100)
    assert tokens == words([messages[0], *messages[3:]])
    assert window.dropped == 2
    assert note == "the context of 64 tokens is full: the model is no longer shown the first 2 messages"
    # The next turn fits behind the same beginning, so that what was read of it can be reused.
    messages += [Message.of("assistant", "a b c"), Message.of("user", "d e")]
    assert window.fit(messages, words, 64, 100) == (window, words([messages[0], *messages[3:]]), "")
    assert window.fit(messages[:2], words, 64, 100) == (Window("drop"), words(messages[:2]), "")


def test_the_last_message_is_never_dropped():
    messages = talk_of(10, 20, 70)
    assert Window("drop").fit(messages, words, 64, 100)[1] == words(messages[2:])
    messages = talk_of(system=70)
    assert Window("drop").fit(messages, words, 64, 100)[1] == words(messages)


def test_what_was_dropped_may_be_taken_back():
    messages = talk_of(30, 30, 30, 30, 30)
    window, _, _ = Window("drop").fit(messages, words, 64, 100)
    assert window.dropped == 4
    shorter = [*talk_of(30, 4, 10), Message.of("assistant", "y " * 30), Message.of("user", "x")]
    window, tokens, note = window.fit(shorter, words, 64, 100)
    assert (window.dropped, tokens, note) == (2, words(shorter[2:]), "")


def test_tokens_after_the_sinks_are_shifted_out():
    messages = talk_of(10, 20, 10, 20, 10)
    whole = words(messages)
    window, tokens, note = Window("shift").fit(messages, words, 64, 100)
    assert tokens == whole[:SINKS] + whole[-(48 - SINKS) :]
    assert len(tokens) == 48
    assert "no longer shown 23 tokens after the first 4" in note
    longer = [*messages, Message.of("assistant", "a b c"), Message.of("user", "d e")]
    after, later, note = window.fit(longer, words, 64, 100)
    assert (after, later[: len(tokens) - 1], note) == (window, tokens[:-1], "")
    shorter = talk_of(10, 20, 35)
    window, tokens, note = window.fit(shorter, words, 64, 100)
    assert (len(tokens), window.shifted, note) == (48, 18, "")


@pytest.fixture
def short(demo):
    """The demo model with a context of 160 tokens, that does not end by itself."""
    model = recipes.open("demo", dtype="float32")
    model.config.max_position_embeddings = 160
    model.generation_config.eos_token_id = None
    return model, demo[1]


@pytest.mark.parametrize("overflow", ["drop", "shift"])
def test_a_long_conversation_goes_on_and_says_so(short, overflow):
    notes = []
    sampling = Sampling(temperature=0, max_tokens=20)
    talk = Conversation(
        *short, system="You are Demo.", sampling=sampling, overflow=overflow, on_note=notes.append
    )
    for _ in range(10):
        answer = talk.ask(LONG)
        assert (answer.finish, len(talk.last.tokens)) == ("length", 20)
    assert len(talk.messages) == 21
    assert all("the context of 160 tokens is full" in note for note in notes) and notes


@pytest.mark.parametrize("overflow", ["drop", "shift"])
def test_an_answer_goes_on_past_the_context(overflow, short):
    notes = []
    talk = Conversation(*short, overflow=overflow, on_note=notes.append)
    talk.sampling = Sampling(temperature=0, max_tokens=10)
    for _ in range(2):
        talk.ask(LONG)
    notes.clear()
    talk.sampling = Sampling(temperature=0, max_tokens=80 if overflow == "drop" else 300)
    heard = []
    answer = talk.ask(LONG, lambda piece: heard.append(piece.text))
    assert len(talk.last.tokens) == talk.sampling.max_tokens
    assert (answer.finish, len(talk.messages), answer.content) == ("length", 6, "".join(heard))
    assert len(notes) >= 2


def test_an_answer_that_fills_the_context_alone_ends_there(short):
    talk = Conversation(*short, overflow="drop", sampling=Sampling(temperature=0, max_tokens=300))
    talk.ask("Hello!")
    answer = talk.ask("Hello!")
    assert answer.finish == "context" and len(talk.last.tokens) < 300


def test_an_answer_stops_at_the_context_where_that_is_wanted(short):
    talk = Conversation(*short, sampling=Sampling(temperature=0, max_tokens=300))
    assert talk.ask("Hello!").finish == "context"
    with pytest.raises(ContextFull):
        talk.ask(LONG)
    assert len(talk.messages) == 2
    talk.window = Window("drop")
    talk.sampling = Sampling(temperature=0, max_tokens=20)
    assert talk.ask(LONG).content


@pytest.mark.parametrize("overflow", ["stop", "drop", "shift"])
def test_a_message_that_alone_overflows_is_refused(demo, overflow):
    talk = Conversation(*demo, system="You are Demo.", overflow=overflow, sampling=Sampling(max_tokens=8))
    talk.ask("Hello!")
    before, heard, notes = list(talk.messages), [], []
    talk.on_note = notes.append
    with pytest.raises(ContextFull, match="the model's context is 1024; shorten it"):
        talk.ask("word " * 1100, heard.append)
    assert talk.messages == before and heard == notes == []
    assert talk.window == Window(overflow)


def test_another_overflow_is_refused(demo):
    with pytest.raises(UsageError, match="write one of stop, drop, shift"):
        Conversation(*demo, overflow="forget")
