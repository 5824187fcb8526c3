"""The folder of a scan: what it is of, and a line for each candidate that is done.

scan.json      what is scanned, written first
results.jsonl  a line for each candidate, with its scores question by question; only ever appended to
summary.json   what was found, written last, beside the report
"""

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from restack.errors import PlanError, UsageError
from restack.plans import Plan
from restack.recipes import check_new_folder
from restack.recipes.whole_file import write_whole
from restack.scanning.asking import Answers
from restack.scanning.candidates import Candidate

FORMAT = 1
IDENTITY, RESULTS, SUMMARY = "scan.json", "results.jsonl", "summary.json"
SEARCHED, HELD_OUT = "searched", "held-out"  # which of the questions were asked
OTHER = {"model": "another model", "probes": "other questions", "split": "another split"}
Record = dict[str, Any]  # a line


class Results:
    """What is known of candidates, in memory and, if there is a folder, on disk as soon as it is known."""

    def __init__(self, depth: int, folder: Path | None = None) -> None:
        """Results of a scan.

        Args:
            depth: layers of the model.
            folder: where they are kept; nowhere if None.
        """
        self.depth, self.folder = depth, folder
        self.records: dict[tuple[str, str], Record] = {}  # by the questions asked, and the plan
        self._file: Any = None

    @contextmanager
    def opened(self, identity: Mapping[str, Any]) -> Iterator["Results"]:
        """Begin, or go on with what is in the folder; nobody else can while this is open.

        A last line that was cut short, by a kill or a full disk, is taken away: that candidate is done again.

        Args:
            identity: what decides the scores: the model, the probes and their questions.

        Raises:
            UsageError: the folder cannot be made, is of another model or other probes, or is in use.
        """
        if self.folder is None:
            yield self
            return
        self.folder = self.folder.expanduser()
        check_folder(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / RESULTS
        with path.open("ab") as self._file:
            _lock(self._file, self.folder)
            self._claim(json.loads(json.dumps(identity)))
            self._read(path)
            yield self

    def add(self, candidate: Candidate, answers: Answers, asked: str, chosen_by: Sequence[str] = ()) -> None:
        """Keep what a candidate scored; the last that is said of it counts.

        Args:
            candidate: which.
            answers: what it scored.
            asked: `SEARCHED` or `HELD_OUT`.
            chosen_by: the objectives that it was the best by, if it was asked for that.

        Raises:
            OSError: it cannot be written. What is there stays, and can be gone on from.
        """
        i, j = candidate.block or (None, None)
        record: Record = {
            "plan": str(candidate.plan),
            "asked": asked,
            "kind": candidate.kind,
            "block": None if i is None else [i, j],
            "times": candidate.times,
            "damp": candidate.damp,
            "visits": len(candidate.plan),
            "seconds": round(answers.seconds, 4),
            "layer_runs": list(answers.layer_runs),
            **({"chosen_by": list(chosen_by)} if chosen_by else {}),
        }
        if answers.error is not None:
            record |= {"error": answers.error, "is_final": answers.is_final}
        else:
            record["mean"] = {name: _mean(scores) for name, scores in answers.scores.items()}
            record["scores"] = {name: [_short(score) for score in s] for name, s in answers.scores.items()}
        if self._file is not None:
            line = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
            self._file.write(line.encode() + b"\n")
            self._file.flush()
        self.records[asked, record["plan"]] = record

    def has(self, plan: Plan, asked: str) -> bool:
        """Whether a plan is done: it has scores, or cannot have any."""
        record = self.records.get((asked, str(plan)))
        return record is not None and ("scores" in record or record["is_final"])

    def scores(self, plan: Plan, asked: str) -> Mapping[str, Sequence[float]] | None:
        """The scores of a plan, question by question, by probe; None if there are none."""
        return self.records.get((asked, str(plan)), {}).get("scores")

    def _claim(self, identity: Record) -> None:
        assert self.folder is not None
        file = self.folder / IDENTITY
        if not file.is_file() and not (self.folder / RESULTS).stat().st_size:
            write_whole(file, json.dumps({"format": FORMAT, **identity}, indent=1, ensure_ascii=False) + "\n")
            return
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            format_ = before.pop("format")
        except (OSError, ValueError, KeyError, AttributeError):
            raise UsageError(f"{file} is damaged; name another folder, or remove it") from None
        if format_ != FORMAT:
            raise UsageError(
                f"{file} has format {format_!r}, and this Restack reads {FORMAT}; go on with the Restack "
                "that began the scan, or name another folder"
            )
        for name in {**identity, **before}:
            then, now = before.get(name), identity.get(name)
            if then != now:
                raise UsageError(
                    f"{self.folder} holds a scan of {OTHER.get(name, 'another ' + name)}: "
                    f"{_difference(then, now)}; name another "
                    "folder, or give the same command to go on"
                )

    def _read(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            self._file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                record = json.loads(line)
                candidate_of(record, self.depth)
                self._check(record)
                self.records[record["asked"], record["plan"]] = record
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, PlanError):
                raise UsageError(
                    f"{path}, line {number} is damaged; remove the line, and its candidate is done again"
                ) from None

    def _check(self, record: Record) -> None:
        """Find out whether a record can be used.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it cannot.
        """
        record["visits"] + record["seconds"] + sum(record["layer_runs"])
        if "error" in record:
            bool(record["is_final"])
            return
        asked = record["asked"]
        shape = {name: len([float(score) for score in s]) for name, s in record["scores"].items()}
        others = (r["scores"] for (said, _), r in self.records.items() if said == asked and "scores" in r)
        before = next(others, None)
        if before is not None and shape != {name: len(s) for name, s in before.items()}:
            raise ValueError


def check_folder(folder: Path) -> None:
    """Refuse a folder that is neither new nor that of a scan.

    Raises:
        UsageError: so it is.
    """
    if not any((folder.expanduser() / name).is_file() for name in (IDENTITY, RESULTS)):
        check_new_folder(folder)


def read_summary(folder: Path) -> Record:
    """What a scan found, as `reporting.summary` has it.

    Raises:
        UsageError: the folder is none of a scan, or of one that did not come to its end.
    """
    file = folder.expanduser() / SUMMARY
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if not (isinstance(found["depth"], int) and isinstance(found["entries"], list)):
            raise ValueError
        json.dumps(found, allow_nan=False)  # or it could not be sent
    except (FileNotFoundError, NotADirectoryError):
        if (file.parent / RESULTS).is_file():
            raise UsageError(
                f"{folder} holds a scan that is not finished: it has no {SUMMARY}; "
                "go on with it by the same restack scan command"
            ) from None
        raise UsageError(
            f"{folder} holds no scan: it has no {SUMMARY}; name a folder that restack scan wrote"
        ) from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UsageError(
            f"{file} is damaged, or none of a scan; the same restack scan command writes it anew"
        ) from None
    return dict(found)


def candidate_of(record: Record, depth: int) -> Candidate:
    """The candidate that a record is of."""
    block = record["block"]
    return Candidate(
        Plan.from_json({"plan": record["plan"], "depths": [depth]}),
        record["kind"],
        tuple(block) if block else None,
        record["times"],
        record["damp"],
    )


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _short(score: float) -> float:
    return int(score) if score == int(score) else score


def _lock(file: Any, folder: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: nobody is kept out
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise UsageError(
                f"another process is scanning into {folder}; wait for it, or name another folder"
            ) from None


def _difference(then: Any, now: Any) -> str:
    """What differs, of two descriptions, as briefly as it can be told."""
    if isinstance(then, dict) and isinstance(now, dict):
        name = next(name for name in {**then, **now} if then.get(name) != now.get(name))
        return f"{name} was {_told(then.get(name))} and is {_told(now.get(name))} now"
    return f"it was {_told(then)} and is {_told(now)} now"


def _told(value: Any) -> str:
    return "not there" if value is None else f"{value!r:.100}"
