"""The site: `python site/build.py [FOLDER]` writes Sphinx sources from notebooks, records and docstrings to _proc/site, and the pages to FOLDER, by default _docs.

Notebooks are shown as committed, and nothing is executed but what draws pictures here; every number comes from a record, a measurement or a paper's `reference.csv`."""
import base64, importlib, inspect, io, json, re, shutil, sys
from functools import lru_cache
from html import escape
from pathlib import Path

import nbformat, pandas as pd, torch
import torch.nn.functional as F
from fastcore.docments import docments
from PIL import Image

from mix_research import figures, speed
from mix_research.compare import front
from mix_research.mixers import MIXERS, FeatureMixer, build as mixer_of
from mix_research.study import Study, artefacts, committed_records, papers_dir, reference

HERE = Path(__file__).parent
ROOT = HERE.parent
WORK = ROOT / "_proc" / "site"
NAMES = dict(randomix="RandoMix", miamix="MiAMix", lmix="LMix", synermix="SynerMix", beyond="Beyond the papers")
NAMES |= {p: p for p in dict.fromkeys(a.split("/")[0] for a in artefacts()) if p not in NAMES}
PAPERS = list(NAMES)
ARTEFACTS = sorted(artefacts().items(), key=lambda a: (PAPERS.index(a[0].split("/")[0]), [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", a[0])]))
SPECS = dict(ARTEFACTS)
WINGS = ("mixing", "inputs", "runs", "tables", "app")
NOTEBOOKS = [p for wing in WINGS for p in sorted((ROOT / "nbs" / wing).glob("*.ipynb"))]
written = set()

def write(path, content):
    "Writes a source when it has changed, so that Sphinx reads only what is new."
    path, content = WORK / path, content if isinstance(content, bytes) else content.encode()
    written.add(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content: path.write_bytes(content)

def html(text): return f"\n```{{raw}} html\n{text}\n```\n"
def title_of(name): paper, a = name.split("/"); return f"{NAMES[paper]}, {a.replace('_', ' ')}" if paper != "beyond" else a.replace("_", " ").capitalize()
def upper(text): return text[:1].upper() + text[1:] if text.split()[0].islower() else text # t-SNE stays

# --- notebooks

def symbols():
    "Public name -> the modules that export it."
    found = {}
    for m in MODULES:
        for name in getattr(m, "__all__", []): found.setdefault(name, []).append(m.__name__.split(".")[1])
    return found

MODULES = []
for path in NOTEBOOKS:
    text = "".join(c.source + "\n" for c in nbformat.read(path, 4).cells if c.cell_type == "code")
    if m := re.search(r"#\| default_exp (\w+)", text):
        MODULES.append(importlib.import_module(f"mix_research.{m[1]}"))
        MODULES[-1].notebook = path
SYMBOLS = symbols()

def anchor(module, name): # targets know no capitals
    return f"{module}.{name.lower()}" + ("-2" if name != name.lower() and name.lower() in SYMBOLS and module in SYMBOLS[name.lower()] else "")

def linked(text, module=None):
    "Names of the library in inline code become links to their documentation, once in a cell."
    seen = set()
    def link(m):
        head, _, tail = m[1].partition(".")
        homes = SYMBOLS.get(tail if head in {x.__name__.split(".")[1] for x in MODULES} else head, [])
        home = head if head in homes else module if module in homes else homes[0] if len(homes) == 1 and not tail else None
        name = tail if home == head and tail else head
        if home is None or name in seen or name not in SYMBOLS or home not in SYMBOLS[name]: return m[0]
        seen.add(name)
        return f"[{m[0]}](#{anchor(home, name)})"
    parts = re.split(r"(^```.*?^```|^#.*?$|\[[^\]]*\]\([^)]*\)|\$[^$]+\$)", text, flags=re.M | re.S)
    return "".join(p if i % 2 else re.sub(r"(?<!`)`([A-Za-z_][\w.]*)(?:\(\))?`(?!`)", link, p) for i, p in enumerate(parts))

TEST = re.compile(r"^\s*(?:test_\w+\(|check_mixer\(|assert |for .*: ?(?:test_|check_)|with .*: ?test_)", re.M)

def notebook(path, to, top="", hide_code=False, module=None, title=""):
    "A notebook as it is to be read: directives gone, hidden cells gone, tests folded."
    nb = nbformat.read(path, 4)
    cells = []
    for c in nb.cells:
        tags, source = list(c.metadata.get("tags", [])), c.source
        head = re.match(r"(#\|.*\n?)*", source)[0]
        directives = re.findall(r"^#\| *(\w+)", head, re.M)
        if "hide_cell" in tags or "default_exp" in directives or ("hide" in directives and "hide_input" not in tags): continue
        c.metadata = nbformat.from_dict({})
        if c.cell_type == "code":
            c.source = source.removeprefix(head).strip("\n")
            picture = any("image/png" in o.get("data", {}) or "image/jpeg" in o.get("data", {}) for o in c.outputs)
            if "hide_input" in tags: c.metadata["tags"] = ["remove-input"]
            elif hide_code: c.metadata["tags"] = ["hide-input"]
            elif "export" not in directives and TEST.search(source) and not picture: c.metadata.update(tags=["hide-cell"], mystnb={"code_prompt_show": "Test", "code_prompt_hide": "Test"})
            for o in c.outputs:
                if "data" in o and "text/html" in o.data: o.data["text/html"] = re.sub(r'<table(?! class)', '<table class="dataframe"', o.data["text/html"])
                if "data" in o and "text/markdown" in o.data: o.data["text/markdown"] = relinked(o.data["text/markdown"])
        else: c.source = linked(relinked(source), module)
        cells.append(c)
    first, _, rest = cells[0].source.partition("\n")
    cells[0].source = f"{title or first}\n\n{top}\n{rest}"
    nb.cells, nb.nbformat_minor = cells, 4 # minor 4: cells need no ids
    for c in cells: c.pop("id", None)
    write(to, nbformat.writes(nb))

def relinked(text): # notebooks link modules by name, as nbdev does
    return re.sub(r"\]\((\w+)\.html\)", lambda m: next((f"]({x.notebook.name})" for x in MODULES if x.__name__.endswith("." + m[1])), m[0]), text)

def blurb(module): return module.__doc__ or ""

def library():
    rows = []
    for m in MODULES:
        name = m.__name__.split(".")[1]
        notebook(m.notebook, f"nbs/{m.notebook.name}", f'Source of [`mix_research.{name}`](../api/{name}.md).', module=name)
        rows.append(f"[`{name}`]({m.notebook.name})\n: {prose(blurb(m))}\n")
    toc = "\n".join(f"{m.__name__.split('.')[1]} <{m.notebook.name}>" for m in MODULES)
    for path in sorted(set(NOTEBOOKS) - {m.notebook for m in MODULES}): # no module, only an explanation
        name, _, sentence = nbformat.read(path, 4).cells[0].source.removeprefix("# ").partition("\n\n> ")
        notebook(path, f"nbs/{path.name}")
        rows.append(f"[{name}]({path.name})\n: {sentence}\n")
        toc += f"\n{name} <{path.name}>"
    write("nbs/index.md", f"# The library, explained\n\nThe source of the library is these notebooks: each explains, defines, shows and tests one module. Lower ones know nothing of higher ones.\n\n"
          + "\n".join(rows) + f"\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n")

# --- reference

def prose(text):
    "Documentation in place as Markdown: formulas and code stay, stars and brackets are no markup."
    parts = re.split(r"(\$[^$]+\$|`[^`]+`)", (text or "").replace("\n", " "))
    return "".join(p if i % 2 else re.sub(r"([*<\[\]|_])", r"\\\1", p) for i, p in enumerate(parts))

def cell(text): return text.replace("|", "\\|") # of a Markdown table

def kind(anno):
    if anno is inspect.Parameter.empty or anno is None: return ""
    text = anno if isinstance(anno, str) else getattr(anno, "__name__", str(anno))
    return f"`{text.strip(chr(39))}`"

def value(v): return "*required*" if v is inspect.Parameter.empty else "" if v is None else "`{}`" if v == {} or repr(v) == "<factory>" else f"`{getattr(v, '__name__', None) if callable(v) else repr(v)}`"

def parameters(obj, inherited=None):
    docs = docments(obj, full=True, returns=True)
    if inherited is not None: docs = {k: v for k, v in docs.items() if k == "return" or v.docment or k not in inherited}
    rows = [f"| `{k}` | {cell(kind(v.anno))} | {cell(value(v.default))} | {cell(prose(v.docment))} |" for k, v in docs.items() if k not in ("self", "cls", "return")]
    r = docs.get("return")
    table = "| argument | type | default | meaning |\n|:--|:--|:--|:--|\n" + "\n".join(rows) + "\n" if rows else ""
    out = f"Returns {kind(r.anno)}{': ' if r.anno is not inspect.Parameter.empty and r.docment else ''}{prose(r.docment)}\n" if r and (r.docment or r.anno not in (inspect.Parameter.empty, "None")) else ""
    return f"{table}\n{out}"

def signature(obj, name):
    try: params = [p for p in inspect.signature(obj).parameters.values() if p.name not in ("self", "cls")]
    except (TypeError, ValueError): return name
    def one(p): return {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name + ("" if p.default is p.empty else f"={'{}' if repr(p.default) == '<factory>' else getattr(p.default, '__name__', None) or repr(p.default) if callable(p.default) else repr(p.default)}")
    text = f"{name}({', '.join(map(one, params))})"
    return text if len(text) < 88 else f"{name}(\n    " + ",\n    ".join(map(one, params)) + ")"

def symbol(module, name):
    "The reference of one public name."
    obj, m = getattr(module, name), module.__name__.split(".")[1]
    head = f"\n({anchor(m, name)})=\n## `{name}`\n\n"
    if not (inspect.isclass(obj) or inspect.isroutine(obj)):
        if not isinstance(obj, (dict, tuple, list)): return head + f"```python\n{name} = {obj!r}\n```\n"
        text = ", ".join(map(str, obj))
        return head + f"A {type(obj).__name__}" + (" of names: " if isinstance(obj, dict) else ": ") + prose(text if len(text) < 600 else text[:600] + " ...") + "\n"
    if inspect.isroutine(obj): return head + f"```python\n{signature(obj, name)}\n```\n\n{prose(inspect.getdoc(obj))}\n\n{parameters(obj)}"
    base = [b.__name__ for b in obj.__mro__[1:] if b.__name__ in SYMBOLS and not b.__name__.startswith("_")]
    doc = vars(obj).get("__doc__") or ""
    if doc.startswith(f"{name}("): doc = "" # what dataclass makes
    out = head + f"```python\n{signature(obj, name)}\n```\n\n{prose(doc)}\n" + (f"\nA kind of {linked(f'`{base[0]}`', m)}.\n" if base else "") + f"\n{parameters(obj)}"
    for k, v in vars(obj).items():
        f = v.fget if isinstance(v, property) else v.__func__ if isinstance(v, (classmethod, staticmethod)) else v
        if (k.startswith("_") and k != "__call__") or not inspect.isfunction(f) or not f.__module__.startswith("mix_research") or not f.__doc__: continue
        shown = f"{name}.{k}" if isinstance(v, property) else signature(f, f"{name}.{k}" if k != "__call__" else "mixer" if issubclass(obj, MIXERS["mixup"].__mro__[1]) else name.lower())
        out += f"\n### `{name}.{k}`\n\n```python\n{shown}\n```\n\n{prose(inspect.getdoc(f))}\n\n{parameters(f)}"
    return out

def api():
    rows = []
    for m in MODULES:
        name, names = m.__name__.split(".")[1], getattr(m, "__all__", [])
        rows.append(f"[`{name}`]({name}.md)\n: {', '.join(f'[`{n}`](#{anchor(name, n)})' for n in names)}\n")
        write(f"api/{name}.md", f"# mix_research.{name}\n\n{prose(blurb(m))} Explained in its [notebook](../nbs/{m.notebook.name}).\n" + "\n".join(symbol(m, n) for n in names))
    toc = "\n".join(f"{m.__name__.split('.')[1]} <{m.__name__.split('.')[1]}>" for m in MODULES)
    write("api/index.md", "# Reference\n\nEvery public name, from the comments beside its arguments.\n\n" + "\n".join(rows) + f"\n```{{toctree}}\n:hidden:\n\n{toc}\n```\n")

# --- the papers

def shown(name):
    "The study at the most faithful preset at which two methods can be compared; else the smallest."
    for preset in ("paper", "fast", "short", "smoke"):
        s = Study(name, preset)
        if s.measured().method.nunique() > 1: return s
    return s

STUDIES = {name: shown(name) for name, spec in ARTEFACTS if "cells" in spec}

@lru_cache(maxsize=None)
def differences(s):
    "Row -> the paper's differences to the row `against`, one per column; row -> ours with their standard errors."
    paper, theirs, ours = s.paper(), {}, {}
    for (m, *c), (v, _) in paper.items():
        if m != s.against and (s.against, *c) in paper: theirs.setdefault(m, []).append(v - paper[(s.against, *c)][0])
    for r in s.summary().itertuples():
        if r.method != s.against and not pd.isna(r.gain): ours.setdefault(r.method, []).append((r.gain, r.error))
    return theirs, ours

def ticks(low, high):
    step = next(s for s in (.1, .2, .5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 6)
    return [round(k * step, 6) for k in range(-(-int(low / step * 1e6) // 1_000_000) - 1, int(high / step) + 2) if low <= k * step <= high]

def dots(rows, theirs, ours, labels, width=420, longest=30, line=21, xlabel=""):
    "Differences as a picture: a row per method; rings are the paper's numbers, one per column, discs with bars are ours with two standard errors."
    values = [0] + [v for m in rows for v in theirs.get(m, [])] + [g + k * (0 if pd.isna(e) else 2 * e) for m in rows for g, e in ours.get(m, []) for k in (-1, 1)]
    low, high = min(values), max(values)
    pad = max(.08 * (high - low), .05)
    low, high = low - pad, high + pad
    names = [t if len(t) <= longest else t[:longest - 1] + "…" for t in map(labels, rows)]
    left = 18 + 5.6 * max(map(len, names))
    x = lambda v: f"{left + (width - left - 10) * (v - low) / (high - low):.1f}"
    bottom = 8 + line * len(rows)
    out = [f'<line class="grid" x1="{x(t)}" x2="{x(t)}" y1="4" y2="{bottom}"/><text class="tick" x="{x(t)}" y="{bottom + 13}">{t:g}</text>' for t in ticks(low, high)]
    out.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="4" y2="{bottom}"/>')
    for i, (m, shown_as) in enumerate(zip(rows, names)):
        y = 8 + line * (i + .5)
        out.append(f'<text class="row" x="{left - 8}" y="{y + 4}">{escape(shown_as)}</text>')
        out += [f'<circle class="theirs" cx="{x(v)}" cy="{y - 3}" r="3.4"/>' for v in theirs.get(m, [])]
        for g, e in ours.get(m, []):
            if not pd.isna(e): out.append(f'<line class="ours" x1="{x(g - 2 * e)}" x2="{x(g + 2 * e)}" y1="{y + 4}" y2="{y + 4}"/>')
            out.append(f'<circle class="ours" cx="{x(g)}" cy="{y + 4}" r="3.4"/>')
    if xlabel: out.append(f'<text class="tick" x="{width / 2}" y="{bottom + 29}">{escape(xlabel)}</text>')
    return f'<svg class="dots" viewBox="0 0 {width} {bottom + (34 if xlabel else 18)}" style="max-width:{width * 1.4:.0f}px" role="img" aria-label="differences of {len(rows)} methods">{"".join(out)}</svg>'

def rows_of(s, theirs, ours): return [m for m in s.spec["rows"] if m in theirs or m in ours]

@lru_cache(maxsize=None)
def picture(name):
    "The first picture of a notebook, small; without one, the differences of its study; without those, its name."
    for c in nbformat.read(papers_dir() / f"{name}.ipynb", 4).cells:
        for o in c.get("outputs", []):
            data = o.get("data", {}).get("image/png") or o.get("data", {}).get("image/jpeg")
            if not data: continue
            photo = "image/jpeg" in o["data"]
            image = Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
            image.thumbnail((1400, 420) if photo else (560, 560))
            file, buffer = f"thumbs/{name.replace('/', '_')}.webp", io.BytesIO()
            image.save(buffer, "webp", quality=82)
            write(f"static/{file}", buffer.getvalue())
            return f'<img{" class=photos" if photo else ""} src="STATIC/{file}" alt="" width="{image.width}" height="{image.height}" loading="lazy">'
    if name in STUDIES:
        s = STUDIES[name]
        theirs, ours = differences(s)
        rows = rows_of(s, theirs, ours)
        if rows: return dots(sorted(rows, key=lambda m: (m in theirs) + (m in ours), reverse=True)[:7], theirs, ours, s.label, width=300, longest=22)
    return f'<span class="name" aria-hidden="true">{NAMES[name.split("/")[0]]}<br>{name.split("/")[1].replace("_", " ")}</span>'

def status(name):
    if name not in STUDIES: return "nothing to train"
    s = STUDIES[name]
    return f"{s.preset}: {len(s.records())} of {len(s.runs)} runs, {len(s.seeds)} seeds"

def cards(names, here, up): # from the folder `here`, from which `up` leads to the top
    one = lambda n: (f'<a class="card" href="{n.removeprefix(here)}.html"><span class="thumb">{picture(n).replace("STATIC", up + "_static")}</span>'
                     f'<b>{title_of(n)}</b><span>{escape(upper(SPECS[n]["shows"]))}</span><small>{status(n)}</small></a>')
    return html('<div class="cards">' + "".join(map(one, names)) + "</div>")

KEY = '<p class="key"><span class="ring"></span> the paper, one ring per data set and network &ensp; <span class="disc"></span> ours, with two standard errors</p>'

def comparison(name, up):
    s = STUDIES[name]
    theirs, ours = differences(s)
    metric = list(s.metrics())[-1]
    lower = metric.endswith(("error", "loss", "cohesion"))
    where = "; ".join(dict.fromkeys(", ".join(s.label(t) for t in c) for c in s.spec["cells"]))
    own = "; ".join(dict.fromkeys(f"{s.label(p.dataset)}, {s.label(p.model)}" for p in s.plan.itertuples()))
    return (html(f'<h3><a href="{up}papers/{name}.html">{title_of(name)}</a></h3><p>{escape(upper(SPECS[name]["shows"]))}.</p>'
                 + dots(rows_of(s, theirs, ours), theirs, ours, s.label, xlabel=f"{s.label(metric)}: difference to {s.label(s.against)}, points{' (lower is better)' if lower else ''}"))
            + f"\nThe paper: {where}. Ours: {own}; preset {s.preset}, {len(s.records())} of {len(s.runs)} runs.\n")

WARNING = ("```{admonition} The digits are no evidence about the methods\n:class: warning\nRecords of preset `smoke` come from a small network on the handwritten digits that ship with scikit-learn, "
           "20 training images a class, with settings picked on the same test images. They show that the machinery works, from training to table. Do not choose a method by them.\n```\n")

def papers():
    smoke = any(s.preset == "smoke" for s in STUDIES.values())
    for name in SPECS:
        paper = name.split("/")[0]
        notebook(papers_dir() / f"{name}.ipynb", f"papers/{name}.ipynb", f"[{NAMES[paper]}](index.md) · {status(name)}", hide_code=True)
    notebook(papers_dir() / "speed.ipynb", "papers/speed.ipynb", hide_code=True)
    both = [n for n in STUDIES if all(differences(STUDIES[n]))]
    for p in PAPERS:
        names = [n for n in SPECS if n.startswith(p + "/")]
        protocol = STUDIES[next(n for n in names if n in STUDIES)].protocol
        explained = {m.__name__.split(".")[1]: m for m in MODULES}.get(p)
        text = f"# {NAMES[p]}\n\n" + (f"*{protocol['title']}*\n\n" if protocol["title"] != NAMES[p] else "")
        text += (f"{prose(blurb(explained))} [The method, explained](../../nbs/{explained.notebook.name}).\n" if explained else "What none of the four papers shows, under one protocol for all methods.\n")
        text += f"\n## {'Tables and figures' if p != 'beyond' else 'Notebooks'}\n" + cards(names, f"{p}/", "../../")
        if compared := [n for n in both if n in names]:
            text += "\n## Paper against ours\n" + html(KEY) + ("\n" + WARNING if any(STUDIES[n].preset == "smoke" for n in compared) else "") + "".join(comparison(n, "../../") for n in compared)
        text += "\n## What is left open, and what we chose\n\n" + "\n".join(f"{upper(k)}\n: {prose(v)}\n" for k, v in protocol["unstated"].items())
        if protocol["contradictions"]: text += "\n## Where the paper disagrees with itself\n\n" + "\n".join(f"- {prose(v)}" for v in protocol["contradictions"].values())
        write(f"papers/{p}/index.md", text + "\n\n```{toctree}\n:hidden:\n\n" + "\n".join(f"{title_of(n).split(', ')[-1].capitalize()} <{n.split('/')[1]}>" for n in names) + "\n```\n")
    text = f"# All tables and figures\n\n{len(SPECS)} artefacts, each a notebook rendered from committed records. [Paper against ours](glance.md) puts all comparisons on one page.\n\n" + (WARNING if smoke else "")
    write("papers/index.md", text + "".join(f"\n## {NAMES[p]}\n" + cards([n for n in SPECS if n.startswith(p + "/")], "", "../") for p in PAPERS))
    text = "# Paper against ours\n\nWhat a method adds to the row it is compared with, in the paper and in our records. The data are not the same unless it says so, so look at the order and the size, not at equality.\n\n" + (WARNING if smoke else "") + html(KEY)
    write("papers/glance.md", text + "".join(comparison(n, "../") for n in both))

# --- which method

def trained():
    "Methods of the library that a protocol may train."
    return [m for m in figures.LOOKS if (m in MIXERS and m != "intraclass") or m in ("synermix_intra", "synermix_mixup", "synermix_manifold")]

def works(name):
    "Numbers of spatial dimensions that a mixer takes, by trying."
    if name.startswith("synermix") or issubclass(MIXERS[name], FeatureMixer): return "what the network takes"
    def runs(shape):
        try: mixer_of(name).draw(torch.rand(shape), generator=torch.Generator().manual_seed(0))
        except ValueError: return False
        return True
    return ", ".join(f"{d}-D" for d, shape in ((1, (3, 2, 32)), (2, (3, 2, 32, 32)), (3, (3, 2, 16, 16, 16))) if runs(shape))

def needs(name):
    if name.startswith("synermix"): return "features and head of the network; a second forward pass; two images of a class in a batch"
    if issubclass(MIXERS[name], FeatureMixer): return "hooks inside the network"
    mixer = mixer_of(name)
    return "; ".join(filter(None, ["two views of a batch" if mixer.views > 1 else "", "a look at the images (saliency)" if name == "saliencymix" else "a look at the images" if mixer.sees_x else ""])) or "nothing"

def printed():
    "Every gain over plain training in top-1 that the four papers print: method, gain, paper, artefact, dataset, model."
    rows = []
    for n, s in STUDIES.items():
        if s.against != "baseline" or s.metrics().get("top1") is None: continue
        paper = s.paper("top1")
        rows += [(m, v - paper[("baseline", *c)][0], n.split("/")[0], n, *c) for (m, *c), (v, _) in paper.items() if m in trained() and ("baseline", *c) in paper]
    return pd.DataFrame(rows, columns=["method", "gain", "paper", "artefact", "dataset", "model"])

def which():
    known = STUDIES["beyond/synermix_over_every_mixer"].protocol["labels"]
    label = lambda m: known.get(m) or MIXERS[m].__name__
    gains = printed()
    own = gains[gains.method.map(lambda m: m.split("_")[0]) == gains.paper]
    heroes, others = {m: list(v) for m, v in own.groupby("method").gain}, {m: list(v) for m, v in gains.drop(own.index).groupby("method").gain}
    timings = {k: m for k, m in speed.measured(papers_dir() / "speed").items() if m.what == "training"}
    main = next(k for k in ("cuda_training_preact_resnet18", "cpu_training_preact_resnet18") if k in timings)
    cost = timings[main].table.set_index("name").times_baseline.to_dict()
    cost_of = lambda m: cost.get("synermix" if m == "synermix_mixup" else m)
    cheap = [m for m in trained() if (c := cost_of(m)) and c < 1.1]
    order = sorted(set(gains.method), key=lambda m: -gains[gains.method == m].gain.median())
    real = {n: s for n, s in STUDIES.items() if s.preset != "smoke" and n != "beyond/every_option"}
    protocol = STUDIES["beyond/one_protocol"]
    several = [m for m in order if gains[gains.method == m].paper.nunique() > 2] # trained by three papers: Mixup and its like
    column = gains.pivot_table(index=["artefact", "dataset", "model"], columns="method", values="gain")[several].dropna()
    best = column.idxmax(axis=1).value_counts()
    worst = gains.loc[gains[gains.method.isin(several)].gain.idxmin()]
    spread = any(v for n in set(gains.artefact) for v in reference(n)["std"])
    single = "; ".join(f"{label(m)} {min(v):+.2f} to {max(v):+.2f}" for m, v in heroes.items())
    text = "# Which method should I use?\n\n"
    text += "## In short\n\n"
    text += (f"- **Our own records cannot tell you yet.** Methods were compared here on nothing but the digits of preset `smoke`, which is no evidence about them.\n" if not real else
             "".join(f"- **Measured here, beyond the digits:** {c} ([{title_of(n)}](papers/{n}.ipynb), preset {s.preset}, {len(s.records())} of {len(s.runs)} runs)\n" for n, s in real.items() for c in s.conclusions("") if c.startswith("**")))
    text += (f"- **To start with: {', '.join(map(label, several[:-1]))} or {label(several[-1])}.** Three of the papers train them all, in {len(column)} columns of their tables; median gains in top-1 over plain training are "
             + ", ".join(f"{column[m].median():+.2f} ({label(m)})" for m in several) + ", and " + ", ".join(f"{label(m)} is the best of them in {best.get(m, 0)}" for m in several) +
             f". None is always safe: {label(worst.method)} loses {-worst.gain:.2f} points in [{title_of(worst.artefact)}](papers/{worst.artefact}.ipynb).\n")
    text += f"- **For more, try the paper methods, on your own data.** Their own papers print gains over plain training of {single}.{' No paper trains the method of another.' if not set(heroes) & set(others) else ''} A method does best where its authors chose the setting.\n"
    text += f"- **Cost hardly decides.** With PreAct-ResNet-18 a training step takes less than 1.1 times that of plain training with {', '.join(map(label, cheap))}; SynerMix takes {cost['synermix']:.2f} times, since it needs a second pass. The smaller or faster the network, the more mixing weighs.\n"
    text += "- **Sound, series, volumes:** see the column *data* below; a box, a blob or a plain average works in any number of dimensions, a saliency map does not.\n"
    text += "\n## What the papers print\n\n" + html('<p class="key"><span class="ring"></span> printed by another paper &ensp; <span class="disc"></span> printed by the method\'s own paper</p>' +
            dots(order, others, {m: [(g, float("nan")) for g in v] for m, v in heroes.items()}, label, xlabel="top-1 over plain training, points"))
    text += (f"\n{len(gains)} gains in {gains.artefact.nunique()} tables, over {gains.dataset.nunique()} data sets, {'without spread, so that chance cannot be told from gain' if not spread else 'some with a spread'}. "
             "A table counts as often as it has columns, and tables that share runs are all counted. SynerMix prints ranges of gains instead of accuracies; they are in its [figures](papers/synermix/index.md).\n")
    text += "\n## What training costs\n\n"
    machine = lambda m: f"{m.environment['device_name']}" + (f", {m.environment['threads']} threads" if m.environment["device"] == "cpu" else "") + f", {m.date[:10]}"
    table = pd.DataFrame({f"{m.settings['model']} ({'CPU' if k.startswith('cpu') else 'GPU'})": m.table.set_index("name").times_baseline for k, m in timings.items()})
    table = table.drop(index=["bare loop", "baseline"], errors="ignore").sort_values(table.columns[0])
    paper_cost = {}
    for n, s in STUDIES.items():
        if n.split("/")[0] in ("randomix", "miamix"): paper_cost |= {(n.split("/")[0], m): v for m, v in ((v.method, v.value) for v in reference(n).itertuples() if v.metric == "training_cost")}
    for p in ("randomix", "miamix"): table[f"printed by {NAMES[p]}"] = [paper_cost.get((p, m), float("nan")) for m in table.index]
    table.index = [label(m if m != "synermix" else "synermix_mixup") for m in table.index]
    text += "Times plain training, per step.\n\n" + table.map(lambda v: "" if pd.isna(v) else f"{v:.2f}").to_markdown(disable_numparse=True) + "\n\n"
    text += "Measured on " + "; ".join(dict.fromkeys(map(machine, timings.values()))) + ". " + ("No GPU has been timed yet; there the network is faster and mixing weighs more. " if not any(k.startswith("cuda") for k in timings) else "") + "Details and quartiles: [speed](papers/speed.ipynb). Differences of a few per cent are within the noise of these measurements.\n"
    text += "\n## What each method needs\n\n" + pd.DataFrame([(f"[{label(m)}](#{home(m)})", works(m), needs(m), f"{c:.2f}" if (c := cost_of(m)) else "", span(gains[(gains.method == m) & (gains.dataset == "cifar10")].gain), span(gains[(gains.method == m) & (gains.dataset == "cifar100")].gain))
            for m in trained()], columns=["method", "data", "needs", "cost", "CIFAR-10, printed", "CIFAR-100, printed"]).to_markdown(index=False, disable_numparse=True) + "\n\nCost: times plain training, as above. Printed: gain in top-1 over plain training, least to largest of what the papers print.\n"
    text += "\n## What we measured\n\n" + (WARNING if protocol.preset == "smoke" else "")
    for n, s in {**real, "beyond/one_protocol": protocol}.items():
        text += f"\n[{title_of(n)}](papers/{n}.ipynb), preset {s.preset}, {len(s.seeds)} seeds.\n"
        for scenario, v in s.summary().groupby(["dataset", "model", "how"], sort=False):
            g = {r.method: [(r.gain, r.error)] for r in v.itertuples() if not pd.isna(r.gain)}
            text += f"\n{figures.scenario_name(s, scenario)}:\n" + html(KEY.split("&ensp;")[1].join(['<p class="key">', ""]) + dots(sorted(g, key=lambda m: -g[m][0][0]), {}, g, s.label, xlabel=f"{s.label(list(s.metrics())[-1])} over {s.label(s.against)}, points"))
    costs, means = protocol.seconds().groupby("method").ratio.median().dropna(), protocol.summary().set_index("method")["mean"]
    on = [m for m in costs.index if m in means.index and isinstance(means[m], float)]
    ahead = [m for m, f in zip(on, front([costs[m] for m in on], [means[m] for m in on])) if f]
    text += f"\nOf {len(on)} methods under this last protocol, no other is both cheaper and better than {', '.join(map(s.label, ahead))}, by the records' own timings and means; differences within two standard errors count for nothing.\n"
    text += f"\nThe comparison that would answer the question is one protocol for {len(protocol.methods)} methods on real data:\n\n```bash\nmix-research reproduce beyond/one_protocol --preset short --download\n```\n"
    write("which.md", text)

def home(m):
    m = "synermix" if m.startswith("synermix") else m
    cls = {"synermix": "SynerMix"}.get(m) or MIXERS[m].__name__
    return anchor(SYMBOLS[cls][0], cls)

def span(v): return "" if not len(v) else f"{v.min():+.2f}" if len(v) == 1 else f"{v.min():+.2f} to {v.max():+.2f}"

# --- two images, mixed by the reader

SIZE, LAMS, SEEDS = 144, [k / 10 for k in range(11)], 5
MIXING = dict(mixup="Mixup", cutmix="CutMix", resizemix="ResizeMix", saliencymix="SaliencyMix", gridmix="GridMix", fmix="FMix", gmix="GMix", agmix="AGMix", lmix="LMix", randomix="RandoMix", miamix="MiAMix")

def photographs():
    "A dozen photographs that ship with scikit-image and scikit-learn, (12, 3, SIZE, SIZE) in [0, 1], and their names."
    from skimage import data
    from sklearn.datasets import load_sample_images
    def cut(image):
        p = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        side = min(p.shape[2:])
        top, left = (p.shape[2] - side) // 2, (p.shape[3] - side) // 2
        return F.interpolate(p[..., top:top + side, left:left + side], size=(SIZE, SIZE), mode="bilinear", antialias=True)[0]
    more = [*load_sample_images().images, data.retina()]
    names = ["cat", "astronaut", "coffee", "rocket", "cameraman", "coins", "galaxies", "tissue", "moon", "temple", "flower", "retina"]
    return torch.cat([figures.photos(9, SIZE), torch.stack([cut(i.copy()) for i in more])]), names

def data_uri(image, form, **kw):
    buffer = io.BytesIO()
    image.save(buffer, form, **kw)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"

def bytes_of(t): return Image.fromarray((t.clamp(0, 1) * 255).round().byte().numpy())

def draw(mixer, lam, seed, x, partner):
    "What the library draws for image 0 and a partner when it is to keep `lam`: weights (SIZE, SIZE), exact share, box or None."
    for m in (mixer, *(mixer.candidates if hasattr(mixer, "candidates") else ())):
        if lam is not None: m.share = lambda n, x, generator: torch.full((n,), 1 - lam)
    batch = torch.stack([x, partner])
    mix = mixer.make(torch.tensor([1, 0]), batch, batch, torch.Generator().manual_seed(seed))
    w = mix.w.expand(2, 1, *x.shape[1:])[0, 0]
    box = mix.pastes[0].box[0].tolist() if mix.pastes else None
    return w, float(mix.lam[0]), box

def mixing():
    "Photographs, and for every method, share and seed the library's mask, as a script: a page opened as a file may load nothing else."
    x, names = photographs()
    methods, count = {}, 0
    nearest = {}
    if "miamix" in MIXING: # draws its own shares: of many draws, those whose label comes nearest
        tried = [draw(mixer_of("miamix"), None, seed, x[0], x[1]) for seed in range(400)]
        free = set(range(400))
        for lam in LAMS:
            nearest[lam] = sorted(free, key=lambda k: (abs(tried[k][1] - lam), k))[:SEEDS]
            free -= set(nearest[lam])
    for name, label in MIXING.items():
        by = {"saliencymix": "b", "lmix": "a"}.get(name, "seed") # the mask of these follows image b or a: a row for each
        rows = range(len(x)) if by != "seed" else [0] if name == "mixup" else range(SEEDS)
        draws = [[tried[nearest[lam][r]] if name == "miamix" else draw(mixer_of(name), lam, 7 * r + 1, x[r if by == "a" else 0], x[r if by == "b" else 1]) for lam in LAMS] for r in rows]
        sheet = torch.cat([torch.cat([w for w, _, _ in line], 1) for line in draws]) if name != "mixup" else None
        methods[name] = dict(name=label, by=by, lam=[[round(l, 4) for _, l, _ in line] for line in draws], **({} if sheet is None else dict(masks=data_uri(bytes_of(sheet), "PNG", optimize=True))),
                             **(dict(box=[[b for _, _, b in line] for line in draws]) if any(b for line in draws for _, _, b in line) else {}))
        count += sum(map(len, draws))
    images = [dict(name=n, src=data_uri(bytes_of(p.permute(1, 2, 0)), "JPEG", quality=90)) for n, p in zip(names, x)]
    write("static/mix-data.js", "const MIX = " + json.dumps(dict(size=SIZE, lams=LAMS, images=images, methods=methods)) + ";\n")
    page = (HERE / "mix.md").read_text().replace("{{draws}}", str(count)).replace("{{size}}", str(SIZE)).replace("{{seeds}}", str(SEEDS))
    write("mix.md", page)
    tiles = []
    a, b = x[0], x[2]
    for name, label in (MIXING | dict(smoothmix="SmoothMix")).items():
        mixer = mixer_of(name)
        batch = torch.stack([a, b])
        for seed in range(50): # a draw that shows the method
            mix = mixer.make(torch.tensor([1, 0]), batch, batch, torch.Generator().manual_seed(seed))
            if .45 < mix.lam[0] < .7: break
        file, buffer = f"front/{name}.webp", io.BytesIO()
        bytes_of(mix.blend(batch)[0].permute(1, 2, 0)).save(buffer, "webp", quality=85)
        write(f"static/{file}", buffer.getvalue())
        tiles.append(f'<figure><img src="_static/{file}" alt="{names[0]} and {names[2]} mixed by {label}" width="{SIZE}" height="{SIZE}"><figcaption>{label} <span>{mix.lam[0]:.2f}</span></figcaption></figure>')
    return '<div class="tiles">' + "".join(tiles) + "</div>"

# --- the whole

def main(out=ROOT / "_docs"):
    from sphinx.cmd.build import main as sphinx
    write("conf.py", (HERE / "conf.py").read_text())
    for p in (HERE / "static").iterdir(): write(f"static/{p.name}", p.read_bytes())
    library()
    api()
    papers()
    which()
    trained_runs = sum(len(list(r.glob("*.json"))) for r in committed_records())
    write("index.md", (HERE / "index.md").read_text().replace("{{tiles}}", mixing()).replace("{{artefacts}}", str(len(SPECS))).replace("{{runs}}", str(trained_runs))
          .replace("{{papers}}", "\n".join(f"{NAMES[p]} <papers/{p}/index>" for p in PAPERS)))
    notebook(ROOT / "nbs" / "index.ipynb", "start.ipynb", title="# Get started")
    for name in ("CONTRIBUTING.md", "CITATION.cff"): write(name, (ROOT / name).read_text())
    for p in WORK.rglob("*"): # of notebooks that are gone
        if p.is_file() and p not in written: p.unlink()
    pages = WORK.parent / "html" # and not `out`, since myst-nb leaves copies of notebooks beside it
    failed = sphinx(["-q", "-j", "2", "-b", "html", "-d", str(WORK.parent / "doctrees"), str(WORK), str(pages)])
    if not failed:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(pages, out, ignore=shutil.ignore_patterns(".buildinfo", "objects.inv"))
        print(f"{out}/index.html")
    return failed

if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
