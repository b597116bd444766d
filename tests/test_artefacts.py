"""Every table and figure: what the paper prints, what the committed notebooks show, and all of them from nothing at the smallest size."""
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
from mix_research.study import Study, artefacts
from test_cli import cli

NAMES = list(artefacts())
TABLES = [n for n in NAMES if artefacts()[n].metrics]
PAGES = {f"{path.parent.name}/settings" for path in ROOT.glob("papers/*/protocol.yaml")}


def parameters(name): return inspect_notebook(str(ROOT / f"papers/{name}.ipynb"))


def test_every_artefact_has_its_notebook():
    notebooks = {str(p.relative_to(ROOT / "papers").with_suffix("")) for p in ROOT.glob("papers/*/*.ipynb")}
    assert notebooks == set(NAMES) | PAGES
    def count(paper, kind): return sum(n.startswith(f"{paper}/{kind}_") for n in NAMES)
    counts = {p: (count(p, "table"), count(p, "figure")) for p in ("randomix", "miamix", "lmix", "synermix")}
    assert counts == dict(randomix=(6, 1), miamix=(8, 2), lmix=(5, 5), synermix=(1, 12))


@pytest.mark.parametrize("name", TABLES)
def test_notebook_says_what_its_presets_train(name):
    comment = parameters(name)["preset"]["help"]
    said = r"smoke: (\d+) runs on digits; short: (\d+) of (.+) epochs; paper: (\d+) of (.+); fast: bfloat16"
    smoke, short, short_epochs, paper, paper_epochs = re.fullmatch(said, comment).groups()
    for preset, runs, epochs in (("smoke", smoke, "60"), ("short", short, short_epochs), ("paper", paper, paper_epochs)):
        planned = Study(name, preset).runs
        lengths = {run.epochs for run in planned}
        assert len(planned) == int(runs) and {min(lengths), max(lengths)} == set(map(int, re.findall(r"\d+", epochs)))
    assert {run.precision for run in Study(name, "fast").runs} >= {"bfloat16"}


@pytest.mark.parametrize("name", TABLES)
def test_notebook_opens_its_own_study(name):
    cells = nbformat.read(ROOT / f"papers/{name}.ipynb", 4).cells
    opened = re.findall(r'open_study\("([^"]*)", preset, seeds, methods, records, data, train\)', "".join(c.source for c in cells))
    assert opened == [name]


def csv_lines(name):
    """The lines of reference.csv that the artefact's table shows, read without the library."""
    paper, artefact = name.split("/")
    spec = yaml.safe_load((ROOT / f"papers/{paper}/protocol.yaml").read_text())["artefacts"][artefact]
    with open(ROOT / f"papers/{paper}/reference.csv", newline="") as f: lines = [r for r in csv.DictReader(f) if r["artefact"] == artefact]
    for r in lines: r["setting"] = dict(s.split("=", 1) for s in r["setting"].split(";") if s)
    if "source" in spec: lines = [r for r in lines if r["setting"].get("source") in (None, spec["source"])]
    return spec, [r for r in lines if r["metric"] in spec["metrics"]], [r for r in lines if r["metric"].endswith("_gain")]


@pytest.mark.parametrize("name", TABLES)
def test_paper_columns_are_the_reference(name):
    spec, lines, gains = csv_lines(name)
    s = Study(name)
    table = s.table()
    names = spec.get("reference", {})
    def row(r): # a protocol names rows by method and settings where several lines have one method
        for key, which in names.get("rows", {}).items():
            want = {k: v for k, v in which.items() if k != "method"}
            if which["method"] == r["method"] and all(r["setting"].get(k) == v for k, v in want.items()): return key
        return r["method"]
    gains = {(row(r), r["dataset"], r["model"], r["metric"].removesuffix("_gain")): r["value"] for r in gains}
    expected = {}
    for r in lines:
        cell = [names.get("datasets", {}).get(r["dataset"], r["dataset"]), names.get("models", {}).get(r["model"], r["model"])]
        assert cell in spec["cells"] and row(r) in spec["rows"], f"not shown: {r}"
        title = ", ".join([s.label(c) for c in cell] + [s.label(r["metric"])] * (len(spec["metrics"]) > 1)) + ": paper"
        gain = gains.get((row(r), r["dataset"], r["model"], r["metric"]))
        assert (title, row(r)) not in expected, "one number for a cell"
        expected[title, row(r)] = f"{float(r['value']):.2f}" + (f" ({float(gain):+.2f})" if gain else "")
    shown = {(c, m): v for c in table.columns if c.endswith(": paper") for m, v in zip(spec["rows"], table[c]) if v}
    assert shown == expected
    assert len(shown) or not name.startswith(("randomix/table", "lmix/table", "miamix/table"))


@pytest.mark.parametrize("name", TABLES)
def test_committed_notebook_shows_what_the_records_give(name):
    asked = {k: ast.literal_eval(v["default"]) for k, v in parameters(name).items()}
    s = Study(name, asked["preset"], asked["seeds"])
    cells = [c for c in nbformat.read(ROOT / f"papers/{name}.ipynb", 4).cells if "s.show()" in c.source.split("\n")]
    texts = [o["data"].get("text/markdown", "") for c in cells for o in c.outputs if "data" in o]
    shown = [text for text in texts if text.startswith("| Method")]
    known = f"{len(s.records())} of {len(s.runs)} committed records"
    assert len(shown) == 1 and 0 < len(s.records()) <= len(s.runs), known  # of other presets nobody may have all
    assert s.preset != "smoke" or len(s.records()) == len(s.runs), known
    expected = f"{s.table().to_markdown(disable_numparse=True)}\n\n{s.caption()}"
    assert shown[0] == expected, "execute the notebook again: make render"


def test_all_from_nothing(tmp_path):
    shutil.copytree(ROOT / "papers", tmp_path / "papers", ignore=shutil.ignore_patterns("records"))
    for path in (tmp_path / "papers").glob("*/protocol.yaml"):
        protocol = yaml.safe_load(path.read_text())
        protocol["presets"]["smoke"]["run"] |= dict(epochs=1, eval_every=1)
        path.write_text(yaml.safe_dump(protocol, sort_keys=False))
    which = ("reproduce", "--all", "--seeds", "0")
    planned = cli(tmp_path, *which, "--dry-run").stdout
    n = int(re.search(r"\| all *\| *(\d+) \|", planned).group(1))
    assert n > 100 and not (tmp_path / "reproduced").exists()
    cli(tmp_path, *which, "--export", "--jobs", "1")
    records = {p: json.loads(p.read_text()) for p in (tmp_path / "reproduced/records").glob("*.json")}
    assert len(records) == n and {r["status"] for r in records.values()} == {"ok"} and {r["run"]["dataset"] for r in records.values()} == {"digits"}
    made = {str(p.relative_to(tmp_path / "reproduced").with_suffix("")) for p in (tmp_path / "reproduced").rglob("*.ipynb")}
    assert made == set(NAMES)
    for name in NAMES:
        cells = nbformat.read(tmp_path / f"reproduced/{name}.ipynb", 4).cells
        outputs = [o for c in cells for o in c.get("outputs", [])]
        assert not [o for o in outputs if o.output_type in ("error",) or o.get("name") == "stderr"], name
        images = [o for o in outputs if {"image/png", "image/jpeg"} & set(o.get("data", {}))]
        assert images or "figure" not in name, f"{name}: a figure without a picture"
        if name in TABLES:
            tex = (tmp_path / f"reproduced/{name}.tex").read_text()
            assert tex.isascii() and not re.search(r"(?<!\\)[%_#]", tex) and (tmp_path / f"reproduced/{name}.csv").stat().st_size, name
    before = {p: p.stat().st_mtime_ns for p in records}
    assert re.search(r"\| all *\| *\d+ \| *(\d+) \|", cli(tmp_path, *which, "--dry-run").stdout).group(1) == str(n), "a second call would train nothing"
    assert {p: p.stat().st_mtime_ns for p in records} == before
