"""Which stack of a model's layers is better, whether that is beyond chance, and what can be left out."""

from restack.scanning.asking import Asker
from restack.scanning.beam import Beam
from restack.scanning.candidates import Candidate, base, grid, named, read_specs, repeated, skipped
from restack.scanning.findings import Findings
from restack.scanning.probe import ForcedProbe, FreeProbe, Outcome, Probe, Row
from restack.scanning.probes.making import Making, make_probe, make_probes
from restack.scanning.scanner import Watch, scan

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
    "grid",
    "make_probe",
    "make_probes",
    "named",
    "read_specs",
    "repeated",
    "scan",
    "skipped",
]
