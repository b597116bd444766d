"""The papers: their notebooks, a card for each, and the paper against our records."""
import base64
import io
from functools import lru_cache
from html import escape

import nbformat
from PIL import Image

from charts import OURS, PAPER, STUDIES, compared_rows, differences, dots, key
from mix_research.protocol import lower_is_better, protocol_of
from mix_research.study import papers_dir
from mix_research.table import in_markdown
from notebooks import notebook
from rooms import MODULES
from sources import NAMES, PAPERS, SPECS, hidden_toc, html, of_paper, prose, title_of, upper, write

WARNING = """```{admonition} The digits are no evidence about the methods
:class: warning
Records of preset `smoke` come from a small network on the handwritten digits that ship with scikit-learn, \
20 training images a class, with settings picked on the same test images. They show that the machinery works, \
from training to table. Do not choose a method by them.
```
"""


def warning(names): return WARNING if any(STUDIES[n].preset == "smoke" for n in names) else ""


def title_in_short(name): return title_of(name).split(", ")[-1].capitalize()


def runs_of(name):
    s = STUDIES[name]
    return f"{len(s.records())} of {len(s.runs)} runs"


def status(name):
    "What a card says of an artefact's runs."
    if name not in STUDIES: return "nothing to train"
    return f"{STUDIES[name].preset}: {runs_of(name)}, {len(STUDIES[name].seeds)} seeds"


# --- cards

def pictures(name):
    "The pictures in a notebook, with the kind of each."
    outputs = [o for c in nbformat.read(papers_dir() / f"{name}.ipynb", 4).cells for o in c.get("outputs", [])]
    for data in (o.get("data", {}) for o in outputs):
        kinds = [k for k in ("image/png", "image/jpeg") if k in data]
        if kinds: yield data[kinds[0]], "image/jpeg" in data


def thumbnail(name, picture, photo):
    "Writes a picture small, and returns how it is shown."
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image.thumbnail((1400, 420) if photo else (560, 560))
    file, buffer = f"thumbs/{name.replace('/', '_')}.webp", io.BytesIO()
    image.save(buffer, "webp", quality=82)
    write(f"static/{file}", buffer.getvalue())
    kind, size = " class=photos" if photo else "", f'width="{image.width}" height="{image.height}"'
    return f'<img{kind} src="STATIC/{escape(file)}" alt="" {size} loading="lazy">'


def small_dots(s):
    "The differences of a study, those rows first that have the paper's and ours."
    theirs, ours = differences(s)
    rows = sorted(compared_rows(s), key=lambda m: (m in theirs) + (m in ours), reverse=True)
    return dots(rows[:7], theirs, ours, s.label, width=300, longest=22)


@lru_cache(maxsize=None)
def picture(name):
    "The first picture of a notebook; without one, the differences of its study; without those, its name."
    for data, photo in pictures(name): return thumbnail(name, data, photo)
    if name in STUDIES and compared_rows(STUDIES[name]): return small_dots(STUDIES[name])
    paper, artefact = name.split("/")
    names = f'{escape(NAMES[paper])}<br>{escape(artefact.replace("_", " "))}'
    return f'<span class="name" aria-hidden="true">{names}</span>'


def card(name, here, up):
    thumb = picture(name).replace("STATIC", f"{up}_static")
    return (f'<a class="card" href="{escape(name.removeprefix(here))}.html"><span class="thumb">{thumb}</span>'
            f'<b>{escape(title_of(name))}</b><span>{escape(upper(SPECS[name].shows))}</span>'
            f'<small>{escape(status(name))}</small></a>')


def cards(names, here, up):
    "Cards on a page in the folder `here`, from which `up` leads to the top."
    return html('<div class="cards">' + "".join(card(n, here, up) for n in names) + "</div>")


# --- the paper against ours

def columns(s):
    "The data sets and networks of the paper, and those that we ran."
    theirs = [", ".join(map(s.label, cell)) for cell in s.spec.cells]
    ours = [f"{s.label(p.dataset)}, {s.label(p.model)}" for p in s.plan.itertuples()]
    return "; ".join(dict.fromkeys(theirs)), "; ".join(dict.fromkeys(ours))


def comparison(name, up):
    "One study: its differences as a picture, and where they come from."
    s = STUDIES[name]
    lower = " (lower is better)" if lower_is_better(s.main_metric) else ""
    axis = f"{s.label(s.main_metric)}: difference to {s.label(s.against)}, points{lower}"
    link = f'<a href="{up}papers/{escape(name)}.html">{escape(title_of(name))}</a>'
    head = f"<h3>{link}</h3><p>{escape(upper(SPECS[name].shows))}.</p>"
    theirs, ours = columns(s)
    sources = in_markdown(f"The paper: {theirs}. Ours: {ours}; preset {s.preset}, {runs_of(name)}.")
    note = f"\n{sources}\n"
    return html(head + dots(compared_rows(s), *differences(s), s.label, xlabel=axis)) + note


def comparable(names): return [n for n in names if n in STUDIES and all(differences(STUDIES[n]))]


# --- pages

def introduction(paper, protocol):
    "Title of the paper, what its method is, and the ways to its notebook and its settings."
    title = f"*{in_markdown(protocol.title)}*\n\n" if protocol.title != NAMES[paper] else ""
    settings = "[Settings](settings.ipynb): what is left open, and what we chose.\n"
    if paper not in MODULES:
        return f"{title}What none of the four papers shows, under one protocol for all methods. {settings}"
    room = MODULES[paper]
    return f"{title}{prose(room.says)} [The method, explained](../../nbs/{room.page}). {settings}"


def contradictions(protocol):
    "Where the paper disagrees with itself."
    lines = [f"- {in_markdown(text)}" for text in protocol.contradictions.values()]
    return "\n## Where the paper disagrees with itself\n\n" + "\n".join(lines) + "\n" if lines else ""


def paper_page(paper):
    "The page of one paper."
    names, kind = of_paper(paper), "Notebooks" if paper == "beyond" else "Tables and figures"
    protocol = protocol_of(paper)
    text = f"# {in_markdown(NAMES[paper])}\n\n{introduction(paper, protocol)}\n## {kind}\n"
    text += cards(names, f"{paper}/", "../../")
    compared = comparable(names)
    if compared:
        text += f"\n## Paper against ours\n{html(key(PAPER, OURS))}\n{warning(compared)}"
        text += "".join(comparison(n, "../../") for n in compared)
    toc = [f"{title_in_short(n)} <{n.split('/')[1]}>" for n in names] + ["Settings <settings>"]
    write(f"papers/{paper}/index.md", f"{text}{contradictions(protocol)}{hidden_toc(toc)}")


def gallery():
    "The page of all artefacts."
    count = f"{len(SPECS)} artefacts, each a notebook rendered from committed records."
    text = f"# All tables and figures\n\n{count} [Paper against ours](glance.md) puts all comparisons on one page.\n\n"
    sections = [f"\n## {in_markdown(NAMES[paper])}\n" + cards(of_paper(paper), "", "../") for paper in PAPERS]
    write("papers/index.md", text + warning(STUDIES) + "".join(sections))


GLANCE = """# Paper against ours

What a method adds to the row it is compared with, in the paper and in our records. The data are not the same unless \
it says so, so look at the order and the size, not at equality.

"""


def glance():
    "The page of all comparisons."
    text = "".join(comparison(n, "../") for n in comparable(SPECS))
    write("papers/glance.md", GLANCE + warning(STUDIES) + html(key(PAPER, OURS)) + text)


def papers():
    "Writes the papers' notebooks and pages."
    for name in SPECS:
        paper = name.split("/")[0]
        top = f"[{in_markdown(NAMES[paper])}](index.md) · {in_markdown(status(name))}"
        notebook(papers_dir() / f"{name}.ipynb", f"papers/{name}.ipynb", top, hide_code=True)
    notebook(papers_dir() / "speed.ipynb", "papers/speed.ipynb", hide_code=True)
    for paper in PAPERS:
        page = f"{paper}/settings.ipynb"
        notebook(papers_dir() / page, f"papers/{page}", f"[{in_markdown(NAMES[paper])}](index.md)", hide_code=True)
        paper_page(paper)
    gallery()
    glance()
