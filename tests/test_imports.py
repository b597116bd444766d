"""The house: a wing knows only the wings above it, a room only rooms with smaller numbers, and no room the private names
of another."""
import ast
import re

import pytest

from conftest import ROOT

WINGS = ("mixing", "inputs", "runs", "tables", "app")
ROOMS = {}  # module -> its place in the house
for path in ROOT.glob("nbs/*/*.ipynb"):
    for module in re.findall(r'"#\| default_exp (\w+)"', path.read_text()):
        number = int(path.name[:2]) if path.name[:2].isdigit() else 11.5  # a new method: before mixers, its door
        ROOMS[module] = (WINGS.index(path.parent.name), number)


def imported(module):
    """Room and name of everything that a module takes from the library, at its top or in a function."""
    for node in ast.walk(ast.parse((ROOT / f"mix_research/{module}.py").read_text())):
        if not isinstance(node, ast.ImportFrom): continue
        full = node.module or ""
        if not node.level and not full.startswith("mix_research"): continue
        room = full.removeprefix("mix_research").strip(".")
        for alias in node.names: yield (room, alias.name) if room else (alias.name, "")


@pytest.mark.parametrize("module", ROOMS)
def test_a_room_knows_only_what_stands_above_it(module):
    for room, name in imported(module):
        assert ROOMS.get(room, (-1, 0)) < ROOMS[module], f"{module} imports {room}, which stands below it"
        assert not name.startswith("_"), f"{module} imports {room}'s private {name}"


def test_numbers_count_inside_a_wing():
    for wing in WINGS:
        numbers = [int(p.name[:2]) for p in sorted((ROOT / "nbs" / wing).glob("[0-9]*.ipynb"))]
        assert numbers == list(range(1, len(numbers) + 1)), wing
