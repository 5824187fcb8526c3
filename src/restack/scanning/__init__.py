"""Which stack of a model's layers is better, whether that is beyond chance, and what can be left out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from restack.scanning.asking import Asker
    from restack.scanning.beam import Beam
    from restack.scanning.candidates import Candidate, base, grid, named, read_specs, repeated, skipped
    from restack.scanning.drafting import draft
    from restack.scanning.findings import Findings
    from restack.scanning.probe import ForcedProbe, FreeProbe, Outcome, Probe, Row
    from restack.scanning.probes.making import Making, make_probe, make_probes
    from restack.scanning.pruning import prune
    from restack.scanning.scanner import Watch, scan

_HOME = {
    "Asker": "asking",
    "Beam": "beam",
    "Candidate": "candidates",
    "Findings": "findings",
    "ForcedProbe": "probe",
    "FreeProbe": "probe",
    "Making": "probes.making",
    "Outcome": "probe",
    "Probe": "probe",
    "Row": "probe",
    "Watch": "scanner",
    "base": "candidates",
    "draft": "drafting",
    "grid": "candidates",
    "make_probe": "probes.making",
    "make_probes": "probes.making",
    "named": "candidates",
    "prune": "pruning",
    "read_specs": "candidates",
    "repeated": "candidates",
    "scan": "scanner",
    "skipped": "candidates",
}
__all__ = [
    "Asker",
    "Beam",
    "Candidate",
    "Findings",
    "ForcedProbe",
    "FreeProbe",
    "Making",
    "Outcome",
    "Probe",
    "Row",
    "Watch",
    "base",
    "draft",
    "grid",
    "make_probe",
    "make_probes",
    "named",
    "prune",
    "read_specs",
    "repeated",
    "scan",
    "skipped",
]


def __getattr__(name: str) -> Any:
    # On first use: the command line checks what it can before the seconds that importing torch takes.
    if name not in _HOME:
        raise AttributeError(f"module 'restack.scanning' has no attribute {name!r}")
    return getattr(import_module(f"restack.scanning.{_HOME[name]}"), name)
