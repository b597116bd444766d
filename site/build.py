"""The site: `python site/build.py [FOLDER]` writes Sphinx sources from notebooks, records and docstrings to _proc/site,
and the pages to FOLDER, by default _docs.

Notebooks are shown as committed, and nothing is executed but what draws pictures here; every number comes from a
record, a measurement or a paper's `reference.csv`."""
import shutil
import sys
from pathlib import Path

from mix_research.study import committed_records
from mixing import mixing, photographs, tiles
from notebooks import library, notebook
from papers import papers
from reference import api
from rooms import ROOMS
from sources import HERE, NAMES, ROOT, SPECS, WORK, filled, forget, write
from which import which

# addresses of notebooks before they stood in folders
OLD = """00_mix 00a_targets 01_masks 01a_base 01b_classic 01c_features 02_mixers 03_randomix 04_miamix 05_lmix
06_synermix 06a_compiled 07_augment 08_batches 08a_download 08b_speech 08c_data 09_models 10_callback
11_record 12_pictures 13_adapters 13a_parallel 13b_labels 14_checkpoint 15_train 16_corruptions 17_evaluate
18_doctor 19_starter 19_workers 20_study 21_cli 22_compare 23_speed""".split()
LEADS_ON = '<!doctype html><meta http-equiv="refresh" content="0; url={to}"><title>{name}</title><a href="{to}">{name}</a>\n'
NOW = dict(batches="loaders", pictures="figures", workers="jobs")  # rooms that have another name


def copied():
    "Writes what is shown as it stands."
    write("conf.py", (HERE / "conf.py").read_text())
    for path in (HERE / "static").iterdir(): write(f"static/{path.name}", path.read_bytes())
    for name in ("CONTRIBUTING.md", "CITATION.cff"): write(name, (ROOT / name).read_text())
    notebook(ROOT / "nbs" / "index.ipynb", "start.ipynb", title="# Get started")


def front(x):
    "Writes the front page."
    runs = sum(len(list(folder.glob("*.json"))) for folder in committed_records())
    links = "\n".join(f"{name} <papers/{paper}/index>" for paper, name in NAMES.items())
    write("index.md", filled("index.md", tiles=tiles(x), artefacts=len(SPECS), runs=runs, papers=links))


def sources():
    "Writes all that Sphinx reads."
    x = photographs()
    for step in (copied, library, api, papers, which): step()
    mixing(x)
    front(x)
    forget()


def leading_on(out):
    "Writes a page at every old address of a notebook, which leads to where it is now."
    pages = {room.path.stem.split("_", 1)[-1]: room.page.replace(".ipynb", ".html") for room in ROOMS}
    for old in OLD:
        name = old.split("_", 1)[1]
        to = pages[NOW.get(name, name)]
        (out / "nbs" / f"{old}.html").write_text(LEADS_ON.format(to=to, name=name))


def main(out=ROOT / "_docs"):
    "Writes sources and pages; returns what Sphinx does, 0 if all is well."
    from sphinx.cmd.build import main as sphinx
    sources()
    pages = WORK.parent / "html"  # and not `out`, since myst-nb leaves copies of notebooks beside it
    failed = sphinx(["-q", "-j", "2", "-b", "html", "-d", str(WORK.parent / "doctrees"), str(WORK), str(pages)])
    if failed: return failed
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(pages, out, ignore=shutil.ignore_patterns(".buildinfo", "objects.inv"))
    leading_on(out)
    print(f"{out}/index.html")


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
