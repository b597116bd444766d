"""The library's notebooks and modules, and links from the names in a text to their documentation."""
import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import nbformat

from sources import ROOT

WINGS = {  # folder -> title, sentence
    "mixing": ("Mixing", "The methods, in torch alone: what a mix is, how it is drawn, what becomes of the labels."),
    "inputs": ("Inputs", "From files to batches on the device: data sets, their sources, and their augmentation."),
    "runs": ("Runs", "From a description of a training to its record: networks, the loop, checkpoints, evaluations."),
    "tables": ("Tables", "From records to a paper's table or figure, with the paper's number beside ours."),
    "app": ("At the terminal", "What is typed: commands, a check of the installation, a start for your own method."),
}


@dataclass(frozen=True)
class Room:
    "A notebook of the library and the module that it exports."
    path: Path
    name: str
    module: ModuleType | None  # None: the notebook only explains
    says: str  # its first sentence

    @property
    def wing(self): return self.path.parent.name

    @property
    def page(self): return f"{self.wing}/{self.path.name}"

    @property
    def names(self): return getattr(self.module, "__all__", [])


def room_at(path):
    "Reads a notebook's name, module and first sentence."
    cells = nbformat.read(path, 4).cells
    exported = re.search(r"#\| default_exp (\w+)", "\n".join(c.source for c in cells if c.cell_type == "code"))
    if exported:
        module = importlib.import_module(f"mix_research.{exported[1]}")
        return Room(path, exported[1], module, module.__doc__ or "")
    name, _, sentence = cells[0].source.removeprefix("# ").partition("\n\n> ")
    return Room(path, name, None, sentence)


ROOMS = [room_at(path) for wing in WINGS for path in sorted((ROOT / "nbs" / wing).glob("*.ipynb"))]
MODULES = {room.name: room for room in ROOMS if room.module}


def definer(room, name):
    "The room that a name of `room` comes from: the first that has it, since rooms import from those before them."
    value = getattr(room.module, name)
    return next(r for r in MODULES.values() if name in r.names and getattr(r.module, name) is value)


def defined():
    "Public name -> the rooms that define it, by name."
    homes = {}
    for room in MODULES.values():
        for name in room.names:
            if definer(room, name) is room: homes.setdefault(name, []).append(room.name)
    return homes


SYMBOLS = defined()


def anchor(room, name):
    "The target of a name in the reference; targets know no capitals, so a name in small letters comes first."
    small = name.lower()
    twin = name != small and small in MODULES[room].names
    return f"{room}.{small}" + ("-2" if twin else "")


# --- links in a text

def target(word, room=None):
    "What `word`, as it stands in a text of `room`, may mean: (room, name) of its documentation, or None."
    head, _, tail = word.partition(".")
    if tail and head in MODULES:
        return (definer(MODULES[head], tail).name, tail) if tail in MODULES[head].names else None
    if head not in SYMBOLS: return None
    homes = SYMBOLS[head]
    if head in homes or room in homes: return head if head in homes else room, head
    return (homes[0], head) if len(homes) == 1 and not tail else None


def linked(text, room=None):
    "Names of the library in inline code become links to their documentation, once in a cell."
    seen = set()
    def link(match):
        to = target(match[1], room)
        if to is None or to[1] in seen: return match[0]
        seen.add(to[1])
        return f"[{match[0]}](#{anchor(*to)})"
    no_prose = r"(^```.*?^```|^#.*?$|\[[^\]]*\]\([^)]*\)|\$[^$]+\$)"  # code, headings, links, formulas
    parts = re.split(no_prose, text, flags=re.M | re.S)
    code = r"(?<!`)`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)"
    return "".join(part if i % 2 else re.sub(code, link, part) for i, part in enumerate(parts))


def relinked(text, up):
    "Links to modules by name, `](masks.html)` as nbdev writes them, lead to their notebooks; `up` leads to nbs/."
    def page(match): return f"]({up}{MODULES[match[1]].page})" if match[1] in MODULES else match[0]
    return re.sub(r"\]\((\w+)\.html\)", page, text)
