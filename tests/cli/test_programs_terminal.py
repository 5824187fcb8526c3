"""The programs as somebody at a terminal meets them."""

import json
import sys

import pexpect
import pytest

from tests.cli.test_programs import COBBLERS, ENDLESS


@pytest.fixture
def start():
    children = []

    def start(*arguments):
        command = ["-m", "restack", *map(str, arguments)]
        children.append(
            pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=90, dimensions=(50, 200))
        )
        return children[-1]

    yield start
    for child in children:
        child.close(force=True)


def ended(child):
    child.expect(pexpect.EOF)
    child.wait()
    return child.exitstatus


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_cobblers_typed(start):
    child = start(*COBBLERS)
    child.expect("one set of weights")
    child.expect("You  > ")
    child.sendline("What is 12 + 30?")
    child.expect(r"Numbers \d+%, Knowledge \d+%")
    child.expect("Numbers > .*12 \\+ 30 = 42\\.")
    child.expect("You  > ")
    child.send("/res\t\r")
    child.expect("The conversation is forgotten.")
    child.expect("You  > ")
    child.sendline("/lairs")
    child.expect("there is no /lairs; /help lists")
    child.expect("You  > ")
    child.sendline("What is the capital of France?")
    child.expect("Knowledge > .*The capital of France is Paris\\.")
    child.expect("You  > ")
    child.sendeof()
    assert ended(child) == 0


def test_interrupts_of_a_thinker(start, tmp_path):
    path = tmp_path / "talk.jsonl"
    child = start("think", "demo", *ENDLESS, "--transcript", path)
    child.expect("You  > ")
    child.sendline("Tell me a story.")
    child.expect("think #1")
    child.expect("step by step.\\S*\r\n.*\\w{3}")
    child.sendintr()
    child.expect("Stopped; what was said is kept. Ctrl-C again ends it.")
    child.expect("You  > ")
    child.sendintr()
    child.expect("\r\nrestack: interrupted")
    assert ended(child) == 130
    question, thought = read(path)
    assert (question["content"], thought["finish"]) == ("Tell me a story.", "interrupted")
    assert thought["content"].startswith("Let's break it down")


def test_a_duet_interrupted(start, tmp_path):
    path = tmp_path / "talk.md"
    child = start("duet", "demo", "demo@0:12,4:", "--start", "Hello!", *ENDLESS, "--transcript", path)
    child.expect("one set of weights")
    child.expect("A > .*Hello!")
    child.expect("B > .*\\w{3}")
    child.sendintr()
    child.expect("restack: interrupted")
    assert ended(child) == 130
    assert path.read_text().endswith("*(interrupted)*\n\n")
