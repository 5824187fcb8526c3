"""What a scan's findings look like: a report to read, a page to publish, pictures, and data for scripts."""

import json
from pathlib import Path

from restack.recipes.whole_file import write_whole
from restack.scanning.findings import Findings
from restack.scanning.reporting.data import summary
from restack.scanning.reporting.markdown import as_markdown
from restack.scanning.reporting.page import as_page
from restack.scanning.reporting.pictures import as_png, draw_all
from restack.scanning.reporting.verdict import headline
from restack.scanning.results import SUMMARY

__all__ = ["headline", "summary", "write_report"]


def write_report(findings: Findings, folder: Path) -> list[Path]:
    """Write report.md, report.html, summary.json and pictures/*.png, all made before the first is written.

    Args:
        findings: of the scan.
        folder: made if it is not there; pictures of an earlier report that this one does not have stay.

    Returns:
        The files, each of them whole.
    """
    pictures = {f"pictures/{name}": as_png(figure) for name, figure in draw_all(findings).items()}
    names = [name.partition("/")[2] for name in pictures]
    made = {
        **pictures,
        SUMMARY: (json.dumps(summary(findings), indent=2, allow_nan=False) + "\n").encode(),
        "report.md": as_markdown(findings, names).encode(),
        "report.html": as_page(findings).encode(),
    }
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for name, content in made.items():
        write_whole(folder / name, content)
    return [folder / name for name in made]
