"""Many requests at once: none waits for a long one, is lost, or is mixed up with another."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from restack.runtime.native import Kernel, quiet_kernel
from restack.serving.turns import Turns
from tests.serving.running import running

TEXT = "/v1/completions"


def test_turns_are_taken_in_order_and_random_numbers_go_on():
    turns, seen = Turns(), []
    ready = threading.Barrier(3)

    def work(name):
        ready.wait()
        with turns.taken():
            torch.manual_seed(name)
            for _ in range(50):
                seen.append((name, int(torch.randint(10**6, ()))))
                turns.pass_on()

    with turns.taken():
        threads = [threading.Thread(target=work, args=(name,)) for name in range(3)]
        for thread in threads:
            thread.start()
        while len(turns._waiting) < 3:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    names = [name for name, _ in seen]
    assert all(sorted(names[i : i + 3]) == [0, 1, 2] for i in range(0, 150, 3))
    for name in range(3):
        torch.manual_seed(name)
        assert [number for who, number in seen if who == name] == [
            int(torch.randint(10**6, ())) for _ in range(50)
        ]


class Asked:
    """A step as `Turns` sees it."""

    def __init__(self, name, kind="one"):
        self.name, self.kind, self.logits = name, kind, None


def in_turns(kinds, steps, monkeypatch, run):
    """Threads that take so many steps each, all of them from the same moment on: what each one ends with."""
    monkeypatch.setattr("restack.serving.turns.run_together", run)
    turns, ends = Turns(), {}

    def work(name):
        with turns.taken():
            try:
                ends[name] = [turns.run(Asked(name, kinds[name])) for _ in range(steps)]
            except ValueError as error:
                ends[name] = str(error)

    with turns.taken():
        threads = [threading.Thread(target=work, args=(name,)) for name in kinds]
        for thread in threads:
            thread.start()
        while len(turns._waiting) < len(threads):
            time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert not turns._steps and not turns._is_taken
    return ends


def test_steps_of_one_kind_are_run_together(monkeypatch):
    seen = []

    def run(steps):
        seen.append(sorted(step.name for step in steps))
        for step in steps:
            step.logits = len(seen)

    ends = in_turns({"a": 1, "b": 1, "c": 2, "d": 1}, 5, monkeypatch, run)
    assert sorted(seen) == [["a", "b", "d"]] * 5 + [["c"]] * 5
    assert all(len(each) == 5 for each in ends.values())


def test_a_step_that_fails_ends_its_own_answer_only(monkeypatch):
    def run(steps):
        if any(step.name == "bad" for step in steps):
            raise ValueError("wrong")
        for step in steps:
            step.logits = step.name

    ends = in_turns(dict.fromkeys(["a", "bad", "b", "c"], 1), 5, monkeypatch, run)
    assert ends == {"bad": "wrong"} | {name: [name] * 5 for name in "abc"}


def test_answers_share_passes_over_the_weights(server, monkeypatch):
    if quiet_kernel() is None:
        pytest.skip("no C++ compiler")
    step, passes = Kernel.step, []

    def counted(kernel, visits, tokens, hidden):
        passes.append((len(visits), tokens.rows))
        step(kernel, visits, tokens, hidden)

    def ask(name):
        return server.post(TEXT, {"model": name, "prompt": "Once", "max_tokens": 400, "ignore_eos": True})

    monkeypatch.setattr(Kernel, "step", counted)
    with ThreadPoolExecutor(4) as pool:
        assert {status for status, _ in pool.map(ask, ["demo", "deeper", "shallow", "demo"])} == {200}
    assert max(rows for _, rows in passes) == 4
    assert sum(length for length, _ in passes) < 0.6 * sum(length * rows for length, rows in passes)


def test_a_short_answer_does_not_wait_for_a_long_one(server):
    long = {"model": "demo", "prompt": "Once", "max_tokens": 600, "ignore_eos": True, "temperature": 0}
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(server.post, TEXT, long)
        while not server.writers.running:
            time.sleep(0.005)
        status, _ = server.post(TEXT, {"model": "deeper", "prompt": "Hi", "max_tokens": 4})
        assert status == 200
        assert not writing.done()
        assert writing.result()[0] == 200


def asks(number):
    """A request that is like no other: of the plan, the prompt, the seed."""
    pick = random.Random(number)
    return {
        "model": pick.choice(["demo", "deeper", "shallow", "demo@0:9,3:12"]),
        "prompt": pick.choice(["Once upon a time", "Question: What is 2 + 3?", "The boat", "A " * 30]),
        "max_tokens": pick.randrange(1, 24),
        "temperature": pick.choice([0, 0.7, 1.5]),
        "seed": number,
        "n": pick.choice([1, 1, 2]),
        "ignore_eos": pick.random() < 0.5,
    }


def soak(requests, clients):
    """Each answer is the one that a server without anybody else gives; some clients go away meanwhile."""
    with running(named={"deeper": "0:8,4:12", "shallow": "0:8"}, kept=0) as alone:
        expected = {number: texts(alone.post(TEXT, asks(number))) for number in range(requests)}
    with running(named={"deeper": "0:8,4:12", "shallow": "0:8"}, slots=6, queue=200) as server:

        def ask(number):
            if number % 5 == 0:
                go_away(server, asks(number), after=number % 7)
            return texts(server.post(TEXT, asks(number)))

        with ThreadPoolExecutor(clients) as pool:
            answers = list(pool.map(ask, range(requests)))
        assert [n for n in range(requests) if answers[n] != expected[n]] == []
        assert server.is_idle()


def go_away(server, asked, after):
    """Read so many pieces of a long answer, and hang up."""
    options = {name: asked[name] for name in ("model", "prompt", "temperature", "seed")}
    with server.openai.completions.create(
        **options, stream=True, max_tokens=300, extra_body={"ignore_eos": True}
    ) as stream:
        for _ in range(after):
            next(iter(stream))


def texts(answer):
    status, body = answer
    assert status == 200, body
    return [choice["text"] for choice in body["choices"]]


def test_answers_are_not_mixed_up():
    soak(30, 8)


@pytest.mark.slow
def test_soak():
    soak(1000, 16)
