"""Thinking models: their thoughts are told from the answer, however the text is cut into pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from restack import recipes
from restack.chat import Conversation, Message, Piece, Tags
from restack.chat.thoughts import KNOWN, ThoughtSplitter, special_tokens, tags_of
from restack.errors import UsageError
from restack.runtime import Sampling
from tests.runtime.speaker import Speaker


def split(pieces, tags=KNOWN[0], is_thinking=False):
    splitter = ThoughtSplitter(tags, is_thinking=is_thinking)
    found = [piece for text in pieces for piece in splitter.feed(text)]
    return Message.of_pieces("assistant", [*found, *splitter.end()], "stop")


def kinds(message):
    return [(piece.text, piece.kind) for piece in message.pieces]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hi.", [("Hi.", "answer")]),
        (
            "<think>Hm.</think>Hi.",
            [("<think>", "tag"), ("Hm.", "thought"), ("</think>", "tag"), ("Hi.", "answer")],
        ),
        ("a <think>b", [("a ", "answer"), ("<think>", "tag"), ("b", "thought")]),
        ("a </think> b <thin", [("a </think> b <thin", "answer")]),
        ("<think></think>", [("<think></think>", "tag")]),
        ("1 < 2", [("1 < 2", "answer")]),
    ],
)
def test_thoughts_stand_between_tags(text, expected):
    assert kinds(split([text])) == kinds(split(text)) == expected


@given(st.lists(st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", "a", "\n", "<"]), max_size=12))
def test_no_text_is_lost_and_cuts_make_no_difference(parts):
    text = "".join(parts)
    assert split(parts).content == text
    assert kinds(split(parts)) == kinds(split([text])) == kinds(split(text))


def test_what_was_given_is_told_from_what_was_generated_within_a_tag():
    splitter = ThoughtSplitter(KNOWN[0])
    pieces = [
        *splitter.feed("a <", given=True),
        *splitter.feed("h1>b <th"),
        *splitter.feed("ink>", given=True),
    ]
    told = [(piece.text, piece.kind, piece.given) for piece in pieces if piece.text]
    assert told == [
        ("a ", "answer", True),
        ("<", "answer", True),
        ("h1>b ", "answer", False),
        ("<th", "tag", False),
        ("ink>", "tag", True),
    ]


def test_a_tag_that_was_cut_is_whole_when_it_goes_on(demo):
    talk = Conversation(Speaker(demo[1], "<thi"), demo[1])
    assert talk.ask("Hello!").thought == ""
    talk.model = Speaker(demo[1], "nk>Hm.</think>Hi.")
    answer = talk.continue_()
    assert (answer.thought, answer.answer) == ("Hm.", "Hi.")


def test_an_interrupt_at_a_tag_repeats_nothing(demo):
    heard = []

    def interrupt(piece):
        heard.append(piece.text)
        if "".join(heard).endswith("<think>"):
            raise KeyboardInterrupt

    talk = Conversation(Speaker(demo[1], "Well <think>Hm."), demo[1])
    with pytest.raises(KeyboardInterrupt):
        talk.ask("Hello!", interrupt)
    assert talk.messages[-1].content == "".join(heard) == "Well <think>"


def test_a_template_may_have_begun_the_thought():
    message = split(["Hm.</think>\n\nHi."], is_thinking=True)
    assert (message.thought, message.answer) == ("Hm.", "Hi.")


def test_parts_of_a_message():
    pieces = [Piece("<think>", "tag", True), Piece("Hm", "thought", True), Piece("m.", "thought")]
    pieces += [Piece("</think>", "tag"), Piece("\n\nHi", "answer"), Piece(" you.", "answer")]
    message = Message.of_pieces("assistant", pieces, "length")
    assert message.content == "<think>Hmm.</think>\n\nHi you."
    assert (message.given, message.generated) == ("<think>Hm", "m.</think>\n\nHi you.")
    assert (message.thought, message.answer) == ("Hmm.", "Hi you.")
    assert len(message.pieces) == 5


@pytest.mark.parametrize("tags", [("", "x"), ("x", " "), ("x", "x")])
def test_tags_that_cannot_be_found_are_refused(tags):
    with pytest.raises(UsageError, match="write two different tags"):
        Tags(*tags)


@pytest.fixture
def thinker():
    """A tokenizer with Qwen 3's template in short: thoughts are left out of all but the last answer."""
    tokenizer = recipes.open_tokenizer("demo")
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' %}{{ message['content'].split('</think>')[-1].lstrip('\\n') }}"
        "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return tokenizer


@pytest.mark.parametrize("opening", ["", "<think>\n"])
def test_thoughts_are_kept_out_of_later_turns_as_the_template_asks(thinker, opening):
    if opening:  # DeepSeek R1's template begins the thought
        thinker.chat_template = thinker.chat_template.replace(
            "assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"
        )
    said = ("" if opening else "<think>") + "Let me see.</think>\n\nParis."
    pieces = []
    talk = Conversation(Speaker(thinker, said), thinker)
    answer = talk.ask("The capital of France?", pieces.append)
    assert (answer.thought, answer.answer, answer.content) == ("Let me see.", "Paris.", said)
    assert {piece.kind for piece in pieces if piece.text.strip()} == {"thought", "tag", "answer"}
    assert "".join(piece.text for piece in pieces) == said
    talk.hear("And of Spain?")
    prompt = thinker.decode(talk.prompt()[0])
    assert "Let me see" not in prompt and "<|im_start|>assistant\nParis.<|im_end|>" in prompt
    assert prompt.endswith("<|im_start|>assistant\n" + opening)


def test_a_thought_can_be_gone_on_with(thinker):
    talk = Conversation(Speaker(thinker, "<think>Let me see. It is"), thinker)
    talk.ask("The capital of France?")
    talk.model = Speaker(thinker, " Paris.</think>Paris!")
    answer = talk.continue_(" surely")
    assert answer.thought == "Let me see. It is surely Paris."
    assert answer.answer == "Paris!"
    assert (answer.given, answer.finish) == (" surely", "stop")
    assert talk.model.prompt.endswith("<|im_start|>assistant\n<think>Let me see. It is surely")


def test_tags_that_are_special_tokens_are_seen():
    thinker = recipes.open_tokenizer("demo")
    thinker.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    assert tags_of(thinker) == Tags("[THINK]", "[/THINK]")
    assert len(special_tokens(tags_of(thinker), thinker)) == 2
    talk = Conversation(Speaker(thinker, "[THINK]Hm.[/THINK]Hi.<|im_end|>"), thinker)
    answer = talk.ask("Hello!")
    assert (answer.thought, answer.answer) == ("Hm.", "Hi.")


def test_tags_can_be_chosen(demo):
    talk = Conversation(Speaker(demo[1], "((Hm.))Hi."), demo[1], tags=Tags("((", "))"), sampling=Sampling())
    assert talk.ask("Hello!").answer == "Hi."


def test_tags_are_those_of_the_template(thinker):
    assert tags_of(thinker) == Tags("<think>", "</think>")
    thinker.chat_template = "{{ messages[0]['content'].split('◁/think▷')[-1] }}"
    assert tags_of(thinker) == Tags("◁think▷", "◁/think▷")
