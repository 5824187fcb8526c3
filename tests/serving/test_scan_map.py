"""A scan as a heat map in the page at `/`: opened, pointed at, walked over and talked to, in a browser."""

import copy
import json
import math
from dataclasses import replace

import pytest

from restack.scanning.candidates import grid
from restack.scanning.reporting import summary
from restack.scanning.reporting.heat_chart import base_tip, shade, tip
from restack.scanning.reporting.heat_map import brief
from restack.scanning.reporting.order import limit
from restack.scanning.reporting.wording import wordings
from tests.scanning.made_findings import BASES, CHAINS, TEXT, compared, made, specs
from tests.serving.running import DEEPER, running

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

TRIED = [*grid(12, repeats=(2, 3), damps=(1, 0.5), skips=True), *specs()]
FINDINGS = made(candidates=TRIED, failing=2)
SCAN = summary(FINDINGS)
WORDS = wordings(FINDINGS)


@pytest.fixture(scope="module")
def scanned():
    with running(named={"deeper": DEEPER}, scan=SCAN) as found:
        yield found


@pytest.fixture
def opened(browser):
    """A page at an address; nothing that it does may fail in the browser."""
    pages, wrong = [], []

    def at(server, **options):
        page = browser.new_page(**options)
        pages.append(page)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Security Policy" in said.text else None)
        page.goto(server.url)
        expect(page.locator("#stack rect").first).to_be_visible(timeout=20_000)
        return page

    yield at
    for page in pages:
        page.close()
    assert not wrong


def cells(page):
    return page.locator("#heat [role=gridcell]")


def folder_of(tmp_path, scan, name="summary.json"):
    """A folder with a scan in it, beside other files."""
    folder = tmp_path / "scan"
    folder.mkdir()
    (folder / name).write_text(scan if isinstance(scan, str) else json.dumps(scan))
    (folder / "report.md").write_text("# A report")
    return folder


def test_the_scan_of_the_command_line_is_there_at_once(opened, scanned):
    page = opened(scanned)
    expect(cells(page)).to_have_count(78 + 1)  # and the base
    expect(page.locator("#scan-title")).to_have_text("Scan of demo: 392 stacks of 12 layers")
    expect(page.locator("#headline")).to_have_text(SCAN["headline"])
    expect(page.locator("#variant")).to_have_value("3 times")  # which (4,8) gains most by
    expect(page.locator("#heat .best")).to_be_visible()
    page.select_option("#variant", "left out")
    expect(cells(page)).to_have_count(77 + 1)  # all layers cannot be


@pytest.mark.parametrize("probe", ["chains", "text"])
def test_a_block_that_is_pointed_at_tells_what_the_report_tells(opened, scanned, probe):
    page = opened(scanned)
    page.select_option("#probe", probe)
    for what in ("3 times", "twice, damp 0.5", "left out"):
        page.select_option("#variant", what)
        for block in ((4, 8), (0, 5), (11, 12)):
            page.locator(f"#cell-{block[0]}-{block[1]}").hover()
            (found,) = [
                each
                for each, data in zip(FINDINGS.entries, SCAN["entries"], strict=True)
                if each.candidate.block == block and data["what"] == what
            ]
            line = tip(found, found.compared[probe], WORDS[probe])
            expect(page.locator("#told")).to_have_text(f"{line}{found.candidate.plan}")
    page.locator("#cell-0-0").hover()
    expect(page.locator("#told")).to_have_text(base_tip(FINDINGS, WORDS[probe]))
    page.select_option("#variant", "twice")
    page.locator("#cell-0-1").hover()
    expect(page.locator("#told")).to_contain_text("(0,1): out of memory")


@pytest.mark.parametrize(("probe", "times", "what"), [("chains", 3, "3 times"), ("text", 0, "left out")])
def test_the_colours_and_numbers_are_those_of_the_report(opened, scanned, probe, times, what):
    known = [each for each in FINDINGS.entries if each.candidate.times == times and each.candidate.damp == 1]
    end = limit(FINDINGS, probe)
    page = opened(scanned)
    page.select_option("#probe", probe)
    page.select_option("#variant", what)
    expect(cells(page)).to_have_count(len(known) + 1)
    marks = page.locator("#heat [role=gridcell]").element_handles()
    shown = {mark.get_attribute("data-place"): mark.get_attribute("class") for mark in marks}
    shades = {place(each): shade(each.compared[probe], end) for each in known}
    assert shown == {"0,0": "base", **shades}
    numbers = page.locator("#heat .inside").all_text_contents()
    assert numbers == [brief(each.compared[probe].gain) for each in known]
    key = page.locator("#heat-key")
    expect(key).to_contain_text(f"-{end:.2g} to +{end:.2g} and beyond; base {BASES[probe]:.3f} in the middle")
    expect(key).to_contain_text("largest gain: (4,8)x3, +0.095")


def place(each):
    return "{},{}".format(*each.candidate.block)


def test_a_click_opens_the_stack_and_it_answers(opened, scanned):
    page = opened(scanned)
    page.select_option("#variant", "twice")
    page.locator("#cell-4-8").click()
    expect(page.locator("#spec")).to_have_value("0:8,4:12")
    expect(page.locator("#stack rect")).to_have_count(16, timeout=20_000)
    expect(page.locator("#right h2")).to_have_text("demo@0:8,4:12")
    question = "Let a = fox; b = a; c = b. What is c?"
    page.fill("#question", question)
    page.press("#question", "Enter")
    expect(page.locator(".said small")).to_have_count(2, timeout=30_000)
    answer = scanned.openai.chat.completions.create(
        model="deeper", messages=[{"role": "user", "content": question}], temperature=0, max_tokens=200
    )
    assert page.locator("#right .assistant").text_content().startswith(answer.choices[0].message.content)
    page.locator("#cell-0-0").click()
    expect(page.locator("#spec")).to_have_value("")
    expect(page.locator("#stack rect")).to_have_count(12, timeout=20_000)


def test_the_keyboard_walks_and_opens(opened, scanned):
    page = opened(scanned)
    expect(cells(page)).to_have_count(78 + 1)
    page.locator("#variant").focus()
    page.keyboard.press("Tab")
    expect(page.locator("#heat")).to_be_focused()
    told = page.locator("#told")
    expect(told).to_contain_text(
        "(4,8)x3 3 times: 0.995 (0.975 to 1.015); minus the base +0.095 (+0.075 to +0.115)"
    )
    page.keyboard.press("ArrowLeft")
    expect(told).to_contain_text("(4,7)x3")
    for key in ("ArrowUp", "ArrowRight"):
        page.keyboard.press(key)
    expect(told).to_contain_text("(3,8)x3")
    for _ in range(20):  # not out of the map
        page.keyboard.press("ArrowDown")
    expect(told).to_contain_text("(7,8)x3")
    current = page.locator("#heat").get_attribute("aria-activedescendant")
    assert page.locator(f"#{current}").get_attribute("aria-label").startswith("(7,8)x3 3 times: 0.")
    page.keyboard.press("Enter")
    expect(page.locator("#spec")).to_have_value("0:8,7x2,8:12")
    expect(page.locator("#stack rect")).to_have_count(14, timeout=20_000)


def test_stacks_that_are_no_block_are_rows(opened, server, tmp_path):
    page = opened(server)
    page.set_input_files("#folder", folder_of(tmp_path, summary(made((CHAINS,), candidates=specs()))))
    expect(page.locator("#no-map")).to_be_visible()
    expect(page.locator("#map")).to_be_hidden()
    expect(page.locator("#others li")).to_have_count(3)
    expect(page.locator("#others li").first).to_contain_text("0.910 (0.890 to 0.930); minus the base +0.010")
    page.get_by_role("button", name="11::-1").click()
    expect(page.locator("#spec")).to_have_value("11::-1")
    expect(page.locator("#right h2")).to_have_text("demo@11::-1", timeout=20_000)


def test_a_folder_is_opened_in_the_page(opened, server, tmp_path):
    page = opened(server)
    expect(page.locator("#scan")).to_be_hidden()
    page.set_input_files("#folder", folder_of(tmp_path, SCAN))
    expect(cells(page)).to_have_count(79)
    page.locator("#cell-4-8").click()
    expect(page.locator("#spec")).to_have_value("0:8,4:8,4:12")


@pytest.mark.parametrize("dropped", ["folder", "file"])
def test_a_folder_is_dropped(opened, server, tmp_path, dropped):
    page = opened(server)
    folder = folder_of(tmp_path, SCAN)
    data = {
        "items": [],
        "files": [str(folder if dropped == "folder" else folder / "summary.json")],
        "dragOperationsMask": 1,
    }
    devtools = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
    expect(cells(page)).to_have_count(79)


def other(**changes):
    return {**SCAN, **changes}


def without(*path):
    scan = copy.deepcopy(SCAN)
    place = scan
    for part in path[:-1]:
        place = place[part]
    del place[path[-1]]
    return scan


@pytest.mark.parametrize(
    ("scan", "told"),
    [
        ("# no JSON", "this is no summary.json of a scan"),
        ("null", "see its entries"),
        ("[]", "see its entries"),
        (other(entries=7), "see its entries"),
        (other(depth="<b>12</b>"), "see its depth"),
        (other(probes=[]), "see its probes"),
        (without("probes", 0, "limit"), "see its probe 0"),
        (without("entries", 5, "scores", "text", "difference"), "see its entry 5"),
        (other(entries=[*SCAN["entries"], {**SCAN["entries"][0], "block": [3, 10**9]}]), "see its entry 392"),
        (other(entries=[*SCAN["entries"], None]), "see its entry 392"),
        (other(model="big", depth=80), "a scan of big, with 80 layers, and demo has 12; serve the"),
        (other(identity={"kind": "gpt2, 64 wide"}), "kind gpt2, 64 wide, and demo is kind llama, 128"),
        (other(identity={"plan": "11::-1"}), "plan 11::-1, and demo is plan 0:12"),
        (other(identity={"dtype": "float32", "weights": "0123"}), "and demo has other weights"),
    ],
)  # fmt: skip
def test_what_is_no_scan_of_the_model_is_told_in_a_line(opened, server, tmp_path, scan, told):
    page = opened(server)
    page.set_input_files("#folder", folder_of(tmp_path, scan))
    expect(page.locator("#scan-error")).to_contain_text(told)
    expect(page.locator("#scan")).to_be_hidden()
    (tmp_path / "scan" / "summary.json").write_text(json.dumps(SCAN))
    page.set_input_files("#folder", tmp_path / "scan")  # the next one is opened
    expect(page.locator("#scan-error")).to_be_hidden()
    expect(cells(page)).to_have_count(79)


def test_a_folder_without_a_summary(opened, server, tmp_path):
    page = opened(server)
    page.set_input_files("#folder", folder_of(tmp_path, "{}", name="scan.json"))
    expect(page.locator("#scan-error")).to_contain_text("this folder has no summary.json")


def test_a_scan_of_another_served_plan_goes_to_it(opened, server, tmp_path):
    page = opened(server)
    scan = summary(made((CHAINS,), depth=16, model=f"demo@{DEEPER}", candidates=grid(16)))
    page.set_input_files("#folder", folder_of(tmp_path, scan))
    expect(page.locator("#base")).to_have_value("deeper")
    page.locator("#cell-4-8").click()
    expect(page.locator("#right h2")).to_have_text("deeper@0:8,4:16", timeout=20_000)
    expect(page.locator("#stack rect")).to_have_count(20, timeout=20_000)


def test_values_of_a_file_are_text_and_nothing_else(opened, server, tmp_path):
    mark = '<img src=x onerror="document.title = 1">'
    scan = copy.deepcopy(SCAN)
    scan |= {"model": mark, "headline": mark}
    for each in scan["entries"]:
        each |= {"label": mark, "error": mark}
    scan["probes"][0] |= {"name": "__proto__", "largest_gain": mark}
    scan["verdict"]["objective"] = [mark]
    page = opened(server)
    page.set_input_files("#folder", folder_of(tmp_path, scan))
    expect(page.locator("#headline")).to_have_text(mark)
    page.locator("#cell-4-8").hover()
    expect(page.locator("#told")).to_contain_text(f"{mark}: {mark}")  # there are no scores of that name
    expect(page.locator("img")).to_have_count(0)
    assert page.title() == "Restack"


def test_scores_that_are_no_numbers(opened, server, tmp_path):
    findings = made((TEXT,), candidates=grid(12, widest=1))
    entries = list(findings.entries)
    entries[3] = replace(entries[3], compared={"text": compared(TEXT, math.nan, math.nan)})
    page = opened(server)
    page.set_input_files("#folder", folder_of(tmp_path, summary(replace(findings, entries=tuple(entries)))))
    expect(page.locator("#cell-3-4")).to_have_class("failed")
    page.locator("#cell-3-4").hover()
    expect(page.locator("#told")).to_contain_text(
        "(3,4) twice: unknown (unknown to unknown); minus the base unknown"
    )


def test_a_deep_model_has_room_for_every_block(opened, server, tmp_path):
    page = opened(server)
    page.route(
        "**/v1/playground/bases",
        lambda route: route.fulfill(json=[{"name": "demo", "depth": 80, "identity": {}}]),
    )
    any_block = SCAN["entries"][50]
    blocks = [
        {**any_block, "plan": f"0:{j},{i}:80", "label": f"({i},{j})", "block": [i, j], "what": "twice"}
        for i in range(80)
        for j in range(i + 1, 81)
    ]
    scan = {**SCAN, "depth": 80, "identity": {}, "entries": blocks}
    page.set_input_files("#folder", folder_of(tmp_path, scan))
    expect(cells(page)).to_have_count(3240 + 1, timeout=20_000)
    page.locator("#cell-20-50").hover()
    expect(page.locator("#told")).to_contain_text("(20,50) twice")
    page.locator("#cell-20-50").click()
    expect(page.locator("#spec")).to_have_value("0:50,20:80")


@pytest.mark.parametrize("width", [360, 1000, 1900])
def test_nothing_is_wider_than_the_window(opened, scanned, width):
    page = opened(scanned, viewport={"width": width, "height": 800})
    expect(cells(page)).to_have_count(79)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
