"""Probes score what transformers would say, and tell what is wrong with their files."""

import json
import math

import pytest
import torch

import restack
from restack import recipes
from restack.demo.probes import answers, is_right, probes
from restack.errors import UsageError
from restack.runtime import perplexity, sample_text
from restack.scanning import Asker, Making, base, make_probe, named
from restack.scanning.asking import Task
from restack.scanning.probes.arithmetic import answer_in, credit, problems
from restack.scanning.probes.demo import ANSWERED
from restack.scanning.probes.making import check_probe


@pytest.fixture(scope="module")
def demo():
    return recipes.open("demo", dtype="float32")


@pytest.fixture(scope="module")
def tokenizer():
    return recipes.open_tokenizer("demo")


def asked(model, probe, spec="all"):
    """The scores of all questions of a probe, for one plan."""
    plan = named(model, [spec])[0].plan
    (found,) = Asker(model, [probe])(Task((plan,), {probe.name: range(len(probe))}))
    assert found.error is None, found.error
    return found.scores[probe.name]


@pytest.mark.parametrize("spec", ["all", "0:8,4:12", "0:5,7:12"])
def test_the_demo_probe_is_what_greedy_generation_says(demo, tokenizer, spec):
    families = ("fact", "subtraction", "chain", "sorting", "working")
    probe = make_probe(f"demo:{','.join(families)}", demo, tokenizer, Making(100, 4))
    items = [item for family in families for item in probes(family, 20, 4)]
    written = answers(restack.view(demo, spec), tokenizer, items)
    assert asked(demo, probe, spec) == [float(is_right(*pair)) for pair in zip(items, written, strict=True)]
    assert probe.groups == [item.family for item in items]


def test_the_loss_of_a_text_is_its_perplexity(demo, tokenizer):
    probe = make_probe("text", demo, tokenizer, Making(window=64))
    scores = asked(demo, probe)
    count = len(tokenizer(sample_text())["input_ids"])
    size = count // len(scores)
    tokens = tokenizer(sample_text())["input_ids"][: size * len(scores)]
    theirs = perplexity(demo, lambda *args, **kwargs: {"input_ids": tokens}, "", window=size)
    assert sum(scores) / len(scores) == pytest.approx(theirs.loss, rel=1e-5)
    assert math.exp(scores[0]) > 1


def test_a_short_text_is_cut_into_many_questions(demo, tokenizer):
    assert 16 <= len(make_probe("text", demo, tokenizer, Making())) <= 40


@torch.no_grad()
def test_choices_are_compared_by_their_summed_log_probabilities(demo, tokenizer, tmp_path):
    file = tmp_path / "choices.jsonl"
    questions = [
        {"question": "What is the capital of France?", "choices": ["Rome", "The capital of France is Paris."],
         "answer": 1},
        {"prompt": "The opposite of hot is", "choices": [" cold", " warm", " green"], "answer": " cold"},
        {"question": "What is 3 + 4?", "choices": ["12", "7"], "answer": "12"},
    ]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, questions)) + "\n")
    probe = make_probe(f"choice:{file}", demo, tokenizer, Making())
    assert probe.chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
    expected = []
    for question in questions:
        if "prompt" in question:
            start = question["prompt"]
        else:
            messages = [{"role": "user", "content": question["question"]}]
            start = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        likely = []
        for choice in question["choices"]:
            tokens = tokenizer(start + choice, return_tensors="pt", add_special_tokens=False)["input_ids"]
            before = len(tokenizer(start, add_special_tokens=False)["input_ids"])
            log = demo(tokens).logits[0].log_softmax(-1)
            likely.append(sum(log[n - 1, tokens[0, n]].item() for n in range(before, tokens.shape[1])))
        answer = question["answer"]
        right = answer if isinstance(answer, int) else question["choices"].index(answer)
        expected.append(float(likely.index(max(likely)) == right))
    assert asked(demo, probe) == expected
    assert expected[0] == 1


def test_exact_answers_are_written_and_compared(demo, tokenizer, tmp_path):
    file = tmp_path / "exact.jsonl"
    lines = [
        {
            "question": "What is the capital of France?",
            "answer": ["paris", "the capital of  france is paris"],
        },
        {"question": "What is the capital of France?", "answer": "Rome"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert asked(demo, make_probe(f"exact:{file}", demo, tokenizer, Making())) == [1.0, 0.0]


def test_arithmetic_is_right():
    for text, answer in problems(300, seed=2):
        numbers = [int(part) for part in text.replace("?", "").replace(",", "").split() if part.isdigit()]
        match text.split():
            case [_, _, _, "times", _]:
                assert answer == numbers[0] * numbers[1]
            case [_, _, _, "plus", *_]:
                assert answer == sum(numbers)
            case [_, _, _, "minus", _]:
                assert answer == numbers[0] - numbers[1]
            case [_, _, _, "squared?"]:
                assert answer == numbers[0] ** 2
            case [_, _, _, "divided", *_]:
                assert answer * numbers[1] == numbers[0]
            case _:
                assert answer**2 <= numbers[0] < (answer + 1) ** 2
    assert problems(50, 1) == problems(50, 1) != problems(50, 2)
    assert len({text for text, _ in problems(1000)}) == 1000


@pytest.mark.parametrize(
    ("right", "given", "score"),
    [
        (1234, 1234, 1.0),
        (1234, 1239, 0.75),  # three digits from the left
        (1234, 9234, 0.75),  # three from the right
        (1234, 1934, 0.75),  # one and two
        (1234, 1243, 0.5),
        (1234, 12345, 0.8),
        (1234, 123, 0.75),
        (1111, 11, 0.5),  # none counted twice
        (1234, -1234, 0.0),
        (-50, -51, 0.5),
        (1234, None, 0.0),
        (0, 0, 1.0),
    ],
)
def test_credit_by_hand(right, given, score):
    assert credit(right, given) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12), ("It is 1,234,567.", 1234567), ("3 * 4 = 12", 12), ("-7", -7), ("none", None), ("- 5", 5)],
)
def test_the_answer_in_a_text(text, number):
    assert answer_in(text) == number


def test_arithmetic_is_asked(demo, tokenizer):
    scores = asked(demo, make_probe("math:6", demo, tokenizer, Making()))
    assert len(scores) == 6
    assert all(0 <= score <= 1 for score in scores)


def test_a_function_in_a_file(demo, tokenizer, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def depth(model, tokenizer):\n    return [model.config.num_hidden_layers] * 3\n"
        "depth.lower_is_better = True\ndepth.measure = 'layers'\nother = 3\n"
    )
    probe = make_probe(f"function:{file}:depth", demo, tokenizer, Making())
    probe.ask(demo)
    assert asked(demo, probe, "0:8,4:12") == [16.0] * 3
    assert (probe.lower_is_better, probe.measure) == (True, "layers")
    for name, message in [
        (f"{file}:other", "has no function 'other'"),
        (f"{file}:none", "has no function 'none'"),
        ("no.such.module:f", "cannot be imported: ModuleNotFoundError"),
        (str(tmp_path / "missing.py") + ":f", "cannot be imported"),
        ("depth", "names no function"),
    ]:
        with pytest.raises(UsageError, match=message):
            make_probe(f"function:{name}", demo, tokenizer, Making())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit(3)", "failed: SystemExit: 3"),
        ("raise RuntimeError('no\\nluck')", "failed: RuntimeError: no luck"),
        ("return '12'", "returned '12'; let it return a number for each question"),
        ("return {'1': 2}", "let it return a number for each question"),
        ("return [float('nan')]", "not finite"),
    ],
)
def test_a_function_that_does_what_it_should_not(demo, tokenizer, tmp_path, capsys, body, message):
    file = tmp_path / "mine.py"
    file.write_text(
        f"import sys\nprint('made')\ndef ask(model, tokenizer):\n    print('asked')\n    {body}\n"
    )
    probe = make_probe(f"function:{file}:ask", demo, tokenizer, Making())
    with pytest.raises(UsageError, match=message):
        probe.ask(demo)
    assert capsys.readouterr() == ("", "made\nasked\n")  # output is for results


def test_only_a_newline_ends_a_line(demo, tokenizer, tmp_path):
    file = tmp_path / "exact.jsonl"
    file.write_text('{"question": "a\u2028b", "answer": "c"}\n{"question": "d", "answer": "e"}\r\n')
    assert len(make_probe(f"exact:{file}", demo, tokenizer, Making())) == 2


BROKEN = {
    "not json": ('{"question": ', "line 2: no JSON"),
    "no object": ("[1, 2]", "line 2: .* is no JSON object"),
    "no question": ('{"choices": ["a", "b"], "answer": 0}', "line 2: write a question"),
    "both": (
        '{"question": "a", "prompt": "b", "choices": ["a", "b"], "answer": 0}',
        "line 2: write a question",
    ),
    "no choices": ('{"question": "a", "answer": 0}', "line 2: choices is None"),
    "one choice": ('{"question": "a", "choices": ["b"], "answer": 0}', "line 2: choices"),
    "answer past": ('{"question": "a", "choices": ["b", "c"], "answer": 2}', "line 2: answer is 2.*0 to 1"),
    "answer true": ('{"question": "a", "choices": ["b", "c"], "answer": true}', "line 2: answer is True"),
    "two alike": ('{"question": "a", "choices": ["b", "b"], "answer": 0}', "two choices are alike"),
    "another key": ('{"question": "a", "choice": ["b", "c"]}', "line 2: there is no 'choice'"),
    "half a character": (
        '{"question": "\\ud800", "choices": ["b", "c"], "answer": 0}',
        "line 2: question has half",
    ),
    "system": ('{"question": "a", "system": 5, "choices": ["b", "c"], "answer": 0}', "line 2: system is 5"),
    "deep": ("[" * 100000, "line 2: no JSON"),
    "empty": ('{"question": "", "choices": ["b", "c"], "answer": 0}', "line 2: question is ''"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_told(demo, tokenizer, tmp_path, name):
    line, message = BROKEN[name]
    file = tmp_path / "choices.jsonl"
    file.write_text('{"question": "a", "choices": ["b", "c"], "answer": 0}\n' + line + "\n")
    with pytest.raises(UsageError, match=message):
        make_probe(f"choice:{file}", demo, tokenizer, Making())


def test_files_that_cannot_be_used_are_told(demo, tokenizer, tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    (tmp_path / "long.jsonl").write_text(
        json.dumps({"question": "word " * 3000, "choices": ["a", "b"], "answer": 0})
    )
    for name, message in [
        ("none.jsonl", "cannot be read"),
        ("empty.jsonl", "holds no questions"),
        ("latin.jsonl", "not UTF-8 at byte 14"),
        ("long.jsonl", "the model's context is"),
    ]:
        with pytest.raises(UsageError, match=message):
            make_probe(f"choice:{tmp_path / name}", demo, tokenizer, Making())
    for name in ("text:none.txt", "exact:none.jsonl"):
        with pytest.raises(UsageError, match="cannot be read"):
            make_probe(name, demo, tokenizer, Making())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("maths", "there is no probe 'maths'; write one of text"),
        ("choice", "choice needs more; write choice:FILE.jsonl"),
        ("math:many", "no number of questions"),
        ("math:0", "too many questions or none"),
    ],
)
def test_names_that_are_none_are_told(name, message):
    with pytest.raises(UsageError, match=message):
        check_probe(name)


def test_families_that_are_none_are_told(demo, tokenizer):
    for name, making, message in [
        ("demo:story", Making(), "no 'story' to be scanned; choose from greeting"),
        ("demo", Making(len(ANSWERED)), "fewer than two of each family"),
    ]:
        with pytest.raises(UsageError, match=message):
            make_probe(name, demo, tokenizer, making)


def test_fingerprints_tell_questions_apart(demo, tokenizer):
    names = ["text", "math:8", "demo:fact"]
    marks = [
        make_probe(name, demo, tokenizer, Making(8, s)).fingerprint() for name in names for s in (0, 0, 1)
    ]
    assert marks[0] == marks[1] == marks[2]  # the same text
    assert marks[3] == marks[4] != marks[5]
    assert marks[6] == marks[7] != marks[8]


def test_several_probes_are_asked_at_once(demo, tokenizer):
    names = ["demo:fact", "text", "math:4"]
    probes_ = [make_probe(name, demo, tokenizer, Making(8)) for name in names]
    every = {probe.name: range(len(probe)) for probe in probes_}
    (together,) = Asker(demo, probes_)(Task((base(12).plan,), every))
    for probe in probes_:
        assert together.scores[probe.name] == pytest.approx(asked(demo, probe), rel=1e-5)
