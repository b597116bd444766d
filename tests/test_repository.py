"""What is committed fits together: library and notebooks, README and index, notebooks and their rules."""
import re
import shutil
import subprocess
from collections import defaultdict

import nbformat
import pytest

from conftest import ROOT

NOTEBOOKS = sorted([*ROOT.glob("nbs/**/*.ipynb"), *ROOT.glob("papers/**/*.ipynb")])


def copy_of_repository(tmp_path):
    for name in ("nbs", "mix_research", "settings.ini", "setup.py", "pyproject.toml", "README.md", "Makefile"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def test_library_is_what_the_notebooks_export(tmp_path):
    copy = copy_of_repository(tmp_path)
    subprocess.run(["nbdev_export"], cwd=copy, check=True)
    exported = {p.name: p.read_text() for p in (copy / "mix_research").glob("*.py")}
    assert exported == {p.name: p.read_text() for p in (ROOT / "mix_research").glob("*.py")}


def test_readme_is_the_index_notebook(tmp_path):
    subprocess.run(["make", "-s", "-o", ".venv/ready", "readme", f"README_DIR={tmp_path}"], cwd=ROOT, check=True)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text(), "run: make readme"
    for image in re.findall(r"\]\((nbs/images/[^)]+)\)", (ROOT / "README.md").read_text()):
        assert (tmp_path / image).read_bytes() == (ROOT / image).read_bytes()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT)))
def test_notebook_is_clean(path):
    nb = nbformat.read(path, 4)
    assert nb.metadata.kernelspec == {"display_name": "python3", "language": "python", "name": "python3"}
    assert path.stat().st_size < 1_000_000
    for cell in nb.cells:
        assert not [o for o in cell.get("outputs", []) if o.output_type == "error"]
    if "papers" in path.parts:
        parameters = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]
        assert len(parameters) == 1
        for line in parameters[0].source.splitlines():
            assert re.match(r"\w+: \w+ = .+  # .+", line), f"typed and explained: {line}"


def test_no_cell_is_copied_into_more_than_eight_notebooks():
    found = defaultdict(set)
    for path in ROOT.glob("papers/**/*.ipynb"):
        for cell in nbformat.read(path, 4).cells:
            if cell.cell_type == "code": found[cell.source].add(path)
    copied = {source: len(notebooks) for source, notebooks in found.items() if len(notebooks) > 8}
    assert not copied, copied


def test_links_of_the_readme_resolve():
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()): assert (ROOT / link).exists(), link
