"""Notebooks as pages: as committed, without what only machines read, their tests folded."""
import re

import nbformat

from rooms import ROOMS, WINGS, linked, relinked
from sources import hidden_toc, prose, write

TEST = re.compile(r"^\s*(?:test_\w+\(|check_mixer\(|assert |for .*: ?(?:test_|check_)|with .*: ?test_)", re.M)
PLAIN_TABLE = "<table(?! class)"
FOLDED = dict(tags=["hide-cell"], mystnb={"code_prompt_show": "Test", "code_prompt_hide": "Test"})


def directives_of(source):
    "What nbdev is told at the head of a cell, and that head."
    head = re.match(r"(#\|.*\n?)*", source)[0]
    return re.findall(r"^#\| *(\w+)", head, re.M), head


def left_out(cell):
    "Is this cell for machines alone?"
    tags, (directives, _) = cell.metadata.get("tags", []), directives_of(cell.source)
    hidden = "hide" in directives and "hide_input" not in tags
    return "hide_cell" in tags or "default_exp" in directives or hidden


def has_picture(cell):
    return any({"image/png", "image/jpeg"} & set(o.get("data", {})) for o in cell.outputs)


def shown_as(cell, hide_code):
    "The metadata that say how a code cell is shown."
    directives, _ = directives_of(cell.source)
    if "hide_input" in cell.metadata.get("tags", []): return dict(tags=["remove-input"])
    if hide_code: return dict(tags=["hide-input"])
    test = "export" not in directives and TEST.search(cell.source) and not has_picture(cell)
    return FOLDED if test else {}


def readable(cell, room, up, hide_code):
    "A cell for readers: no directives, tables in the site's style, names linked."
    if cell.cell_type != "code":
        cell.metadata, cell.source = nbformat.from_dict({}), linked(relinked(cell.source, up), room)
        return cell
    cell.metadata = nbformat.from_dict(shown_as(cell, hide_code))
    cell.source = cell.source.removeprefix(directives_of(cell.source)[1]).strip("\n")
    for data in (o.data for o in cell.outputs if "data" in o):
        if "text/html" in data: data["text/html"] = re.sub(PLAIN_TABLE, '<table class="dataframe"', data["text/html"])
        if "text/markdown" in data: data["text/markdown"] = relinked(data["text/markdown"], up)
    return cell


def notebook(path, to, top="", hide_code=False, room=None, title=""):
    "Writes a notebook as it is to be read; `top` stands under its title."
    nb = nbformat.read(path, 4)
    up = "../" * to.count("/") + "nbs/"
    nb.cells = [readable(cell, room, up, hide_code) for cell in nb.cells if not left_out(cell)]
    first, _, rest = nb.cells[0].source.partition("\n")
    nb.cells[0].source = f"{title or first}\n\n{top}\n{rest}"
    nb.nbformat_minor = 4  # cells need no ids
    for cell in nb.cells: cell.pop("id", None)
    write(to, nbformat.writes(nb))


# --- the library, explained

START = """# The library, explained

The source of the library is these notebooks: each explains, defines, shows and tests one module. They stand in five
folders; a folder knows only those above it, and a notebook only those before it.
"""


def explained(room):
    "Writes a room's page."
    top = f"Source of [`mix_research.{room.name}`](../../api/{room.name}.md)." if room.module else ""
    notebook(room.path, f"nbs/{room.page}", top, room=room.name)


def entry(room):
    "A room in the list of its wing."
    name, says = (f"`{room.name}`", prose(room.says)) if room.module else (room.name, room.says)
    return f"[{name}]({room.page})\n: {says}\n"


def library():
    "Writes all rooms, and their page by wings."
    text = START
    for wing, (title, sentence) in WINGS.items():
        rooms = [room for room in ROOMS if room.wing == wing]
        for room in rooms: explained(room)
        text += f"\n## {title}\n\n{sentence}\n\n" + "\n".join(map(entry, rooms))
    write("nbs/index.md", text + hidden_toc(f"{room.name} <{room.page}>" for room in ROOMS))
