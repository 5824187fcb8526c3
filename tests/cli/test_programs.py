"""`restack duet`, `cobblers` and `think` along a pipe, on the demo model."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from restack.cli import main

EXPERTS = ("--expert", "Numbers=demo@0:8,4:12", "--expert", "Knowledge=demo")
WHICH = "Which word is it? {classes} {prompt}"  # which the demo model can choose by
COBBLERS = ("cobblers", "--router", "demo", *EXPERTS, "--router-prompt", WHICH, "--temperature", "0")
ENDLESS = ("--temperature", "50", "--top-k", "0", "--top-p", "1", "--max-tokens", "900")


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments, text=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        status = main([str(argument) for argument in arguments])
        return status, capsys.readouterr()

    return run


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_duet_of_two_plans(run, tmp_path):
    path = tmp_path / "talk.jsonl"
    status, output = run(
        "duet",
        "demo",
        "demo@0:12,4:",
        "--start",
        "Hello!",
        "--temperature",
        0,
        "--turns",
        2,
        "--transcript",
        path,
    )
    assert (status, output.err) == (0, "")
    assert output.out.splitlines() == [
        "A: demo; B: demo@0:12,4: (20 visits of 12 layers). In memory: one set of weights, 2,547,840 (2.5M) "
        "parameters, 5.1 MB.",
        "A > Hello!",
        "B > Hello! How can I help you?",
        "A > What is the capital of Egypt?",
        "B > The capital of Egypt is Cairo.",
        "The duet ends: 2 turns are over.",
    ]
    assert [(line["turn"], line["speaker"], line["role"]) for line in read(path)] == [
        (1, "A", "assistant"), (1, "B", "assistant"), (2, "A", "assistant"), (2, "B", "assistant"),
    ]  # fmt: skip
    assert read(path)[0] == {"turn": 1, "speaker": "A", "role": "assistant", "content": "Hello!",
                             "given": "Hello!", "finish": "stop"}  # fmt: skip


def test_what_each_of_the_two_is_given(run, tmp_path):
    path = tmp_path / "talk.jsonl"
    status, output = run(
        "duet", "demo", "demo", "--start", "What is your name?", "--reversed-role", "--temperature", 0,
        "--system", "You are Kim.", "--b", "system=You are Mira.", "--b", "name=Mira",
        "--b", r"ai_prefix=Well:\n",
        "--b", "max-tokens=3", "--turns", 1, "--transcript", path,
    )  # fmt: skip
    assert (status, output.err) == (0, "")
    first, second = read(path)
    assert (first["role"], second["role"], second["speaker"]) == ("user", "assistant", "Mira")
    assert second["given"] == "Well:\n" and second["finish"] == "length"


def test_a_duet_ends_by_a_repetition_and_goes_on_without_the_test(run):
    start = ("duet", "demo", "demo", "--start", "Hello!", "--temperature", 0, "--turns", 4)
    _, output = run(*start)
    assert output.out.endswith("The duet ends: what A says in turn 3 repeats what B said in turn 2.\n")
    _, output = run(*start, "--repetition", 0)
    assert output.out.endswith("The duet ends: 4 turns are over.\n")


def test_a_seed_makes_it_the_same(run):
    warm = ("duet", "demo", "demo", "--start", "Hi!", "--temperature", 3, "--turns", 2, "--max-tokens", 9)
    first, again, other = (run(*warm, "--seed", seed)[1].out for seed in (1, 1, 2))
    assert first == again != other


def test_cobblers_read_a_pipe_to_its_end(run, tmp_path):
    path = tmp_path / "talk.md"
    text = (
        "What is 12 + 30?\n\nWhat is the capital of France?\n/restart\n/help\nWhat is the capital of France?"
    )
    status, output = run(*COBBLERS, "--transcript", path, text=text)
    assert (status, output.err) == (0, "")
    answers = [line for line in output.out.splitlines() if " > " in line]
    assert answers == [
        "Numbers > 12 + 30 = 42.",
        "Numbers > The capital of France is Paris.",
        "Knowledge > The capital of France is Paris.",
    ]
    assert "one set of weights" in output.out
    assert "The conversation is forgotten." in output.out and "/restart" in output.out
    written = path.read_text()
    assert "**Numbers** (" in written and "## Turn 3" in written and "What is 12 + 30?" in written


def test_cobblers_per_question_from_a_file(run, tmp_path):
    file, path = tmp_path / "experts.yaml", tmp_path / "talk.jsonl"
    file.write_text(f"""\
router:
  model: demo
  prompt: "{WHICH}"
experts:
  - name: Numbers
    model: demo@0:8,4:12
    ai_prefix: "So: "
  - {{name: Knowledge, model: demo, system: "You are Demo.", temperature: 0, max-tokens: 3}}
fallback: Numbers
confidence: 0.2
""")
    status, output = run("cobblers", "--experts", file, "--per-question", "--turns", 2, "--transcript", path,
                         text="What is the capital of France?\nWhat is 12 + 30?\nHello!")  # fmt: skip
    assert (status, output.err) == (0, "")
    assert "2 turns are over." in output.out
    lines = read(path)
    assert [line["speaker"] for line in lines] == ["You", "Knowledge", "You", "Numbers"]
    assert lines[1]["finish"] == "length" and lines[3]["given"] == "So: "
    assert lines[1]["expert"] == "Knowledge" and 0.5 < lines[1]["confidence"] <= 1
    assert "given" not in lines[0] and lines[0]["role"] == "user"


def test_thoughts_and_their_summary(run, tmp_path):
    path = tmp_path / "talk.jsonl"
    status, output = run("think", "demo", "--summariser", "demo@0:8,4:12", "--prompt", "What is 345 + 213?",
                         "--temperature", 0, "--transcript", path)  # fmt: skip
    assert (status, output.err) == (0, "")
    out = output.out
    assert "one set of weights" in out
    assert out.index("think #1\nLet's break it down") < out.index("think #2\n") < out.index("think #3\n")
    assert "So 345 + 213 = 558.\nthink #2\nThis question looks complex." in out
    assert "Summariser > " in out
    assert [line["speaker"] for line in read(path)] == ["You", "Thinker", "Summariser"]
    _, hidden = run("think", "demo", "--prompt", "What is 345 + 213?", "--temperature", 0, "--hide-thoughts")
    assert hidden.out.splitlines()[1:4] == ["think #1", "think #2", "think #3"]


def test_think_with_words_from_a_file_and_options(run, tmp_path):
    file = tmp_path / "words.yaml"
    file.write_text("prefix: Once\ncheck: ' Or'\nsummary: |\n  {thoughts}\n  {prompt}\n")
    path = tmp_path / "talk.jsonl"
    status, output = run("think", "demo", "--prompts", file, "--prefix", r"Well,\n", "--passes", 2,
                         "--budget", 20, "--turns", 1, "--transcript", path,
                         text="What is 3 + 4?\nHello!\n")  # fmt: skip
    assert (status, output.err) == (0, "")
    assert len(read(path)) == 3
    assert read(path)[1]["given"].startswith("Well,\n") and read(path)[1]["tokens"] <= 20


WRONG = [
    (("duet", "demo"), "Missing argument 'B'"),
    (("duet", "demo", "demo"), "Missing option '--start'"),
    (("duet", "demo", "demo", "--start", " "), "--start is empty; write what A says first"),
    (("duet", "demo", "demo@0:13", "--start", "x"), "past the model's 12 layers"),
    (("duet", "demo", "./nowhere", "--start", "x"), "there is no folder ./nowhere"),
    (("duet", "demo", "demo", "--start", "x", "--turns", "0"), "--turns 0: write 1 or more"),
    (("duet", "demo", "demo", "--start", "x", "--repetition", "2"), "--repetition 2.0: write a number"),
    (("duet", "demo", "demo", "--start", "x", "--a", "warm=1"), "--a: there is no 'warm'; the keys"),
    (("duet", "demo", "demo", "--start", "x", "--b", "warm"), "--b 'warm' is not KEY=VALUE"),
    (("duet", "demo", "demo", "--start", "x", "--b", "top-k=x"), "--b: top-k is 'x'; write a whole number"),
    (("duet", "demo", "demo", "--start", "x", "--a", "top-p=2"), "top-p 2.0: write a number above 0"),
    (("duet", "demo", "demo", "--start", "x", "--a", "name=B"), "'B' names two speakers"),
    (("duet", "demo", "demo", "--start", "x", "--a", "name=C", "--a", "name=D"), "--a gives name twice"),
    (("duet", "demo", "demo", "--start", "x\udcff"), "of --start is not UTF-8"),
    (("duet", "demo", "demo", "--start", "x", "--a", "system=\udcff"), "of --a is not UTF-8"),
    (("duet", "demo", "demo", "--start", "word " * 3000), "the model's context is 1024"),
    (("duet", "demo", "demo", "--start", "x", "--transcript", "talk.txt"), "that ends with .md or .jsonl"),
    (("duet", "demo", "demo", "--start", "x", "--overflow", "explode"), "--overflow is 'explode'"),
    (("duet", "demo", "demo", "--start", "x", "--seed", "9" * 30), "is out of range"),
    (("cobblers", "--router", "demo"), "name the experts in one way"),
    (("cobblers", *EXPERTS), "there is no router; write --router MODEL"),
    (("cobblers", "--router", "demo", *EXPERTS[:2]), "there is one expert"),
    (("cobblers", "--router", "demo", *EXPERTS, "--experts", "x.yaml"), "in one way"),
    (("cobblers", "--router", "demo", *EXPERTS, *EXPERTS[:2]), "'Numbers' names two speakers"),
    (("cobblers", "--router", "demo", *EXPERTS, "--expert", "=demo"), "--expert '=demo' is not NAME=MODEL"),
    (("cobblers", "--router", "demo", *EXPERTS, "--expert", "demo"), "--expert 'demo' is not NAME=MODEL"),
    (("cobblers", "--router", "demo", *EXPERTS, "--expert", "X=./nowhere"), "there is no folder ./nowhere"),
    (("cobblers", "--router", "./nowhere", *EXPERTS), "there is no folder ./nowhere"),
    (("cobblers", "--router", "demo", *EXPERTS, "--fallback", "X"), "the fallback 'X' is no expert"),
    (("cobblers", "--router", "demo", *EXPERTS, "--confidence", "50"), "--confidence 50.0: write a number"),
    (("cobblers", "--router", "demo", *EXPERTS, "--router-prompt", "Who?"), "lacks {prompt}"),
    (("cobblers", "--experts", "nowhere.yaml"), "nowhere.yaml cannot be read: No such file"),
    (("think", "demo", "--prompt", ""), "--prompt is empty"),
    (("think", "demo", "--passes", "0"), "--passes 0: write 1 or more"),
    (("think", "demo", "--budget", "0"), "--budget 0: write 1 or more"),
    (("think", "demo", "--summary", "{prompt}"), "the summary prompt lacks {thoughts}"),
    (("think", "demo", "--summariser", "./nowhere"), "there is no folder ./nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "told"), WRONG, ids=lambda value: " ".join(value)[:60] if type(value) is tuple else ""
)
def test_wrong_input_is_told_in_one_line_before_models_are_loaded(
    run, tmp_path, monkeypatch, arguments, told
):
    monkeypatch.chdir(tmp_path)
    if "word word" not in str(arguments):
        monkeypatch.setattr("restack.recipes.shelf.open", lambda *args, **options: pytest.fail("it loads"))
    arguments += () if "--transcript" in arguments else ("--transcript", "talk.md")
    status, output = run(*arguments, text="Hello!")
    assert status == 2
    assert told in output.err
    assert len(output.err.splitlines()) <= 2  # an error in a spec shows the spec above it
    assert list(tmp_path.iterdir()) == []


FILES = [
    ("experts: [", "experts.yaml, line 1: no YAML"),
    ("router: demo\nexperts:\n\t- x", "experts.yaml, line 3: no YAML: found character '\\t'"),
    ("- demo", "experts.yaml has no keys"),
    ("", "experts.yaml has no keys"),
    ("router: demo", "experts is no list"),
    ("routre: demo", "there is no 'routre'; the keys are router, experts"),
    (
        "experts: [{name: A, modle: demo}]",
        "experts.yaml, expert 1: there is no 'modle'; the keys are name, model, system",
    ),
    ("experts: [{name: A, model: demo}, {name: 1, model: demo}]", "expert 2: name is 1; write a text"),
    ("experts: [{name: A}]", "expert 1: model is None; write a text"),
    ("experts: [{name: A, model: demo, top-k: 1.5}]", "expert 1: top-k is 1.5; write a whole number"),
    ("experts: [{name: A, model: demo, temperature: yes}]", "temperature is True; write a number"),
    ("experts: [{name: A, model: demo, system: 7}]", "system is 7; write a text"),
    ("experts: [{name: A, model: ./nowhere}]", "there is no folder ./nowhere"),
    ("experts: []\nrouter: {model: demo, temperature: 1}", "router: there is no 'temperature'"),
    ("experts: []\nrouter: demo", "there are no experts"),
    ("experts: [{name: A, model: demo}, {name: A, model: demo}]\nrouter: demo", "'A' names two speakers"),
    ("experts: []\nfallback: 7", "fallback is 7; write the name of an expert"),
    ("experts: []\nconfidence: high", "confidence is 'high'; write a probability"),
    (b"router: \xff", "experts.yaml is not UTF-8 at byte 8"),
]


@pytest.mark.parametrize(("text", "told"), FILES, ids=range(len(FILES)))
def test_wrong_files_of_experts(run, tmp_path, monkeypatch, text, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experts.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    status, output = run("cobblers", "--experts", "experts.yaml")
    assert status == 2
    assert told in output.err
    assert len(output.err.splitlines()) == 1


def test_a_transcript_that_is_there_is_left_alone(run, tmp_path):
    path = tmp_path / "talk.md"
    path.write_text("precious")
    status, output = run("think", "demo", "--prompt", "Hello!", "--transcript", path)
    assert (status, output.out) == (2, "")
    assert output.err == f"restack: {path} is there already; remove it, or name another file\n"
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Hello!\n/lairs\nHello!", "there is no /lairs; /help lists what there is"),
        (
            "Hello!\n" + "word " * 2000,
            "context is 1024; shorten it, or forget the conversation with /restart",
        ),
        ("Hello!\n" + "x" * 1_000_000, "the model's context is 1024"),
    ],
)
def test_the_first_mistake_in_a_pipe_ends_it(run, tmp_path, text, told):
    path = tmp_path / "talk.jsonl"
    status, output = run(*COBBLERS, "--transcript", path, text=text)
    assert status == 2
    assert told in output.err
    assert [line["turn"] for line in read(path)] == [1, 1]


@pytest.mark.parametrize("command", [COBBLERS, ("think", "demo", "--passes", "1")])
def test_a_pipe_that_is_not_utf8_or_empty(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is\xff 3 + 4?\n")))
    assert main(list(command)) == 2
    assert "byte 0xff at column 8 of input line 1 is not UTF-8" in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n/quit\nHello!\n")))
    assert main(list(command)) == 0
    assert " > " not in capsys.readouterr().out


def started(*arguments, **options):
    command = [sys.executable, "-u", "-m", "restack", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **options)


def test_an_interrupt_in_the_middle_of_a_message_keeps_the_transcript(tmp_path):
    path = tmp_path / "talk.jsonl"
    process = started("duet", "demo", "demo", "--start", "Tell me a story.", *ENDLESS, "--transcript", path)
    out = b""
    while b"B > " not in out or len(out.partition(b"B > ")[2]) < 20:
        out += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error.decode()) == (130, "restack: interrupted\n")
    first, second = read(path)
    assert (first["content"], first["finish"]) == ("Tell me a story.", "stop")
    assert second["finish"] == "interrupted" and len(second["content"]) > 5


def test_a_closed_pipe_ends_it(tmp_path):
    process = started("duet", "demo", "demo", "--start", "Tell me a story.", *ENDLESS)
    assert process.stdout.read(1)
    process.stdout.close()
    error = process.stderr.read().decode()
    assert (process.wait(60), error) == (2, "restack: the output was closed before the end\n")


def test_wrong_models_are_told_without_torch(tmp_path):
    check = (
        "import sys; from restack.cli import main; status = main(sys.argv[1:]); "
        "sys.exit(status + 10 * ('torch' in sys.modules or 'transformers' in sys.modules))"
    )
    for arguments in (
        ["duet", "demo", "./nowhere", "--start", "x"],
        ["cobblers", "--router", "demo", "--expert", "X=./nowhere"],
        ["think", "./nowhere"],
        ["duet", "--help"],
    ):
        done = subprocess.run([sys.executable, "-c", check, *arguments], capture_output=True, timeout=60,
                              env=os.environ | {"COLUMNS": "100"})  # fmt: skip
        assert done.returncode == (0 if "--help" in arguments else 2), done.stderr
