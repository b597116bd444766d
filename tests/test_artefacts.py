"""Every table and figure: what the paper prints, what the committed notebooks show, and all of them from nothing at the
smallest size."""
import ast
import csv
import json
import re
import shutil

import nbformat
import pytest
import yaml
from papermill import inspect_notebook

from conftest import ROOT
from mix_research.study import Study, artefacts, protocol_of
from test_cli import cli

NAMES = list(artefacts())
TABLES = [n for n in NAMES if artefacts()[n].metrics]
PAGES = {f"{path.parent.name}/settings" for path in ROOT.glob("papers/*/protocol.yaml")}


def parameters(name): return inspect_notebook(str(ROOT / f"papers/{name}.ipynb"))


def test_every_artefact_has_its_notebook():
    notebooks = {str(p.relative_to(ROOT / "papers").with_suffix("")) for p in ROOT.glob("papers/*/*.ipynb")}
    assert notebooks == set(NAMES) | PAGES
    def count(paper, kind): return sum(n.startswith(f"{paper}/{kind}_") for n in NAMES)
    expected = {"randomix": (6, 1), "miamix": (8, 2), "lmix": (5, 5), "synermix": (1, 12)}
    assert {p: (count(p, "table"), count(p, "figure")) for p in expected} == expected


@pytest.mark.parametrize("name", TABLES)
def test_notebook_says_what_its_presets_train(name):
    comment = parameters(name)["preset"]["help"]
    said = r"smoke: (\d+) runs on digits; short: (\d+) of (.+) epochs; paper: (\d+) of (.+); fast: bfloat16"
    smoke, short, short_epochs, paper, paper_epochs = re.fullmatch(said, comment).groups()
    presets = ("smoke", smoke, "60"), ("short", short, short_epochs), ("paper", paper, paper_epochs)
    for preset, runs, epochs in presets:
        of_preset = Study(name, preset).runs
        lengths = {run.epochs for run in of_preset}
        assert len(of_preset) == int(runs)
        assert {min(lengths), max(lengths)} == set(map(int, re.findall(r"\d+", epochs)))
    assert "bfloat16" in {run.precision for run in Study(name, "fast").runs}


@pytest.mark.parametrize("name", TABLES)
def test_notebook_opens_its_own_study(name):
    source = "".join(c.source for c in nbformat.read(ROOT / f"papers/{name}.ipynb", 4).cells)
    opened = re.findall(r'open_study\("([^"]*)", preset, seeds, methods, records, data, train\)', source)
    assert opened == [name]


def csv_lines(name):
    """The lines of reference.csv that the artefact's table shows, read without the library."""
    paper, artefact = name.split("/")
    spec = yaml.safe_load((ROOT / f"papers/{paper}/protocol.yaml").read_text())["artefacts"][artefact]
    with open(ROOT / f"papers/{paper}/reference.csv", newline="") as f:
        lines = [r for r in csv.DictReader(f) if r["artefact"] == artefact]
    for r in lines: r["setting"] = dict(s.split("=", 1) for s in r["setting"].split(";") if s)
    if "source" in spec: lines = [r for r in lines if r["setting"].get("source") in (None, spec["source"])]
    gains = [r for r in lines if r["metric"].endswith("_gain")]
    return spec, [r for r in lines if r["metric"] in spec["metrics"]], gains


def row_of(line, rows):
    """The table's row: a protocol names rows by method and settings where several lines have one method."""
    for row, which in rows.items():
        has = line["setting"] | {"method": line["method"]}
        if all(has.get(k) == v for k, v in which.items()): return row
    return line["method"]


def printed(line, gain):
    """A number as the table quotes it, with the gain that the paper prints beside it."""
    text = f"{float(line['value']):.2f}"
    return f"{text} ({float(gain):+.2f})" if gain else text


@pytest.mark.parametrize("name", TABLES)
def test_paper_columns_are_the_reference(name):
    spec, lines, gains = csv_lines(name)
    s = Study(name)
    table = s.table()
    ours = {"rows": {}, "datasets": {}, "models": {}, **spec.get("reference", {})}
    def place(r): return row_of(r, ours["rows"]), r["dataset"], r["model"], r["metric"].removesuffix("_gain")
    gains, expected = {place(r): r["value"] for r in gains}, {}
    for r in lines:
        row = row_of(r, ours["rows"])
        cell = [ours[kind + "s"].get(r[kind], r[kind]) for kind in ("dataset", "model")]
        assert cell in spec["cells"] and row in spec["rows"], f"not shown: {r}"
        metric = [s.label(r["metric"])] if len(spec["metrics"]) > 1 else []
        title = ", ".join([s.label(c) for c in cell] + metric) + ": paper"
        assert (title, row) not in expected, "one number for a cell"
        expected[title, row] = printed(r, gains.get(place(r)))
    columns = [c for c in table.columns if c.endswith(": paper")]
    shown = {(c, row): v for c in columns for row, v in zip(spec["rows"], table[c]) if v}
    assert shown == expected
    assert len(shown) or not name.startswith(("randomix/table", "lmix/table", "miamix/table"))


def test_every_run_of_every_protocol_can_be_trained():
    """Tables are listed without it: what a protocol says of data, networks, methods and arguments is looked up here."""
    runs = {run for name in NAMES for preset in protocol_of(name.split("/")[0]).presets for run in Study(name, preset).runs}
    assert len(runs) > 1000
    for run in runs: run.check()


def shown_by(notebook):
    """The tables that a notebook shows, as Markdown."""
    cells = [c for c in notebook.cells if "s.show()" in c.source.split("\n")]
    texts = [o["data"].get("text/markdown", "") for c in cells for o in c.outputs if "data" in o]
    return [text for text in texts if text.startswith("| Method")]


@pytest.mark.parametrize("name", TABLES)
def test_committed_notebook_shows_what_the_records_give(name):
    path = ROOT / f"papers/{name}.ipynb"
    asked = {k: ast.literal_eval(v["default"]) for k, v in parameters(name).items()}
    # a notebook may show a preset that nobody has all records of; the digits anyone has
    s = Study(name, asked["preset"], asked["seeds"])
    shown, n = shown_by(nbformat.read(path, 4)), len(s.records())
    assert len(shown) == 1 and 0 < n <= len(s.runs), f"{n} of {len(s.runs)} committed records"
    assert s.preset != "smoke" or n == len(s.runs), f"{n} of {len(s.runs)} committed records"
    expected = f"{s.table().to_markdown(disable_numparse=True)}\n\n{s.caption()}"
    assert shown[0] == expected, "execute the notebook again: make render"


def planned(folder, *which):
    """How many runs a command has, and how many of them have a record."""
    line = re.search(r"\| all *\| *(\d+) \| *(\d+) \|", cli(folder, *which, "--dry-run").stdout)
    return int(line[1]), int(line[2])


def check_exported(folder, name):
    """A notebook without errors; of a figure a picture, of a table LaTeX and CSV."""
    cells = nbformat.read(folder / f"{name}.ipynb", 4).cells
    outputs = [o for c in cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"], name
    images = [o for o in outputs if {"image/png", "image/jpeg"} & set(o.get("data", {}))]
    assert images or "figure" not in name, f"{name}: a figure without a picture"
    if name in TABLES:
        tex = (folder / f"{name}.tex").read_text()
        assert tex.isascii() and not re.search(r"(?<!\\)[%_#]", tex), name
        assert (folder / f"{name}.csv").stat().st_size, name


def test_all_from_nothing(tmp_path):
    shutil.copytree(ROOT / "papers", tmp_path / "papers", ignore=shutil.ignore_patterns("records"))
    for path in (tmp_path / "papers").glob("*/protocol.yaml"):
        protocol = yaml.safe_load(path.read_text())
        protocol["presets"]["smoke"]["run"] |= dict(epochs=1, eval_every=1)
        path.write_text(yaml.safe_dump(protocol, sort_keys=False))
    which, made = ("reproduce", "--all", "--seeds", "0"), tmp_path / "reproduced"
    n, _ = planned(tmp_path, *which)
    assert n > 100 and not made.exists()
    cli(tmp_path, *which, "--export", "--jobs", "1")
    records = {p: json.loads(p.read_text()) for p in (made / "records").glob("*.json")}
    assert len(records) == n and {r["status"] for r in records.values()} == {"ok"}
    assert {r["run"]["dataset"] for r in records.values()} == {"digits"}
    assert {str(p.relative_to(made).with_suffix("")) for p in made.rglob("*.ipynb")} == set(NAMES)
    for name in NAMES: check_exported(made, name)
    before = {p: p.stat().st_mtime_ns for p in records}
    assert planned(tmp_path, *which)[1] == n, "a second call would train nothing"
    assert {p: p.stat().st_mtime_ns for p in records} == before
