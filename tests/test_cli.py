"""The commands, as a user types them, on real digits at the smallest size."""
import json
import os
import subprocess

import nbformat
import pytest
import yaml

from conftest import ROOT
from mix_research.run import Run
from mix_research.store import Store


@pytest.fixture
def project(tmp_path):
    """A copy of papers/ whose smoke preset trains for two epochs."""
    import shutil
    shutil.copytree(ROOT / "papers", tmp_path / "papers", ignore=shutil.ignore_patterns("records"))
    for path in (tmp_path / "papers").glob("*/protocol.yaml"):
        protocol = yaml.safe_load(path.read_text())
        protocol["presets"]["smoke"]["run"] |= dict(epochs=2, batch_size=50, eval_every=1)
        path.write_text(yaml.safe_dump(protocol, sort_keys=False))
    return tmp_path


def cli(project, *argv, code=0):
    env = {k: v for k, v in os.environ.items() if not k.startswith("MIX_RESEARCH")}
    done = subprocess.run(["mix-research", *argv], cwd=project, capture_output=True, text=True, env=env)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def dates(project): return {p.name: json.loads(p.read_text())["date"] for p in (project / "reproduced/records").glob("*.json")}


def test_reproduce_show_status(project):
    which = ("randomix/table_1", "--seeds", "0,1", "--methods", "baseline,randomix")
    out = cli(project, "reproduce", *which).stdout
    assert "| RandoMix" in out and "Digits, small network: ours" in out and "97.22 (+2.04)" in out and "4 of 4 runs" in out
    first = dates(project)
    assert len(first) == 4
    notebook = nbformat.read(project / "reproduced/randomix/table_1.ipynb", 4)
    shown = [o.data.get("text/markdown", "") for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    assert any("Digits, small network: ours" in t for t in shown), "the executed notebook shows the same table"

    again = cli(project, "reproduce", *which)
    assert dates(project) == first and "run/s" not in again.stderr, "a second call trains nothing"
    assert "Digits, small network: ours" in cli(project, "show", *which, "--records", "reproduced/records").stdout
    status = cli(project, "status").stdout
    assert "4 records" in status and "randomix" in status
    assert "0 + 4 of 35" in cli(project, "list").stdout

    damaged = next((project / "reproduced/records").glob("*.json"))
    damaged.write_text(damaged.read_text().replace('"top1"', '"top2"', 1))
    assert damaged.name in cli(project, "status", code=1).stdout
    assert "3 of 4 runs" in cli(project, "show", *which, "--records", "reproduced/records").stdout, "a damaged record is not used"
    cli(project, "reproduce", *which)
    after = dates(project)
    assert [n for n in after if after[n] != first[n]] in ([], [damaged.name]) and "4 of 4 runs" in cli(project, "show", *which, "--records", "reproduced/records").stdout


def test_notebook_alone_trains_as_the_command_does(project):
    import papermill
    out = project / "table_1.ipynb"
    papermill.execute_notebook(project / "papers/randomix/table_1.ipynb", out, dict(methods=["cutmix"], seeds=[7], train=True), cwd=project / "papers/randomix",
                               progress_bar=False, kernel_name="python3")
    alone = Store(project / "reproduced/records")
    (path,) = (project / "reproduced/records").glob("*.json")
    run = Run.from_dict(json.loads(path.read_text())["run"])
    cli(project, "reproduce", "randomix/table_1", "--methods", "cutmix", "--seeds", "7", "--records", "other")
    assert Store(project / "other").get(run).outcome == alone.get(run).outcome


def test_figure_needs_no_training(project):
    out = cli(project, "reproduce", "randomix/figure_1").stdout
    assert "figure_1.ipynb" in out and not (project / "reproduced/records").exists()


def test_diverging_run_fails_visibly(project):
    path = project / "papers/randomix/protocol.yaml"
    protocol = yaml.safe_load(path.read_text())
    protocol["methods"]["mixup"]["lr"] = 1e20
    protocol["presets"]["smoke"]["run"].pop("lr")
    path.write_text(yaml.safe_dump(protocol, sort_keys=False))
    done = cli(project, "reproduce", "randomix/table_1", "--methods", "baseline,mixup", "--seeds", "0", code=1)
    assert "failed: mixup seed 0 (digits, small):" in done.stderr and "became" in done.stderr and "1 of 2 runs" in done.stdout
    assert {r["status"] for r in (json.loads(p.read_text()) for p in (project / "reproduced/records").glob("*.json"))} == {"ok", "failed"}


def test_outside_of_a_checkout_papers_are_found_beside_the_package(tmp_path):
    assert "randomix/table_1" in cli(tmp_path, "list").stdout


def test_bench(tmp_path):
    """The smallest sizes, from measuring to the rendered notebook; what was measured is kept."""
    cli(tmp_path, "bench", "--quick", "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "out"))
    kept = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out/speed").glob("*.json")}
    assert {"cpu_mixers_32", "cpu_training_small", "cpu_growth", "cpu_intra", "cpu_matrix_float32"} == set(kept)
    assert all(m["environment"]["threads"] == 1 and m["rows"] and m["date"] for m in kept.values())
    shown = "".join(o.data.get("text/markdown", "") for c in nbformat.read(tmp_path / "out/speed.ipynb", 4).cells for o in c.get("outputs", []) if "data" in o)
    assert "torchvision CutMix" in shown and "miamix" in shown and "bare loop" in shown and "nan" not in shown and "nothing measured on a GPU yet" in shown
    cli(tmp_path, "bench", "--quick", "--only", "matrix_float32", "--device", "cpu", "--out", str(tmp_path / "one"))
    assert [p.stem for p in (tmp_path / "one/speed").glob("*.json")] == ["cpu_matrix_float32"]
    done = cli(tmp_path, "bench", "--quick", "--only", "speed", "--device", "cpu", "--out", str(tmp_path / "none"), code=2)
    assert "only: unknown 'speed'; allowed: matrix_float32, training_small" in done.stderr and len(done.stderr.splitlines()) == 1
