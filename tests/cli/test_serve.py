"""`restack serve` from its first line to Ctrl-C, and what it refuses before it loads anything."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from restack.cli import loading, main

SCAN = Path(__file__).parents[2] / "docs" / "demo-scan"
COMMAND = [sys.executable, "-m", "restack", "serve", "demo", "--port", "0"]


def test_it_serves_until_it_is_interrupted():
    command = [*COMMAND, "--plan", "deeper=0:8,4:12", "--quantize", "int8", "--api-key", "key"]
    command += ["--scan", str(SCAN)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            told = process.stdout.readline()
            assert told.startswith("2 models on ") and "demo, deeper; any other as demo@SPEC" in told
            url = process.stdout.readline().strip()
            body = {"model": "deeper", "prompt": "Once", "max_tokens": 5}
            headers = {"authorization": "Bearer key", "content-type": "application/json"}
            request = urllib.request.Request(f"{url}/completions", json.dumps(body).encode(), headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["usage"]["completion_tokens"] <= 5
            request = urllib.request.Request(f"{url}/playground/scan", headers=headers)
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer) == json.loads((SCAN / "summary.json").read_text())
            request = urllib.request.Request(f"{url}/playground/bases", headers=headers)
            with urllib.request.urlopen(
                request, timeout=60
            ) as answer:  # which is quantised, the scan was not
                assert "weights" not in json.load(answer)[0]["identity"]
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "restack: interrupted"
    assert "Traceback" not in errors


def test_others_may_reach_it_only_with_a_warning():
    with subprocess.Popen(
        [*COMMAND, "--host", "0.0.0.0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            told = [process.stdout.readline(), process.stderr.readline()]
        finally:
            process.kill()
    assert any("others can reach this address, and no key" in line for line in told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--plan", "deeper"], "no NAME=SPEC"),
        (["--plan", "a=0:4", "--plan", "a=0:8"], "--plan a=... is given twice"),
        (["--plan", "demo=0:4"], "has the name of the model"),
        (["--plan", "a=0:99"], "stop 99 is past the model's 12 layers"),
        (["--kept", "much"], "no size"),
        (["--api-key", ""], "--api-key is empty"),
        (["--api-key", "schlüssel"], "printable ASCII"),
        (["--slots", "0"], "--slots"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (["--quantize", "int3"], "--quantize is 'int3'"),
        (["--compile"], "--compile is for GPUs and the device is cpu"),
    ],
)
def test_wrong_options_are_one_line(capsys, arguments, told):
    assert main(["serve", "demo", "--port", "0", *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.fixture
def scan_of(tmp_path):
    """A folder as a scan leaves it, with these files."""

    def made(**files):
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)
        return tmp_path

    return made


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "holds no scan: it has no summary.json; name a folder that restack scan wrote"),
        ({"scan_json": "{}", "results_jsonl": ""}, "holds a scan that is not finished"),
        ({"summary_json": '{"depth": 12'}, "damaged, or none of a scan"),
        ({"summary_json": "[]"}, "damaged, or none of a scan"),
        ({"summary_json": '{"depth": 12, "entries": [NaN]}'}, "damaged, or none of a scan"),
    ],
)
def test_a_folder_that_holds_no_scan_is_told_before_weights_are_read(
    capsys, monkeypatch, scan_of, files, told
):
    monkeypatch.setattr(loading, "shelf", None)
    assert main(["serve", "demo", "--port", "0", "--scan", str(scan_of(**files))]) == 2
    assert told in capsys.readouterr().err


def test_a_scan_that_is_not_there_or_of_another_model(capsys, scan_of):
    assert main(["serve", "demo", "--port", "0", "--scan", "no/such"]) == 2
    assert "no/such holds no scan" in capsys.readouterr().err
    folder = scan_of(summary_json='{"model": "big", "depth": 80, "entries": []}')
    assert main(["serve", "demo", "--port", "0", "--plan", "deeper=0:8,4:12", "--scan", str(folder)]) == 2
    told = (
        "--scan is of big, with 80 layers, and demo has 12, deeper has 16; serve the model that was scanned"
    )
    assert told in capsys.readouterr().err


def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "demo", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another (--port)" in capsys.readouterr().err
