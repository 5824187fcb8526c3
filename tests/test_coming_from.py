"""docs/coming-from.md: its Python and every command of ours on it are run as they stand, section by section.

Tiny random models carry the names that the page gives to models of the reader's. What would take long is
asked for less, by options after those of the page; what takes seconds all the same is left to the slow tests.
"""

import io
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

import restack
from restack import demo
from restack.cli import main
from restack.llama import LCKVLlamaConfig, LCKVLlamaForCausalLM
from tests.llama import meta_folders
from tests.recipes.tiny import SETTINGS, TOKENIZER, saved_llama

for extra in ("lm_eval", "peft", "sentencepiece", "uvicorn"):
    pytest.importorskip(extra)

PAGE = Path(__file__).parents[1] / "docs" / "coming-from.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]}
OURS = re.compile(
    r"^```yaml\n(?P<yaml># (?P<file>\S+)\n.*?)^```$"
    r"|^```python\n(?P<python>.*?)^```$"
    r"|^\$ (?P<typed>restack .*)\n(?P<printed>(?:(?!\$ |```).*\n)*)"
    r"|`(?P<inline>restack[ .][^`\n]*)`",
    re.DOTALL | re.MULTILINE,
)
LESS = {
    "train": "--steps 2 --length 32 --batch 2",
    "scan": "--widest 1 --questions 32 --workers 1",
    "prune": "--tokens 512",
    **dict.fromkeys(("chat", "generate", "duet", "cobblers", "think"), "--max-tokens 9"),
    **dict.fromkeys(("convert heads", "convert kv"), "--text line.txt"),
}
LONG = ("eval", "scan", "serve", "train")
LLAMA_3_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "dtype": "bfloat16",
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder with the models and the text that the page names."""
    saved_llama(tmp_path / "llama3-8b", num_hidden_layers=32, max_position_embeddings=1024)
    for seed, name in enumerate(("xwin", "euryale")):
        saved_llama(tmp_path / name, seed, num_hidden_layers=8)
    LlamaConfig(**LLAMA_3_8B).save_pretrained(tmp_path / "Meta-Llama-3-8B")
    lckv = LCKVLlamaConfig(**SETTINGS, layer_types="0_2_2_3", force_nodiag=True)
    LCKVLlamaForCausalLM(lckv).save_pretrained(tmp_path / "tinyllama-lckv")
    for name in TOKENIZER:
        (tmp_path / "tinyllama-lckv" / name).write_bytes((demo.FOLDER / name).read_bytes())
    values = meta_folders.params(vocab_size=345)
    shards = meta_folders.split(meta_folders.random_weights(values, 345), 1)
    meta_folders.write_pieces(meta_folders.write(tmp_path / "llama-2-7b", values, shards) / "tokenizer.model")
    for name, times in (("line.txt", 1), ("text.txt", 50)):
        (tmp_path / name).write_text("Ben has a kite and Ann has a boat. " * times)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("left_out", [LONG, pytest.param((), marks=pytest.mark.slow)], ids=["quick", "all"])
@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_written_here_works(models, monkeypatch, capsys, section, left_out):
    names = {"restack": restack, "model": restack.open("demo")}
    for ours in OURS.finditer(SECTIONS[section]):
        capsys.readouterr()
        if ours["yaml"]:
            Path(ours["file"]).write_text(ours["yaml"])
        elif ours["python"]:
            exec(compile(ours["python"], str(PAGE), "exec"), names)
            promised = re.findall(r"^ *print\(.*\)  # (.*)$", ours["python"], re.MULTILINE)
            assert [line.strip() for line in capsys.readouterr().out.splitlines()] == promised
        elif (ours["inline"] or "").startswith("restack."):
            eval(ours["inline"], names)
        elif not (ours["typed"] or ours["inline"]).startswith(tuple(f"restack {name}" for name in left_out)):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is 12 + 30?\n")))
            check(ours["typed"] or ours["inline"], ours["printed"], capsys)


def check(typed, printed, capsys):
    """A command ends well, and prints what the page shows of it."""
    command, _, wanted = typed.partition(" | grep ")
    arguments = shlex.split(command)[1:]
    if len(arguments) == 1:
        arguments.append("--help")
    elif not printed:
        arguments += next((LESS[name].split() for name in LESS if command.startswith(f"restack {name} ")), [])
    status, said = served(arguments) if arguments[0] == "serve" else (main(arguments), None)
    said = said or "".join(capsys.readouterr())
    if printed:
        lines = [line.rstrip() for line in said.splitlines() if wanted in line]
        assert lines == printed.splitlines()
    elif "--tasks" in arguments:
        assert "the data of task hellaswag are not on this machine" in said  # all else was in order
    else:
        assert status == 0, said


def served(arguments):
    """0 and its first lines, if a server begins and ends as it should."""
    command = [sys.executable, "-m", "restack", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            said = server.stdout.readline() + server.stdout.readline()
        finally:
            server.send_signal(signal.SIGINT)
    return server.returncode - 130, said


def test_every_section_has_commands_of_ours():
    assert list(SECTIONS)[:2] == ["David", "chatllm.cpp"] and len(SECTIONS) == 7
    for part in SECTIONS.values():
        assert len(OURS.findall(part)) > 4


def test_the_pages_links_are_there():
    for target, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)#?([^)]*)\)", TEXT):
        page = PAGE.parent / target if target else PAGE
        lines = page.read_text(encoding="utf-8").splitlines()
        headings = {re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines}
        assert not anchor or anchor in headings, (target, anchor)
