import io
import json

import pytest
from rich.console import Console

from restack.chat.messages import Message, Piece
from restack.chat.programs import Line, Listeners, Terminal, Transcript
from restack.errors import UsageError

THOUGHT = (
    Piece("<think>", "tag"),
    Piece("Hm.\nWell.", "thought"),
    Piece("</think>", "tag"),
    Piece("\n\nYes."),
)


def shown(*pieces, heading="", thoughts=True, terminal=False):
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=20)
    audience = Terminal(thoughts=thoughts, console=console)
    audience.note("It begins.")
    audience.begin("Ann", heading)
    for piece in pieces:
        audience.piece(piece)
    audience.end(Line(1, "Ann", Message("assistant", pieces)))
    return file.getvalue().removeprefix("It begins.\n")


def test_a_pipe_gets_plain_text_as_it_stands():
    text = "  a [bold]b[/] :smile: \x1b[31mc\td\n\n" + "long " * 20
    assert shown(Piece(""), Piece(text[:9]), Piece(text[9:])) == f"Ann > {text}\n"


def test_a_terminal_is_not_steered_by_what_models_say():
    output = shown(Piece("a\x1b[31mb\x07\x9bc\td\n"), terminal=True)
    assert output.endswith("a[31mbc\td\n") and "\x1b[31m" not in output


def test_thoughts_are_dimmed_or_hidden():
    assert shown(*THOUGHT) == "Ann > <think>Hm.\nWell.</think>\n\nYes.\n"
    assert "\x1b[2mHm.\x1b[0m\n\x1b[2mWell.\x1b[0m" in shown(*THOUGHT, terminal=True)
    assert shown(*THOUGHT, thoughts=False) == "Ann > Yes.\n"
    assert shown(Piece("\nYes."), thoughts=False) == "Ann > \nYes.\n"
    assert shown(THOUGHT[1], heading="think #1") == "think #1\nHm.\nWell.\n"
    assert shown(THOUGHT[1], heading="think #1", thoughts=False) == "think #1\n"


def test_pieces_are_shown_at_once():
    file = io.StringIO()
    audience = Terminal(console=Console(file=file))
    audience.begin("Ann")
    seen = []
    for text in ("One", " two", " three"):
        audience.piece(Piece(text))
        seen.append(file.getvalue())
    assert seen == ["Ann > One", "Ann > One two", "Ann > One two three"]
    audience.note("Stopped.")
    assert file.getvalue() == "Ann > One two three\nStopped.\n"


def lines():
    return [
        Line(1, "You", Message("user", (Piece("Is it?\n# Really"),))),
        Line(1, "Ann", Message("assistant", (Piece("Well: ", given=True), Piece("yes.")), "length"),
             {"confidence": 0.912}),
        Line(2, "Ann", Message("assistant", THOUGHT, "interrupted")),
        Line(3, "Ann", Message("assistant", (Piece("ab"),)), {"thoughts": ["First.\n\nThen.", "\nAgain."]}),
    ]  # fmt: skip


def test_json_lines(tmp_path):
    transcript = Transcript(tmp_path / "talk.jsonl", "restack duet")
    transcript.note("left out")
    for line in lines():
        transcript.end(line)
    read = [json.loads(line) for line in (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()]
    assert read == [
        {"turn": 1, "speaker": "You", "role": "user", "content": "Is it?\n# Really", "finish": "stop"},
        {"turn": 1, "speaker": "Ann", "role": "assistant", "content": "Well: yes.", "given": "Well: ",
         "finish": "length", "confidence": 0.912},
        {"turn": 2, "speaker": "Ann", "role": "assistant", "content": "<think>Hm.\nWell.</think>\n\nYes.",
         "thought": "Hm.\nWell.", "finish": "interrupted"},
        {"turn": 3, "speaker": "Ann", "role": "assistant", "content": "ab", "finish": "stop",
         "thoughts": ["First.\n\nThen.", "\nAgain."]},
    ]  # fmt: skip


def test_markdown(tmp_path):
    transcript = Transcript(tmp_path / "talk.md", "restack duet")
    transcript.note("A and B.")
    for line in lines():
        transcript.end(line)
    transcript.note("It ends.")
    transcript.end(None)
    assert (
        (tmp_path / "talk.md").read_text(encoding="utf-8")
        == """\
# restack duet

A and B.

## Turn 1

**You**

Is it?
# Really

**Ann** (91%)

Well: yes.

*(cut off: the limit of tokens)*

## Turn 2

**Ann**

> Hm.
> Well.

Yes.

*(interrupted)*

## Turn 3

**Ann**

> *think #1*
>
> First.
>
> Then.

> *think #2*
>
> Again.

*It ends.*

"""
    )


@pytest.mark.parametrize("ending", [".md", ".jsonl"])
def test_a_transcript_is_there_after_each_message_and_not_before(tmp_path, ending):
    path = tmp_path / f"talk{ending}"
    audience = Listeners([Terminal(console=Console(file=io.StringIO())), Transcript(path)])
    audience.note("A and B.")
    audience.begin("Ann")
    audience.piece(Piece("Hi"))
    assert not path.exists()
    sizes = []
    for line in lines():
        audience.end(line)
        sizes.append(path.stat().st_size)
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    "name", ["talk.txt", "talk", ".md", "there.md", "no/folder.md", "link.jsonl", "there.md/x.md"]
)
def test_where_no_transcript_can_be(tmp_path, name):
    (tmp_path / "there.md").touch()
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    with pytest.raises(UsageError, match="; "):
        Transcript(tmp_path / name)
