"""lm-evaluation-harness on models and views, and its tasks as probes: what lm-eval itself finds."""

import json
import os
import subprocess
import sys

import pytest
import torch

import restack
from restack import recipes
from restack.errors import ModelError, PlanError, UsageError
from restack.scanning.probe import ForcedProbe, FreeProbe, Outcome, Row
from restack.scanning.probes.task import task_probe
from tests.recipes.tiny import built
from tests.scanning.toy_tasks import CHOSEN, CLOZE, FACTS, WRITTEN, documents, write_task, write_tasks

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.models.huggingface import HFLM  # noqa: E402

from restack.scanning.harness.arguments import read_arguments  # noqa: E402
from restack.scanning.harness.model import RestackLM  # noqa: E402
from restack.scanning.harness.tasks import find_tasks  # noqa: E402

PLANS = ("all", "0:8,4:12", "0:5,7:")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_tasks(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def base():
    return restack.open("demo", dtype="float32")


@pytest.fixture(scope="module")
def tokenizer():
    return recipes.open_tokenizer("demo")


def samples(lm, folder, name, **options):
    """What lm-eval logs of each document of a task."""
    asked = find_tasks([name], folder)
    results = lm_eval.simple_evaluate(
        model=lm, tasks=[name], task_manager=asked.manager, bootstrap_iters=0, log_samples=True, **options
    )
    return results["samples"][name], results


@torch.no_grad()
def outcome(model, row):
    """One plain forward pass over a row."""
    tokens = torch.tensor([row.tokens])
    logits = model(tokens[:, :-1]).logits[0, -row.targets :]  # (targets, V)
    targets = tokens[0, -row.targets :]
    chosen = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return Outcome(chosen, logits.argmax(-1) == targets)


@pytest.mark.parametrize("statement", ["import restack, lm_eval.models", "import lm_eval.models, restack"])
def test_it_is_known_whatever_is_imported_first(statement):
    check = (
        f"import sys; {statement}; from lm_eval.api.registry import model_registry as known; "
        "sys.exit('restack' not in known or 'hf' not in known or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_by_name_it_is_the_model_that_its_constructor_builds(base, folder, tokenizer):
    arguments = 'pretrained=demo,layers="0:8,4:12",dtype=float32'
    by_name, results = samples("restack", folder, "capitals", model_args=arguments)
    assert results["config"]["restack_plan"] == "0:8,4:12"
    assert results["config"]["model_dtype"] == torch.float32
    deeper = HFLM(built(base, [*range(8), *range(4, 12)]), tokenizer=tokenizer)
    expected, _ = samples(deeper, folder, "capitals")
    assert [one["resps"] for one in by_name] == [one["resps"] for one in expected]
    as_it_is, _ = samples(HFLM(base, tokenizer=tokenizer), folder, "capitals")
    assert [one["resps"] for one in as_it_is] != [one["resps"] for one in expected]


@pytest.mark.parametrize(
    "text",
    [
        "pretrained=demo,layers=0:8,4:12,dtype=float32,max_length=32",
        "pretrained=demo@0:8,4:12,dtype=float32,max_length=32",
        'layers="0:8,4:12",max_length=32 , dtype = float32,pretrained=demo,',
        "pretrained='demo',ratio=0:0.65,0.35:1,max_length=32,dtype=float32",
    ],
)
def test_specs_in_texts_need_no_quotes(text):
    lm = RestackLM.create_from_arg_string(text, {"batch_size": 2, "device": None})
    assert str(lm.plan) == "0:8,4:12"
    assert len(lm.model.model.layers) == 16
    assert (lm.max_length, lm.batch_size, lm.model.dtype) == (32, 2, torch.float32)


def test_arguments_of_other_kinds():
    text = "a=1,kv=0_0_2_2,b=0.5,c=true,revision=123,chat={x=1,y=2},d=None,e=1,2"
    assert read_arguments(text) == {
        "a": 1, "kv": "0_0_2_2", "b": 0.5, "c": True, "revision": "123", "chat": "{x=1", "y": "2}",
        "d": None, "e": "1,2",
    }  # fmt: skip
    assert read_arguments("") == {}
    with pytest.raises(UsageError, match="'demo' is no argument of a model; write name=value"):
        read_arguments("demo")


def test_a_loaded_model_is_left_as_it_is(base, tokenizer):
    tokens = torch.tensor([tokenizer("What is the capital of France?")["input_ids"]])
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    lm = RestackLM(base, tokenizer=tokenizer, layers=[0, 1, 2, 1, 2, 3], batch_size="auto")
    with torch.no_grad():
        expected = built(base, [0, 1, 2, 1, 2, 3])(tokens).logits
        assert torch.equal(lm.model(tokens).logits, expected)
    assert lm.batch_size == "auto"
    assert all(torch.equal(before[name], weight) for name, weight in base.state_dict().items())
    assert RestackLM(base).tokenizer("Hello") == tokenizer("Hello")
    assert RestackLM(restack.view(base, "0:4"), kv="cla2").model.config.num_hidden_layers == 4


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"layers": "0:8,4:120"}, PlanError, "stop 120 is past the model's 12 layers"),
        ({"pretrained": "demo@0:8", "layers": "0:8"}, UsageError, "the layers are given twice"),
        ({"kv": 22.0}, UsageError, r"kv was read as the number 22.0; quote it"),
        ({"layers": '"0:8', '4:12"': ""}, UsageError, 'cut at a comma, before 4:12"; quote what has commas'),
        ({"peft": "an/adapter"}, UsageError, "has no option peft: it opens models as restack.open does"),
        ({"max_lenght": 3}, UsageError, "has no option max_lenght; it has those of lm-eval's model hf"),
        ({"pretrained": "no/such/model/here"}, ModelError, "there is no folder no/such/model/here"),
        ({"dtype": "int3"}, ModelError, "dtype 'int3' is not known"),
        ({"device": "abacus"}, ModelError, "device 'abacus' cannot be used"),
        ({"pretrained": 3}, UsageError, "pretrained is a int; give a model, or the name of one"),
    ],
)
def test_wrong_arguments_are_told(arguments, error, told):
    with pytest.raises(error, match=told):
        RestackLM(**{"pretrained": "demo"} | arguments)


def test_a_loaded_model_is_not_moved(base):
    with pytest.raises(UsageError, match="the model is loaded, in float32; load it in bfloat16"):
        RestackLM(base, dtype="bfloat16")
    with pytest.raises(UsageError, match="the model is loaded, on cpu; move it to meta yourself"):
        RestackLM(base, device="meta")
    assert RestackLM(base, dtype=torch.float32, device="cpu", peft=None).plan is None


def test_what_is_cut_is_counted(base, folder, tokenizer):
    texts = [f"{one['question']} {choice}" for one in documents() for choice in one["choices"]]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    exact = sorted(lengths)[len(lengths) // 2]  # the last token is not read, only predicted
    lm = RestackLM(base, tokenizer=tokenizer, max_length=exact - 1)
    samples(lm, folder, "capitals")
    assert lm.cut == sum(length > exact for length in lengths) > 0
    lm = RestackLM(base, tokenizer=tokenizer, max_length=24, batch_size=8)
    prompts = [one["arguments"][0][0] for one in samples(lm, folder, "written")[0]]
    assert lm.cut == sum(len(tokenizer(prompt)["input_ids"]) > 24 - 12 for prompt in prompts) > 0


@pytest.mark.parametrize(("shots", "context"), [(0, None), (2, None), (2, 24)])
def test_a_forced_task_is_what_lm_eval_finds(base, folder, tokenizer, shots, context):
    probe = task_probe("capitals", tokenizer, include_path=folder, num_fewshot=shots, context=context)
    assert isinstance(probe, ForcedProbe)
    assert (len(probe), probe.measure, probe.lower_is_better) == (len(FACTS), "acc", False)
    assert probe.chance == pytest.approx(1 / 3)
    seen = set()
    for plan in PLANS:
        model = restack.view(base, plan)
        lm = RestackLM(model, tokenizer=tokenizer, max_length=context)
        expected, _ = samples(lm, folder, "capitals", num_fewshot=shots)
        assert (lm.cut > 0) is (context is not None)
        for number, sample in enumerate(expected):
            outcomes = [outcome(model, row) for row in probe.rows(number)]
            answers = [answer for ((answer,),) in zip(sample["resps"], strict=True)]
            sums = [float(one.log_probabilities.sum()) for one in outcomes]
            assert sums == pytest.approx([answer[0] for answer in answers], abs=1e-4)
            assert [bool(one.is_top.all()) for one in outcomes] == [answer[1] for answer in answers]
            assert probe.score(number, outcomes) == sample["acc"]
            seen.add(sample["acc"])
    assert seen == {0.0, 1.0}


def test_rows_are_the_texts(folder, tokenizer):
    probe = task_probe("capitals", tokenizer, include_path=folder, limit=2)
    question, answers = "What is the capital of France?", ["Paris", "Athens", "the town of Lima"]
    before = len(tokenizer(question)["input_ids"])
    assert len(probe) == 2
    for row, answer in zip(probe.rows(0), sorted(answers, key=documents()[0]["choices"].index), strict=True):
        tokens = tokenizer(f"{question} {answer}")["input_ids"]
        assert (row.tokens, row.targets) == (tuple(tokens), len(tokens) - before)
    context = 8
    short = task_probe("capitals", tokenizer, include_path=folder, limit=2, context=context)
    assert short.rows(0)[0].tokens == probe.rows(0)[0].tokens[-context - 1 :]


def test_an_empty_question_stands_after_the_first_token(base, folder, tokenizer):
    write_task(folder, CHOSEN.replace("{{{{question}}}}", "").replace("task: capitals", "task: bare"))
    probe = task_probe("bare", tokenizer, include_path=folder)
    assert probe.rows(0)[0].tokens[0] == tokenizer.bos_token_id
    expected, _ = samples(RestackLM(base, tokenizer=tokenizer), folder, "bare")
    for number, sample in enumerate(expected):
        sums = [float(outcome(base, row).log_probabilities.sum()) for row in probe.rows(number)]
        assert sums == pytest.approx([answer[0][0] for answer in sample["resps"]], abs=1e-4)


def test_another_metric(base, folder, tokenizer):
    probe = task_probe("capitals:acc_norm", tokenizer, include_path=folder)
    assert (probe.name, probe.measure) == ("capitals:acc_norm", "acc_norm")
    expected, _ = samples(RestackLM(base, tokenizer=tokenizer), folder, "capitals")
    found = [probe.score(n, [outcome(base, row) for row in probe.rows(n)]) for n in range(len(probe))]
    assert found == [sample["acc_norm"] for sample in expected]
    cloze = task_probe(str(folder / "cloze.yaml:acc"), tokenizer)
    assert isinstance(cloze, ForcedProbe) and cloze.chance is None
    expected, _ = samples(RestackLM(base, tokenizer=tokenizer), folder, "cloze")
    found = [cloze.score(n, [outcome(base, row) for row in cloze.rows(n)]) for n in range(len(cloze))]
    assert found == [sample["acc"] for sample in expected]
    halves = [Outcome(torch.tensor([-1.0, -2.0]), torch.tensor(top)) for top in ([True, False], [True, True])]
    assert [cloze.score(0, [half]) for half in halves] == [0.0, 1.0]


def test_a_free_task_is_what_lm_eval_finds(base, folder, tokenizer):
    probe = task_probe("written", tokenizer, include_path=folder)
    fingerprint = probe.fingerprint()
    assert isinstance(probe, FreeProbe)
    assert (len(probe), probe.measure, probe.chance) == (len(FACTS), "exact_match", None)
    seen = set()
    for plan in PLANS:
        model = restack.view(base, plan)
        lm = RestackLM(model, tokenizer=tokenizer, batch_size=8)
        expected = [sample["exact_match"] for sample in samples(lm, folder, "written")[0]]
        assert probe.scores(model, range(len(FACTS))) == expected
        assert probe.scores(model, [5, 0]) == [expected[5], expected[0]]
        seen |= set(expected)
    assert seen == {0.0, 1.0}
    assert probe.fingerprint() == fingerprint  # lm-eval has added to the requests


def test_examples_do_not_depend_on_what_else_is_asked(base, folder, tokenizer):
    write_task(folder, WRITTEN.replace("test_split:", "fewshot_split: test\ntest_split:"))
    probe = task_probe("written", tokenizer, include_path=folder, num_fewshot=2)
    lm = RestackLM(base, tokenizer=tokenizer, batch_size=8)
    expected = [one["exact_match"] for one in samples(lm, folder, "written", num_fewshot=2)[0]]
    assert [probe.scores(base, [number])[0] for number in range(len(FACTS))] == expected


def test_drawn_answers_are_drawn_alike(base, folder, tokenizer):
    (folder / "own.py").write_text("def results(document, answers):\n    return {'size': len(answers[0])}\n")
    text = WRITTEN.replace("do_sample: false", "do_sample: true, temperature: 9.0, top_k: 0")
    text = text.replace("exact_match", "size").replace("written", "drawn\nrepeats: 2")
    write_task(folder, text + "process_results: !function own.results\n")
    probe = task_probe("drawn", tokenizer, include_path=folder, limit=3)
    state = torch.get_rng_state()
    first = probe.scores(base, range(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert probe.scores(base, range(3)) == first
    assert len(set(first)) > 1


def test_whole_texts_are_read_too(base, folder, tokenizer):
    (folder / "own.py").write_text("def results(document, answers):\n    return {'nats': -answers[0]}\n")
    text = (
        CLOZE[: CLOZE.index("metric_list")]
        .replace("cloze", "whole")
        .replace("loglikelihood", "loglikelihood_rolling")
    )
    metric = "metric_list: [{{metric: nats, aggregation: mean, higher_is_better: false}}]\n"
    write_task(folder, text + "process_results: !function own.results\n" + metric)
    probe = task_probe("whole", tokenizer, include_path=folder)
    assert isinstance(probe, FreeProbe) and probe.lower_is_better
    tokens = [tokenizer.bos_token_id, *tokenizer(" Rome.")["input_ids"]]
    row = Row(tuple(tokens), len(tokens) - 1)
    expected = -float(outcome(base, row).log_probabilities.sum())
    assert probe.scores(base, [1]) == pytest.approx([expected], abs=1e-4)


def test_the_fingerprint_is_of_the_questions(folder, tokenizer):
    def made(name="capitals", **options):
        return task_probe(name, tokenizer, include_path=folder, **options).fingerprint()

    first = made()
    assert first == made()
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "it.yaml").write_bytes((folder / "capitals.yaml").read_bytes())
    assert made(str(folder / "elsewhere" / "it.yaml")) == first
    others = {made(limit=3), made("capitals:acc_norm"), made(num_fewshot=1), made(context=9)}
    assert len(others | {first}) == 5
    lines = (folder / "data.jsonl").read_text().splitlines()
    changed = json.loads(lines[3]) | {"answer": 2}
    (folder / "data.jsonl").write_text("\n".join([*lines[:3], json.dumps(changed), *lines[4:]]) + "\n")
    assert made() != first


def test_functions_in_a_task_file_leave_the_fingerprint_alone(folder, tokenizer):
    (folder / "own.py").write_text("def shown(document):\n    return document['question'].upper()\n")
    text = CHOSEN.replace('"{{{{question}}}}"', "!function own.shown").replace("capitals", "loud")
    write_task(folder, text)
    probes = [task_probe("loud", tokenizer, include_path=folder)]
    os.utime(folder / "own.py", (1, 1))  # or lm-eval would keep the function, and so its address
    probes.append(task_probe("loud", tokenizer, include_path=folder))
    assert probes[0].fingerprint() == probes[1].fingerprint()
    (folder / "own.py").write_text("def shown(document):\n    return document['question'].lower()\n")
    assert task_probe("loud", tokenizer, include_path=folder).fingerprint() != probes[0].fingerprint()


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("cloze", {}, "perplexity is no mean over its questions, .*; take acc, as cloze:acc"),
        ("capitals:mcc", {}, "mcc is no mean over its questions, .*; take acc, as capitals:acc"),
        ("capitals:acc_bytes", {}, "has no metric acc_bytes; it has acc, acc_norm, mcc"),
        ("only", {}, "perplexity is no mean .*; choose a task with a metric such as acc"),
        ("unsafe", {}, "task unsafe runs code that the model writes"),
        ("pictures", {}, "task pictures has pictures or sounds"),
        ("capitals", {"limit": 0}, "the limit is 0 questions; write 1 or more"),
        ("capitals", {"context": 2}, "question 0: an answer has [0-9]+ tokens, and the model reads 2"),
        ("hollow", {}, "task hollow, question 0: the tokenizer makes no tokens of an answer"),
        (
            "odd",
            {},
            r"acc is no number for a question \(it gives acc_norm\); name another metric, as in odd:acc",
        ),
    ],
)
def test_what_cannot_be_a_probe_is_refused(folder, tokenizer, name, options, told):
    (folder / "own.py").write_text("def results(document, answers):\n    return {'acc_norm': 1.0}\n")
    only = CLOZE[: CLOZE.index("  - {{metric: acc")].replace("cloze", "only")
    write_task(folder, only)
    write_task(folder, WRITTEN.replace("task: written", "task: unsafe\nunsafe_code: true"))
    write_task(folder, WRITTEN.replace("task: written", "task: pictures\ndoc_to_image: [said]"))
    hollow = CHOSEN.replace("capitals", "hollow\ntarget_delimiter: ''").replace("{{{{question}}}}", "")
    write_task(folder, hollow.replace("choices\n", "['<|bos|>', x, y]\n"))
    write_task(folder, CHOSEN.replace("task: capitals", "task: odd\nprocess_results: !function own.results"))
    with pytest.raises(UsageError, match=told):
        task_probe(name, tokenizer, include_path=folder, **options)
