"""The ways in: a wheel in a fresh environment and an empty folder, the README's examples there, imports, the starter of
a new method, the hooks of a day's work."""
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from configparser import ConfigParser
from email import message_from_string
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from packaging.requirements import Requirement

from conftest import ROOT

IGNORED = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints",
    "reproduced", "data", "weights", "shared", "_*docs", "_proc")
CONSTRAINTS = ROOT / "constraints.txt"
HIDDEN = ("MIX_RESEARCH", "PYTHONPATH", "VIRTUAL_ENV")  # this user's settings


def run(*argv, cwd, code=0, path=None, **env):
    """A command as a user types it, without this user's settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(HIDDEN)} | env
    if path: env["PATH"] = f"{path}{os.pathsep}{env['PATH']}"
    done = subprocess.run(list(map(str, argv)), cwd=cwd, capture_output=True, text=True, env=env)
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository, under git."""
    copy = tmp_path_factory.mktemp("checkout") / "mix_research"
    shutil.copytree(ROOT, copy, ignore=IGNORED)
    who = "config user.name Tests", "config user.email tests@mix-research.invalid"
    for line in ("init -q -b main", *who, "add -A", "commit -q -m all"): run("git", *line.split(), cwd=copy)
    return copy


@pytest.fixture(scope="module")
def index():
    """The package index, if it can be reached."""
    if not shutil.which("uv"): pytest.skip("needs uv, which `make` installs into .venv")
    ask = ["uv", "pip", "compile", "-q", "--no-cache", "-"]
    asked = subprocess.run(ask, input="wheel", capture_output=True, text=True)
    if not asked.returncode: return
    pytest.skip(f"the package index cannot be reached: {asked.stderr.strip().splitlines()[-1][:200]}")


@pytest.fixture(scope="module")
def wheel(checkout, index, tmp_path_factory):
    """Built of an sdist, so that both hold what they need."""
    out = tmp_path_factory.mktemp("dist")
    reviewed = "--require-hashes", "--build-constraints", CONSTRAINTS
    run("uv", "build", "-q", *reviewed, "--out-dir", out, ".", cwd=checkout)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """An environment with the wheel, timm, and nothing of this one; the folder of its commands."""
    env = tmp_path_factory.mktemp("fresh") / "env"
    run("uv", "venv", "-q", env, "--python", sys.executable, cwd=env.parent)
    install(env / "bin", wheel, "timm")
    yield env / "bin"
    shutil.rmtree(env)  # some gigabytes


def pins():
    """What constraints.txt installs, and the hashes of each: [(requirement, hashes)]."""
    lines = CONSTRAINTS.read_text().replace("\\\n", " ").splitlines()
    split = [re.split(r"\s+(?=--)", line.strip()) for line in lines if not line.startswith("#")]
    return [(Requirement(what), hashes) for what, *hashes in split]


def settings():
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini")
    return cfg["DEFAULT"]


def applies(requirement): return requirement.marker is None or requirement.marker.evaluate()


def locked(what):
    """A line that allows one file only: our wheel by its own hash, a name as it is pinned."""
    if isinstance(what, Path):
        return f"mix-research @ {what.as_uri()} --hash=sha256:{hashlib.sha256(what.read_bytes()).hexdigest()}"
    return next(" ".join([str(pin), *hashes]) for pin, hashes in pins() if pin.name == what and applies(pin))


def install(bin, *what):
    wanted = bin.parent / "wanted.txt"
    wanted.write_text("\n".join(map(locked, what)))
    how = "-q", "--python", bin / "python", "--require-hashes", "--no-build", "-c", CONSTRAINTS
    run("uv", "pip", "install", *how, "-r", wanted, cwd=bin)


def files(folder):
    paths = (p for p in Path(folder).rglob("*") if not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts))
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths if p.is_file()}


def examples():
    """Heading and code of the README's training loops."""
    part = (ROOT / "README.md").read_text().split("## In your own training loop\n")[1].split("\n## ")[0]
    return {title: code for title, code in re.findall(r"^### (.+?)\n.*?```python\n(.*?)```", part, re.M | re.S)}


LOOPS = {  # and what they need beside the wheel and timm
    "Plain PyTorch": [],
    "fastai": [],
    "timm": [],
    "Lightning": ["lightning"],
    "Hugging Face Trainer": ["transformers", "accelerate"],
}


def run_example(bin, title, needs, folder):
    """Exit code and output."""
    if needs: install(bin, *needs)
    (folder / "example.py").write_text(examples()[title])
    done = run(bin / "python", "example.py", cwd=folder, code=None)
    return done.returncode, done.stdout + (done.stderr[-3000:] if done.returncode else "")


@pytest.fixture(scope="module")
def examples_running(fresh, tmp_path_factory):
    """Every example in a folder of its own, one after another beside the other tests: title -> future of (exit code,
    output). What some need is installed after the others have run without it."""
    folder = tmp_path_factory.mktemp
    with ThreadPoolExecutor(1) as pool:
        def run_later(title): return pool.submit(run_example, fresh, title, LOOPS[title], folder("example"))
        yield {title: run_later(title) for title in LOOPS}


def test_every_pin_is_one_version_with_its_hashes():
    """And nothing else stands there: no index, no address, no option."""
    for pin, hashes in pins():
        (version,) = pin.specifier
        assert version.operator == "==" and "*" not in version.version and not pin.url, pin
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", h) for h in hashes), pin
    assert {"uv", "setuptools"} <= {pin.name for pin, _ in pins()}  # what installs and what builds


@pytest.mark.parametrize("key", [key for key in settings() if key.endswith("requirements")])
def test_what_the_settings_ask_for_is_pinned(key):
    pinned = {pin.name: next(iter(pin.specifier)).version for pin, _ in pins() if applies(pin)}
    for wanted in map(Requirement, settings()[key].split()):
        assert wanted.specifier.contains(pinned[wanted.name]), f"{wanted} is not pinned: make pins"


def test_make_installs_only_what_is_pinned():
    """Each command that installs asks for hashes, or may fetch nothing; the checkout comes with every extra."""
    rules = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    *fetching, ours = re.findall(r"^\t.*\bpip install\b.*", rules, re.M)
    for line in fetching:
        assert {"--require-hashes", "-r"} <= set(line.split()) and "constraints.txt" in line
        assert re.search("--no-build |--only-binary :all: ", line)  # what is built may fetch as it likes
    assert "--no-index --no-build-isolation" in ours
    extras = {key.removesuffix("_requirements") for key in settings() if key.endswith("_requirements")}
    assert set(re.search(r"\[(.+)\]", ours)[1].split(",")) == extras
    (renewed,) = re.findall(r"^\t.*\bpip compile\b.*", rules, re.M)
    assert "--generate-hashes" in renewed and "--build-constraints constraints.txt" in renewed


@pytest.fixture(scope="module")
def with_uv(index, tmp_path_factory):
    """What make installs from, with toolz in the place of most requirements, and uv installed."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("Makefile", "setup.py", "pyproject.toml", "README.md"): shutil.copy(ROOT / name, folder)
    asked = re.sub(r"requirements = .*", "requirements = toolz setuptools uv", (ROOT / "settings.ini").read_text())
    (folder / "settings.ini").write_text(asked)
    lines = "\n".join(map(locked, ("setuptools", "toolz", "uv")))
    (folder / "constraints.txt").write_text(lines.replace(" --", " \\\n    --") + "\n")
    make(folder, ".venv/bin/uv", f"PYTHON={sys.executable}")
    return folder


@pytest.fixture
def small(with_uv, tmp_path): return shutil.copytree(with_uv, tmp_path / "small", symlinks=True)


def make(folder, *how, code=0): return run("make", "-s", *how, cwd=folder, code=code).stderr


def change(path, there, instead):
    text = path.read_text()
    path.write_text(re.sub(there, instead, text))
    assert path.read_text() != text


def other_hashes(found): return re.sub("sha256:....", "sha256:0000", found[0])


def test_make_installs_what_is_pinned(small):
    make(small, "-o", ".venv/bin/uv", ".venv/ready")
    asked = "pip", "list", "-q", "--format", "json", "--python", ".venv/bin/python"
    found = json.loads(run(".venv/bin/uv", *asked, cwd=small).stdout)
    assert {p["name"] for p in found} == {"pip", "setuptools", "toolz", "uv", "mix-research"}


CHANGES = {  # file, what stands there, what comes instead, what is said of it
    "another setuptools": ("constraints.txt", r"(?s)setuptools==.*?\ntoolz", other_hashes, "Hash mismatch"),
    "another toolz": ("constraints.txt", r"(?s)toolz==.*?\nuv", other_hashes, "Hash mismatch"),
    "no hash": ("constraints.txt", r"(?s)(\ntoolz==\S+).*?\nuv", r"\1\nuv", "must have a hash"),
    "no version": ("constraints.txt", r"toolz==\S+", "toolz", "pinned with `==`"),
    "not pinned": ("settings.ini", "requirements = toolz", "requirements = partd", "partd was not found"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_make_refuses_what_is_not_pinned(what, small):
    name, there, instead, said = CHANGES[what]
    change(small / name, there, instead)
    assert said in make(small, "-o", ".venv/bin/uv", ".venv/ready", code=2)
    assert not (small / ".venv/ready").exists()


def test_pins_follow_the_settings(small):
    """Also when they are asked for again; what was pinned stays."""
    pinned = small / "constraints.txt"
    make(small, "-o", ".venv/bin/uv", "pins")
    before = pinned.read_text()
    change(small / "settings.ini", "requirements = toolz", "requirements = partd toolz")
    make(small, "-o", ".venv/bin/uv", "pins")
    after = pinned.read_text()
    assert "partd==" in after and set(before.splitlines()) < set(after.splitlines())
    change(small / "settings.ini", "partd ", "")
    make(small, "-o", ".venv/bin/uv", "pins")
    assert pinned.read_text() == before


def test_make_refuses_another_uv(small):
    shutil.rmtree(small / ".venv")
    change(small / "constraints.txt", r"(?s)\nuv==.*", other_hashes)
    assert "DO NOT MATCH" in make(small, ".venv/ready", f"PYTHON={sys.executable}", code=2)
    assert not (small / ".venv/bin/uv").exists()


def test_wheel_holds_the_papers_and_every_extra(wheel, record_property):
    inside = "mix_research/papers/"
    with zipfile.ZipFile(wheel) as z:
        papers = {n.removeprefix(inside): z.read(n) for n in z.namelist() if n.startswith(inside)}
        meta = message_from_string(z.read(next(n for n in z.namelist() if n.endswith("METADATA"))).decode())
        template = z.read("mix_research/templates/new_method.ipynb")
    assert papers == files(ROOT / "papers")
    assert template == (ROOT / "mix_research/templates/new_method.ipynb").read_bytes()
    extras = {k.removesuffix("_requirements") for k in settings() if k.endswith("_requirements")}
    assert set(meta.get_all("Provides-Extra")) == extras and {"dev", "cluster", "speed"} <= extras
    optional = {re.match(r"[\w-]+", r)[0] for r in meta.get_all("Requires-Dist") if "extra ==" in r}
    assert {"timm", "dask-jobqueue"} <= optional
    whole, unpacked = wheel.stat().st_size / 1e6, sum(map(len, papers.values())) / 1e6
    record_property("wheel", f"{whole:.1f} MB, of which {unpacked:.1f} MB of papers before compression")


def test_commands_in_an_empty_folder(checkout, fresh, examples_running, tmp_path, record_property):
    """The installed package is only read; what is made lies in ./reproduced, below which the same folder is found."""
    def python(code, cwd=tmp_path): return run(fresh / "python", "-c", code, cwd=cwd).stdout
    package = Path(python("import mix_research; print(mix_research.__file__)").strip()).parent
    assert "site-packages" in package.parts
    before = files(package)
    record_property("installed", f"{sum(map(len, before.values())) / 1e6:.1f} MB in {len(before)} files")
    both = python("from mix_research.cli import main; main(['list']); main(['show', 'randomix/table_1'])")
    assert "35 + 0 of 35" in both and "97.22 (+2.04)" in both and "35 of 35 runs" in both
    assert not list(tmp_path.iterdir())
    which = "randomix/table_1", "--seeds", "0", "--methods", "cutmix"
    out = run("mix-research", "reproduce", *which, cwd=tmp_path, path=fresh).stdout
    (record,) = (tmp_path / "reproduced/records").glob("*.json")
    record = json.loads(record.read_text())
    assert record["status"] == "ok" and "1 of 1 runs" in out and record["environment"]["commit"] == head(checkout)
    cells = nbformat.read(tmp_path / "reproduced/randomix/table_1.ipynb", 4).cells
    shown = [o.get("data", {}).get("text/markdown", "") for c in cells for o in c.get("outputs", [])]
    assert any("Digits, small network: ours" in text for text in shown)
    where = "from mix_research.study import default_records; print(default_records())"
    below = python(where, tmp_path / "reproduced/randomix")
    assert Path(below.strip()) == tmp_path / "reproduced/records"
    assert files(package) == before and {p.name for p in tmp_path.iterdir()} == {"reproduced"}


def head(checkout): return run("git", "rev-parse", "HEAD", cwd=checkout).stdout.strip()


def test_an_archive_knows_its_commit_and_runs_without_being_installed(checkout, tmp_path):
    """As GitHub packs it; also below another repository, as a carried copy may lie."""
    run("git", "init", "-q", ".", cwd=tmp_path)
    copy = tmp_path / "copy"
    run("git", "archive", "-o", tmp_path / "copy.tar", "HEAD", cwd=checkout)
    shutil.unpack_archive(tmp_path / "copy.tar", copy)
    code = "import torch, mix_research.train as t; print(t.__file__, t.environment(torch.device('cpu'))['commit'])"
    known = run(sys.executable, "-c", code, cwd=copy).stdout.split()
    assert known == [str(copy / "mix_research/train.py"), head(checkout)]
    assert "randomix/table_1" in run(sys.executable, "-m", "mix_research.cli", "list", cwd=copy).stdout


LIGHT = ("mix", "masks", "mixers", "randomix", "miamix", "lmix", "intraclass", "augment", "adapters", "record")
HEAVY = {"fastai", "torchvision", "pandas", "matplotlib", "sklearn", "scipy", "papermill"}
EVERY = [p.stem for p in (ROOT / "mix_research").glob("[!_]*.py")]
IMPORTS = f"""
import json, socket, sys, time
asked = []
def refuse(*a, **k):
    asked.append(repr(a))
    raise OSError(f"network at import: {{a}}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse

t = [time.perf_counter()]
import torch
t.append(time.perf_counter())
import mix_research.mixers
t.append(time.perf_counter())
for name in {LIGHT}: __import__(f"mix_research.{{name}}")
t.append(time.perf_counter())
light = list(sys.modules)
import mix_research.train
t.append(time.perf_counter())
for name in {EVERY}: __import__(f"mix_research.{{name}}")
print(json.dumps([asked, light, [f"{{b - a:.2f}}" for a, b in zip(t, t[1:])]]))
"""


def test_mixers_come_without_fastai_and_nothing_asks_the_network(tmp_path, record_property):
    asked, modules, (torch, mixers, light, train) = json.loads(run(sys.executable, "-c", IMPORTS, cwd=tmp_path).stdout)
    assert "mix_research.mixers" in modules and not HEAVY & set(modules)
    assert asked == []
    seconds = f"torch {torch}, then mixers {mixers}, all mixers and records {light}, fastai and training {train}"
    record_property("import, seconds", seconds)


@pytest.mark.parametrize("path", sorted((ROOT / "mix_research").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_everything_imported_is_used(path):
    tree = ast.parse(path.read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
    imports = [n for n in imports if getattr(n, "module", "") != "__future__"]
    imported = {(a.asname or a.name).split(".")[0] for n in imports for a in n.names} - {"*"}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    for n in ast.walk(tree):  # annotations may be strings
        if isinstance(n, ast.Constant) and isinstance(n.value, str): used |= {n.value} & imported  # and `_all_`
    rooms = {"record": {"lmix", "miamix", "randomix"}, "randomix": {"classic"}}  # whose import enters their mixers
    rooms |= {"mix": {"check_labels"}}  # its old place
    assert imported - used - rooms.get(path.stem, set()) == set()


def enter_wavemix(path):
    """Adds a method to what the room of all methods imports and passes on."""
    door = nbformat.read(path, 4)
    cell = next(c for c in door.cells if "import LMix\n" in c.source)
    cell.source = cell.source.replace("import LMix\n", "import LMix\nfrom mix_research.wavemix import WaveMix\n")
    cell.source = cell.source.replace('"LMix"]', '"LMix", "WaveMix"]')
    nbformat.write(door, path)


def test_a_method_in_one_notebook(checkout, tmp_path):
    """CONTRIBUTING's worked example: the starter runs as it is written, a training by its name included, and is
    exported to a module that a run finds its method in."""
    nbs = checkout / "nbs/mixing"
    out = run("mix-research", "new-method", "WaveMix", "--out", "nbs/mixing", cwd=checkout).stdout
    assert "nbs/mixing/wavemix.ipynb" in out
    nb = nbformat.read(nbs / "wavemix.ipynb", 4)
    nbformat.validate(nb)
    wanted = (checkout / "mix_research/templates/new_method.ipynb").read_text()
    for old, new in (("NewMethod", "WaveMix"), ("new_method", "wavemix")): wanted = wanted.replace(old, new)
    assert (nbs / "wavemix.ipynb").read_text() == wanted
    assert not list(checkout.glob("*.ipynb"))
    NotebookClient(nb, resources={"metadata": {"path": str(tmp_path)}}, kernel_name="python3").execute()
    outputs = [o for c in nb.cells for o in c.get("outputs", [])]
    top1 = next(re.search(r"epochs: (\S+)", o.text)[1] for o in outputs if "top-1" in o.get("text", ""))
    assert float(top1) > .5 and any("image/jpeg" in o.get("data", {}) for o in outputs)
    assert any("`wrap=False`" in c.source for c in nb.cells)

    enter_wavemix(nbs / "12_mixers.ipynb")
    run("nbdev_export", cwd=checkout)
    code = """
import sys, mix_research
assert mix_research.__file__.startswith(sys.argv[1]), mix_research.__file__
from mix_research import wavemix, mixers
from mix_research.run import Run
assert mixers.MIXERS["wavemix"] is mixers.WaveMix is wavemix.WaveMix
assert Run(method="wavemix", method_args={"wrap": False}).mixer().wrap is False"""
    run(sys.executable, "-c", code, checkout, cwd=checkout)
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "tests/test_imports.py", cwd=checkout)
    (nbs / "wavemix.ipynb").unlink()
    run("git", "checkout", "-q", ".", cwd=checkout)
    run("git", "clean", "-fdq", cwd=checkout)


def test_hooks_of_a_commit(checkout):
    """pre-commit passes what is committed, and mends a notebook that is not clean."""
    if not shutil.which("pre-commit"): pytest.skip("pre-commit is not installed (extra dev)")
    assert run("pre-commit", "run", "--all-files", cwd=checkout).stdout.count("Passed") == 3
    path = checkout / "nbs/mixing/14_adapters.ipynb"
    before, nb = path.read_text(), nbformat.read(path, 4)
    next(c for c in nb.cells if c.cell_type == "code").metadata["collapsed"] = True
    nbformat.write(nb, path)
    assert "files were modified by this hook" in run("pre-commit", "run", "--files", path, cwd=checkout, code=1).stdout
    assert path.read_text() == before


@pytest.mark.parametrize("what, conflict", [("outputs", False), ("source", True)])
def test_merge_driver(what, conflict, checkout):
    """Two people change one cell: of outputs ours stay, of source both versions stand in a notebook that opens."""
    path = checkout / "nbs/mixing/14_adapters.ipynb"
    def git(*argv, **kw): return run("git", *argv, cwd=checkout, **kw)
    git("config", "--local", "include.path", "../.gitconfig")
    def edit(text):
        nb = nbformat.read(path, 4)
        cell = next(c for c in nb.cells if c.cell_type == "code")
        if conflict: cell.source += f"\n# {text}"
        else: cell.outputs = [nbformat.v4.new_output("stream", text=text)]
        nbformat.write(nb, path)
        git("commit", "-qam", text)
    for whose in ("theirs", "ours"):
        git("checkout", "-q", "-b", f"{whose}-{what}", "main")
        edit(whose)
    merged = git("merge", "-q", f"theirs-{what}", code=None)
    cells = json.loads(path.read_text())["cells"]
    assert (merged.returncode != 0) == conflict, merged.stdout + merged.stderr
    text = json.dumps(cells)
    if conflict:
        assert "# ours" in text and "# theirs" in text and any("".join(c["source"]) == "`=======`" for c in cells)
        git("merge", "--abort")
    else:
        printed = ["".join(o.get("text", "")) for c in cells for o in c.get("outputs", [])]
        assert [t for t in printed if t in ("ours", "theirs")] == ["ours"]
    git("checkout", "-q", "main")


def test_citation():
    cff, cfg = yaml.safe_load((ROOT / "CITATION.cff").read_text()), settings()
    assert cff["version"] == cfg["version"] and cff["license"] == "Apache-2.0"
    assert cff["authors"] == [{"name": cfg["author"]}]
    assert [r["title"].split(":")[0].lower() for r in cff["references"]] == ["randomix", "lmix", "miamix", "synermix"]
    for r in cff["references"]:
        assert r["authors"] and ("doi" in r or r["identifiers"][0]["value"].startswith("arXiv:"))


@pytest.mark.parametrize("title", LOOPS)
def test_example_of_the_readme(title, examples_running):
    """As it stands there. Ten classes: chance is .1."""
    code, out = examples_running[title].result()
    assert code == 0 and float(re.findall(r"accuracy.*?([01]\.\d+)\s*$", out.strip())[-1]) > .5, out


def test_every_example_is_run():
    assert set(examples()) == {*LOOPS, "One run, with its record"}  # which its notebook runs
