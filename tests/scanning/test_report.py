"""Reports of a scan: the headline, and the same numbers in Markdown, HTML and JSON."""

import json
import math
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from restack.scanning import reporting
from restack.scanning.reporting import headline, summary, write_report
from restack.scanning.reporting.markdown import as_markdown
from restack.scanning.reporting.order import file_names, front, ranked, worst
from restack.scanning.reporting.page import as_page
from restack.scanning.reporting.telling import command
from tests.scanning.made_findings import CHAINS, TEXT, compared, entry, made, specs

VOID = {"meta", "br", "img", "link"}


class Page(HTMLParser):
    """The tags of a page, and the text between them; a tag that is not closed is an error."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts, self.rows = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append(dict(attrs).get("data-v"))

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def table(markdown, title):
    """The cells of the table under a title."""
    section = markdown.split(f"## {title}\n\n")[1]
    lines = section[section.index("|") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return [rows[0], *rows[2:]]


def test_the_headline_of_a_better_stack():
    assert headline(made((CHAINS,))) == (
        "On held-out questions, 0:8,4:8,4:12 is better than the base beyond chance (p = 0.004): chains "
        "accuracy +0.045 (95% interval +0.012 to +0.078), from 0.900 to 0.945, n = 400. It was chosen on 200 "
        "other questions (p = 0.003 as the best of 233)."
    )


def test_a_lower_loss_is_never_written_with_a_sign():
    told = headline(made((TEXT,)))
    assert told == (
        "On held-out questions, 0:8,4:8,4:12 is better than the base beyond chance (p = 0.004): text loss "
        "0.045 lower (95% interval 0.078 lower to 0.012 lower), from 2.000 to 1.955 (perplexity 7.389 to "
        "7.064), n = 80. It was chosen on 50 other questions (p = 0.003 as the best of 233)."
    )
    assert not re.search(r"[+-]\d", told)


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        (CHAINS, "chains accuracy +0.002 (95% interval -0.031 to +0.035), from 0.900 to 0.902, n = 400."),
        (
            TEXT,
            "text loss 0.002 lower (95% interval 0.035 lower to 0.031 higher), from 2.000 to 1.998 (perpl",
        ),
    ],
)
def test_the_headline_of_what_was_not_confirmed(probe, told):
    line = headline(made((probe,), outcome="unconfirmed", held_out=0.002, held_out_p=0.21))
    start = "On held-out questions, 0:8,4:8,4:12 is not better than the base beyond chance (p = 0.21): "
    assert line.startswith(start + told)
    assert "it had seemed better (p = 0.003 as the best of 233): " in line
    assert line.endswith("chains accuracy +0.095." if probe is CHAINS else "text loss 0.095 lower.")


def test_the_headline_of_nothing_beyond_chance():
    assert headline(made((CHAINS,), outcome="none", p=0.42, held_out=-0.004)) == (
        "No stack of 233 is better than the base beyond chance. The best looking is (4,8)x3 (p = 0.42 as the "
        "best of 233): chains accuracy +0.095 on the 200 questions it was chosen by and -0.004 (95% interval "
        "-0.037 to +0.029) on 400 held-out ones, from 0.900 to 0.896."
    )
    line = headline(made((TEXT,), outcome="none", p=0.42, held_out=-0.004))
    assert "text loss 0.095 lower on the 50 questions it was chosen by and 0.004 higher (95% interval" in line


def test_the_headline_names_the_objective_where_more_was_asked():
    assert "better than the base on chains beyond chance" in headline(made())


def test_the_headline_of_one_stack():
    line = headline(made((CHAINS,), candidates=specs()[:1], outcome="none", p=0.42))
    assert line.startswith("0:8,4:12 is not better than the base beyond chance (p = 0.42): chains")


def test_a_scan_that_was_stopped_says_so_first():
    whole = made((CHAINS,))
    told = headline(replace(whole, stopped="12 of 389 done of the candidates"))
    assert told == (
        "The scan was stopped, 12 of 389 done of the candidates, so this is not its result. So far: "
        + headline(whole)
    )


def test_the_headline_of_failures():
    told = "Nothing was compared: no stack beside the base was scored"
    assert headline(made(failing=233)) == f"{told}, and 233 failed."
    assert headline(made(candidates=[])) == f"{told}."
    findings = made((CHAINS,), outcome="unconfirmed")
    unscored = replace(findings, verdict=replace(findings.verdict, held_out={}))
    assert "could not be scored on held-out questions, so nothing is confirmed." in headline(unscored)


def test_numbers_that_are_nearly_nothing_have_no_sign():
    line = headline(made((CHAINS,), outcome="none", p=0.42, held_out=-0.0001))
    assert " and +0.000 (95% interval" in line


def test_the_summary_has_the_numbers():
    findings = replace(made(failing=2), identity={"kind": "llama", "weights": "0123"})
    told = json.loads(json.dumps(summary(findings), allow_nan=False))
    assert told["model"] == "demo" and told["headline"] == headline(findings)
    assert told["probes"][1] == {
        "name": "text", "measure": "loss, nats a token", "lower_is_better": True, "chance": None,
        "questions": 50, "held_out_questions": 80, "decimals": 3,
        "limit": pytest.approx(0.3), "largest_gain": "0:8,4:8,4:12",
    }  # fmt: skip
    assert told["identity"] == {"kind": "llama", "weights": "0123"}
    assert told["base"]["chains"] == {"mean": 0.9, "low": 0.88, "high": 0.92, "n": 200}
    assert len(told["entries"]) == 233
    assert [each["error"] for each in told["entries"][:3]] == ["out of memory", "out of memory", None]
    (best,) = [each for each in told["entries"] if each["label"] == "(4,8)x3"]
    assert {name: best[name] for name in ("plan", "kind", "what", "block", "times", "damp")} == {
        "plan": "0:8,4:8,4:12", "kind": "block", "what": "3 times", "block": [4, 8], "times": 3, "damp": 1.0,
    }  # fmt: skip
    assert best["cost"] == pytest.approx(20 / 12)
    assert best["scores"]["text"] == {
        "mean": pytest.approx(1.905), "low": pytest.approx(1.885), "high": pytest.approx(1.925), "n": 50,
        "difference": {
            "mean": pytest.approx(-0.095), "low": pytest.approx(-0.115), "high": pytest.approx(-0.075),
            "n": 50,
        },
        "gain": pytest.approx(0.095), "p": 0.001,
    }  # fmt: skip
    verdict = told["verdict"]
    assert (verdict["outcome"], verdict["p"], verdict["held_out_p"]) == ("better", 0.003, 0.004)
    assert verdict["objective"] == ["chains"] and verdict["best"]["plan"] == "0:8,4:8,4:12"
    assert verdict["held_out"]["chains"]["difference"]["low"] == pytest.approx(0.012)


def test_the_summary_of_scores_that_are_no_numbers():
    findings = made((TEXT,), candidates=specs())
    ruined = compared(TEXT, math.nan, 1.0)
    one, *rest = findings.entries
    findings = replace(findings, entries=(replace(one, compared={"text": ruined}), *rest))
    told = json.loads(json.dumps(summary(findings), allow_nan=False))
    assert told["entries"][0]["scores"]["text"]["mean"] is None
    as_markdown(findings, [])
    as_page(findings)


def test_the_tables_of_the_markdown_report():
    told = as_markdown(made(failing=2), ["heat-chains.png"])
    lines = told.splitlines()
    assert lines[2] == f"**{headline(made(failing=2))}**"
    assert "    restack chat demo@0:8,4:8,4:12" in lines
    assert "![chains: the gain of each block (i, j) over the base](pictures/heat-chains.png)" in lines
    assert "- `0x2,1:12`, `0:2,0:12`: out of memory" in lines
    asked = table(told, "What was asked")
    assert asked[1][2:] == ["200", "400", "0.5", "0.900", "0.880 to 0.920"]
    assert asked[2][4:] == ["", "2.000 (perplexity 7.389)", "1.980 to 2.020"]
    assert table(told, "What came out") == [
        [
            "stacks",
            "tried",
            "failed",
            "chains: better",
            "worse",
            "neither",
            "text: better",
            "worse",
            "neither",
        ],
        ["twice", "78", "2", "1", "10", "65", "1", "10", "65"],
        ["3 times", "78", "0", "1", "12", "65", "1", "12", "65"],
        ["left out", "77", "0", "0", "77", "0", "0", "77", "0"],
    ]
    best = table(told, "The best 15 of 231")
    assert len(best) == 16
    assert best[1] == [
        "(4,8)x3", "`0:8,4:8,4:12`", "1.67", "0.995 (0.975 to 1.015)", "**+0.095** (+0.075 to +0.115)",
        "0.001 better", "1.905 (1.885 to 1.925), perplexity 6.719", "**-0.095** (-0.115 to -0.075)",
        "0.001 better",
    ]  # fmt: skip
    assert best[3][4:6] == ["+0.025 (+0.005 to +0.045)", "0.30"]  # p is corrected, its interval is not
    assert table(told, "The worst")[1][5] == "< 0.001 worse"
    assert "1,000, for 2,500 if each stack ran by itself (2.5 times as many)" in told


def test_groups_of_the_best():
    groups = {"one hop": compared(CHAINS, 0.05, 0.1, n=30), "a|b": compared(CHAINS, -0.01, 0.9, n=10)}
    findings = made(by_group={"chains": groups})
    rows = table(as_markdown(findings, []), "chains by group: the best and the base on held-out questions")
    assert rows[1:] == [
        ["one hop", "30", "0.900", "0.950", "+0.050", "+0.030 to +0.070"],
        ["a\\|b", "10", "0.900", "0.890", "-0.010", "-0.030 to +0.010"],
    ]
    assert "a|b" in Page(as_page(findings)).texts
    assert summary(findings)["verdict"]["by_group"]["chains"]["one hop"]["n"] == 30


def test_the_report_says_that_repeats_do_not_help():
    findings = made(outcome="none", p=0.42, held_out_p=0.6)
    for told in (as_markdown(findings, []), as_page(findings)):
        assert "Running a block of layers again does not help this model" in told
        assert "restack chat" not in told
    assert "does not help" not in as_markdown(made(candidates=specs(), outcome="none", held_out_p=0.6), [])


def test_the_page_needs_nothing_from_elsewhere():
    text = as_page(made(failing=2))
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert attributes.get("href", "data:").startswith("data:")
    assert text.count("prefers-color-scheme: dark") == 1


def test_the_page_escapes_what_others_named():
    findings = made((replace(CHAINS, name='<i>"x"'),), model="<b>&", failing=2)
    failing = replace(findings.entries[0], error="</script><script>alert(1)")
    findings = replace(findings, entries=(failing, *findings.entries[1:]))
    page = Page(as_page(findings))
    tags = [tag for tag, _ in page.tags]
    assert "b" not in tags and "i" not in tags and tags.count("script") == 1
    assert "<b>&: which stack is better" in page.texts  # the title
    assert any("</script><script>alert(1)" in told for told in page.texts)
    told = as_markdown(findings, [])
    assert told.startswith("# &lt;b>&: which")
    assert not re.search(r"^(?! {4}).*<[a-z/]", told, re.MULTILINE)  # but in code, which is shown as it is


def test_every_cell_of_the_page_tells_its_block():
    page = Page(as_page(made((CHAINS,), failing=2)))
    heat = [
        attributes["class"] for tag, attributes in page.tags if tag == "rect" and "data-tip" in attributes
    ]
    cells = [style for style in heat if re.fullmatch("[bwg][1-6]", style)]
    assert len(cells) == 231
    assert sum(style.startswith("b") for style in cells) == 2
    assert sum(style.startswith("w") for style in cells) == 10 + 12 + 77
    told = (
        "(4,8) twice: 0.990 (0.970 to 1.010); minus the base +0.090 (+0.070 to +0.110); n = 200; corrected p"
    )
    assert sum(text.startswith(told) for text in page.texts) == 2  # in the heat map, and beside its cost
    assert sum(text == "(0,1): out of memory" for text in page.texts) == 1


def test_the_rows_of_the_page_are_to_be_sorted_by_numbers():
    findings = made(failing=2)
    rows = [row for row in Page(as_page(findings)).rows if len(row) == 10 and row[0] is not None]
    assert len(rows) == 231
    assert rows[0] == [
        "(4,8)x3", "3 times", "0:8,4:8,4:12", "1.66667", "0.995", "0.095", "0.001", "1.905", "-0.095",
        "0.001",
    ]  # fmt: skip


def test_the_order_of_rows():
    strong = entry(specs()[0], {"chains": compared(CHAINS, 0.03, 0.01, half=0.01)})
    loud = entry(specs()[1], {"chains": compared(CHAINS, 0.05, 0.4, half=0.08)})
    losing = entry(specs()[2], {"chains": compared(CHAINS, -0.3, 0.001)})
    findings = replace(made((CHAINS,), candidates=specs()), entries=(losing, loud, strong))
    findings = replace(findings, verdict=replace(findings.verdict, best=strong))
    assert ranked(findings) == [strong, loud, losing]
    assert worst(findings, 5) == [losing]
    chosen = replace(findings, verdict=replace(findings.verdict, best=loud))
    assert ranked(chosen)[0] is loud


def test_several_objectives_count_the_same():
    first = entry(specs()[0], {"chains": compared(CHAINS, 0.05, 0.1), "text": compared(TEXT, 0.06, 0.1)})
    second = entry(specs()[1], {"chains": compared(CHAINS, 0.03, 0.1), "text": compared(TEXT, -0.03, 0.1)})
    findings = replace(made(candidates=specs()), entries=(first, second))
    findings = replace(findings, verdict=replace(findings.verdict, objective=("chains", "text"), best=None))
    assert ranked(findings) == [second, first]


def test_the_front():
    points = [
        (0.5, -0.4, True),
        (0.9, -0.01, False),
        (0.95, -0.05, True),
        (1.2, 0.05, True),
        (1.3, 0.04, True),
    ]
    points += [(1.1, 0.03, False), (1.0, 0.2, False), (1.4, 0.06, True), (1.2, 0.02, True)]
    assert front(points) == [0, 1, 3, 7]
    able = [p for p in points if p[0] < 1 or (p[1] > 0 and p[2])]
    unbeaten = [p for p in able if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in able)]
    assert [points[n] for n in front(points)] == sorted(unbeaten)
    assert front([]) == []


def test_names_of_files():
    assert file_names(["chains", "../a b/c.jsonl", "CHAINS", "???", "é", "a" * 200]) == {
        "chains": "chains", "../a b/c.jsonl": "a-b-c.jsonl", "CHAINS": "CHAINS-2", "???": "probe",
        "é": "probe-2",
        "a" * 200: "a" * 60,
    }  # fmt: skip


def test_the_command_to_try_it():
    assert command(made(model="my models/a")) == "restack chat 'my models/a@0:8,4:8,4:12'"
    assert command(made(model="demo@0:8,4:12")) == ""  # the plan is of that model's visits
    assert command(made(outcome="unconfirmed")) == ""


CASES = {
    "specs only": lambda: made(candidates=specs(), layers=False),
    "one probe": lambda: made((TEXT,)),
    "errors only": lambda: made(failing=233),
    "nothing tried": lambda: made(candidates=[], layers=False),
    "a tiny model": lambda: made(depth=4),
}


@pytest.mark.parametrize("name", CASES)
def test_a_whole_report(tmp_path, name):
    findings = CASES[name]()
    written = write_report(findings, tmp_path / "new" / "folder")
    there = {path for path in (tmp_path / "new" / "folder").rglob("*") if path.is_file()}
    assert set(written) == there and all(path.stat().st_size for path in there)
    named = {path.name for path in there if path.suffix != ".png"}
    assert named == {"report.md", "report.html", "summary.json"}
    told = (tmp_path / "new" / "folder" / "report.md").read_text(encoding="utf-8")
    shown = {tmp_path / "new" / "folder" / path for path in re.findall(r"\((pictures/[^)]+)\)", told)}
    assert shown == {path for path in there if path.suffix == ".png"}
    Page((tmp_path / "new" / "folder" / "report.html").read_text(encoding="utf-8"))


def test_nothing_is_written_when_drawing_fails(tmp_path, monkeypatch):
    def fail(findings):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(reporting, "draw_all", fail)
    (tmp_path / "report.md").write_text("before")
    with pytest.raises(RuntimeError, match="no fonts"):
        write_report(made(candidates=specs()), tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "before"


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError("no space left")

    (tmp_path / "report.md").write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        reporting.write_whole(tmp_path / "report.md", b"after")
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "before"
