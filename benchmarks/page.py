"""docs/benchmarks.md from the JSON that the benchmarks wrote.

python benchmarks/page.py build/benchmarks docs/benchmarks.md
"""

import json
import sys
from pathlib import Path
from typing import Any

HEAD = """# Benchmarks

Written by `make bench`. Each table is one script of `benchmarks/`, which says what it measures and how; the
conditions of the run are below it. Goals are those that the project set itself.
"""


def number(value: float | None, unit: str) -> str:
    """A figure with its unit, to three digits."""
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:.3g} {unit}"


def section(name: str, found: dict[str, Any]) -> str:
    """The table of one benchmark, and its conditions."""
    lines = [f"## {name}", "", "| | restack | peer | better | goal | met |", "|---|---|---|---|---|---|"]
    for claim in found["claims"]:
        ratio = "" if claim["ratio"] is None else f"{claim['ratio']:.3g}x"
        met = {True: "yes", False: "**no**", None: ""}[claim["met"]]
        unit = claim["unit"]
        cells = (number(claim[column], unit) for column in ("ours", "peer"))
        lines.append(
            f"| {claim['name']} | {' | '.join(cells)} | {ratio} | {number(claim['goal'], unit)} | {met} |"
        )
    conditions = [f"- {key}: {value}" for key, value in found["conditions"].items() if value is not None]
    return "\n".join([*lines, "", *conditions, ""])


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    files = sorted(source.glob("*.json"))
    parts = [section(file.stem, json.loads(file.read_text())) for file in files]
    part = target.with_name(target.name + ".part")
    part.write_text("\n".join([HEAD, *parts]))
    part.replace(target)


if __name__ == "__main__":
    main()
