"""`restack eval`, as it is typed."""

import json
import subprocess
import sys

import pytest

from restack import recipes
from restack.cli import main
from tests.recipes.tiny import saved_llama
from tests.scanning.toy_tasks import FACTS, WRITTEN, write_task, write_tasks

lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv("LMEVAL_LOG_LEVEL", raising=False)
    write_tasks(tmp_path)
    return tmp_path


def run(*arguments):
    return main(["eval", *arguments])


def expected(model, task, **options):
    """What lm-eval's own class of models finds, in a folder that transformers loads."""
    from lm_eval.tasks import TaskManager

    return lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": model, "dtype": "float32", "device": "cpu"},
        tasks=[task],
        task_manager=TaskManager(include_path=".", include_defaults=False),
        bootstrap_iters=0,
        **options,
    )["results"][task]


def test_a_table_and_nothing_else(capfd, here):
    assert run("demo@0:8,4:12", "--tasks", "both", "--include-path", ".") == 0
    said = capfd.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0] == "demo@0:8,4:12: 16 visits"
    assert lines[1].startswith("|") and "Metric" in lines[1] and "Stderr" in lines[1]
    assert all(line.startswith("|") for line in lines[1:])
    assert "capitals" in said.out and "acc_norm" in said.out and "exact_match" in said.out


def test_the_figures_are_those_of_lm_evals_own_models(capsys, here):
    demo = str(recipes.Reference("demo").location)
    assert run("demo", "-t", "capitals,written", "--include_path", ".", "--dtype", "fp32", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    for task, metrics in (("capitals", ("acc", "acc_norm", "mcc")), ("written", ("exact_match",))):
        own = expected(demo, task)
        for metric in metrics:
            assert facts["results"][task][f"{metric},none"] == own[f"{metric},none"]
    assert (facts["model"], facts["plan"], facts["visits"], facts["cut"]) == ("demo", "0:12", 12, 0)
    assert facts["versions"]["capitals"] == 1.0
    assert facts["n-samples"]["capitals"]["effective"] == len(FACTS)
    assert facts["software"]["lm_eval"] == lm_eval.__version__
    assert "pretty_env_info" not in facts


def test_options_reach_lm_eval(capsys, here):
    arguments = [
        "--limit",
        "3",
        "--num_fewshot",
        "2",
        "--apply-chat-template",
        "--seed",
        "7",
        "-o",
        "it.json",
    ]
    assert run("demo", "-t", "capitals.yaml", *arguments, "--batch_size", "2", "--layers", "0:8,4:12") == 0
    assert "|capitals|" in capsys.readouterr().out
    facts = json.loads((here / "it.json").read_text())
    assert facts["n-samples"]["capitals"] == {"original": len(FACTS), "effective": 3}
    assert facts["n-shot"]["capitals"] == 2
    assert (facts["plan"], facts["limit"], facts["seed"], facts["apply_chat_template"]) == (
        "0:8,4:12",
        3,
        7,
        True,
    )
    assert not list(here.glob(".it.json*"))
    demo = str(recipes.Reference("demo").location)
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 7)
    own = expected(demo, "capitals", limit=3, num_fewshot=2, apply_chat_template=True, **seeds)
    (here / "it.json").unlink()  # or it is refused
    assert run("demo", "-t", "capitals.yaml", *arguments, "--dtype", "float32", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["results"]["capitals"]["acc_norm,none"] == own["acc_norm,none"]


def test_what_does_not_fit_is_told(capsys, here):
    saved_llama(here / "short", max_position_embeddings=9)
    assert run("short", "--tasks", "capitals.yaml") == 0
    assert "requests longer than the model's 9 tokens lost the beginning" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tasks", "none.yaml"], "there is no task file none.yaml"),
        (["--tasks", ","], "there is no task; name some, as in hellaswag,arc_easy, or a .yaml file"),
        (
            ["--tasks", "capitals", "--include-path", "nowhere"],
            "--include-path nowhere: there is no such folder",
        ),
        (["--tasks", "capitals.yaml", "--limit", "1.5"], "--limit is 1.5; write a number of questions, or a"),
        (["--tasks", "capitals.yaml", "--limit", "0"], "--limit is 0; write a number"),
        (["--tasks", "capitals.yaml", "--limit", "nan"], "--limit is nan; write a number"),
        (["--tasks", "capitals.yaml", "--num-fewshot", "-1"], "--num-fewshot is -1; write 0 or more"),
        (["--tasks", "capitals.yaml", "--batch-size", "0"], "--batch-size is '0'; write a number, or auto"),
        (["--tasks", "capitals.yaml", "--seed", "-1"], "--seed is -1; write a number from 0 to 4294967295"),
        (
            ["--tasks", "capitals.yaml", "-o", "no/such/file.json"],
            "--out no/such/file.json: there is no folder",
        ),
        (["--tasks", "capitals.yaml", "-o", "."], "--out . is a folder; name a file"),
        (
            ["--tasks", "capitals.yaml", "-o", "capitals.yaml"],
            "--out capitals.yaml is there, and would be lost",
        ),
        (["--tasks", "capitals.yaml", "--layers", "0:99"], "stop 99 is past the model's 12 layers"),
        (["--tasks", "capitals.yaml", "--device", "abacus"], "device 'abacus' cannot be used"),
        (
            ["--tasks", "away.yaml"],
            "the data of task away.yaml are not on this machine, and the hub cannot be",
        ),
        (["--tasks", "lost.yaml"], "the data of task lost.yaml are not there: Unable to find"),
        (["--tasks", "bad.yaml"], "task bad.yaml cannot be loaded: "),
        (
            ["--tasks", "vague.yaml"],
            "task vague.yaml cannot be loaded: UndefinedError: 'nobody' is undefined",
        ),
        (
            ["--tasks", "wrong.yaml"],
            "lm-eval stopped: ZeroDivisionError: division by zero; with LMEVAL_LOG_LEVEL=INFO it says where",
        ),
        (
            ["--tasks", "unsafe.yaml"],
            "runs code that the model writes, with your rights; to have that, say --con",
        ),
    ],
)
def test_told_in_one_line(capsys, here, arguments, told):
    (here / "own.py").write_text("def results(document, answers):\n    return 1 / 0\n")
    (here / "bad.yaml").write_text("task: [\n")
    for name, old, new in (
        ("lost", "{data}", "nowhere.jsonl"),
        ("away", "dataset_path: json", "dataset_path: no/such_data"),
        ("vague", "doc_to_target: said", 'doc_to_target: "{{{{nobody}}}}"'),
        ("wrong", "doc_to_target: said", "doc_to_target: said\nprocess_results: !function own.results"),
        ("unsafe", "doc_to_target: said", "doc_to_target: said\nunsafe_code: true"),
    ):
        write_task(here, WRITTEN.replace("written", name).replace(old, new))
    assert run("demo", *arguments) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert "Traceback" not in said.err and said.out == ""
    assert len(said.err.splitlines()) <= 2


def test_a_task_that_does_not_exist(capsys, here):
    assert run("demo", "--tasks", "capitals,helaswag", "--include-path", ".") == 2
    told = capsys.readouterr().err
    assert told.startswith("restack: lm-eval has no task 'helaswag'; there is ") and "hellaswag" in told
    assert "--include-path DIR adds yours" in told and told.count("\n") == 1


def test_without_lm_eval(capsys, monkeypatch):
    monkeypatch.setattr("restack.scanning.harness.tasks.find_spec", lambda name: None)
    assert run("demo", "--tasks", "hellaswag") == 2
    assert capsys.readouterr().err == "restack: lm-eval is not installed; pip install 'restack[eval]'\n"


def test_an_old_lm_eval(capsys, monkeypatch):
    monkeypatch.setattr("restack.scanning.harness.tasks.version", lambda name: "0.4.9.1")
    assert run("demo", "--tasks", "hellaswag") == 2
    assert "lm-eval 0.4.9.1 is installed, and 0.4.13 is needed" in capsys.readouterr().err


def test_a_tokenizer_without_a_chat_template(capsys, here):
    saved_llama(here / "plain")
    (here / "plain" / "chat_template.jinja").unlink()
    assert run("plain", "--tasks", "capitals.yaml", "--apply-chat-template") == 2
    assert "has no chat template; leave out --apply-chat-template" in capsys.readouterr().err


@pytest.mark.slow
def test_its_log_for_who_wants_it(here, monkeypatch):
    monkeypatch.setenv("LMEVAL_LOG_LEVEL", "INFO")
    arguments = ["eval", "demo", "--tasks", "capitals.yaml", "--limit", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "restack", *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "Building contexts for capitals" in done.stderr and "Building" not in done.stdout


def test_options_are_looked_at_before_torch_is_imported(here):
    check = (
        "import sys; from restack.cli import main; "
        "status = main(['eval', 'demo', '--tasks', 'capitals.yaml', '--limit', '1.5']); "
        "sys.exit(status != 2 or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.startswith("restack: --limit is 1.5;")) == (0, True)
