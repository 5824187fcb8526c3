"""The house keeps its plan: imports run down the rooms only, and light rooms stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import restack

SOURCE = Path(restack.__file__).parent
# A room may import rooms of lower floors; rooms on one floor do not know each other.
FLOORS = (
    {"errors"},
    {"plans"},
    {"views", "llama"},
    {"demo"},
    {"recipes"},
    {"conversion"},
    {"runtime"},
    {"chat", "scanning", "training", "engines"},
    {"serving"},
    {"cli"},
    {"__init__", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path: Path) -> str:
    part = path.relative_to(SOURCE).parts[0]
    return part.removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found |= {name.split(".")[1] for name in names if name.startswith("restack.")}
    return found & set(LEVEL)


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_down(path):
    room = room_of(path)
    above = {other for other in imported_rooms(path) if other != room and LEVEL[other] >= LEVEL[room]}
    assert not above, f"{room} may not import {above}"


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in SOURCE.rglob("*.py")}
    assert rooms <= set(LEVEL)


@pytest.mark.parametrize("statement", ["import restack", "import restack.plans", "import restack.recipes"])
def test_light_imports_take_no_torch(statement):
    check = f"import sys; {statement}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_help_takes_no_torch():
    check = (
        "import sys; from restack.cli import main; status = main(['--help']); "
        "sys.exit(status or 'torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", restack.__all__)
def test_every_public_name_is_there(name):
    assert getattr(restack, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'slign'"):
        restack.slign  # noqa: B018
