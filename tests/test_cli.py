"""The commands, as a user types them, on real digits at the smallest size."""
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch
import yaml

from conftest import ROOT
from mix_research.run import Run
from mix_research.store import Store


@pytest.fixture
def project(tmp_path):
    """A copy of papers/ whose smoke preset trains for two epochs."""
    shutil.copytree(ROOT / "papers", tmp_path / "papers", ignore=shutil.ignore_patterns("records"))
    for path in (tmp_path / "papers").glob("*/protocol.yaml"):
        protocol = yaml.safe_load(path.read_text())
        protocol["presets"]["smoke"]["run"] |= dict(epochs=2, batch_size=50, eval_every=1)
        path.write_text(yaml.safe_dump(protocol, sort_keys=False))
    return tmp_path


def environ():
    """This one, without settings of the package."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MIX_RESEARCH")}


def cli(project, *argv, code=0):
    done = subprocess.run(["mix-research", *argv], cwd=project, capture_output=True, text=True, env=environ())
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def records(folder):
    return {p.name: json.loads(p.read_text()) for p in folder.glob("*.json")}


def dates(project):
    return {name: record["date"] for name, record in records(project / "reproduced/records").items()}


def shown(notebook):
    """What an executed notebook displays."""
    cells = nbformat.read(notebook, 4).cells
    return [o.data.get("text/markdown", "") for c in cells for o in c.get("outputs", []) if "data" in o]


def test_reproduce_show_status(project):
    which = ("randomix/table_1", "--seeds", "0,1", "--methods", "baseline,randomix")
    show = ("show", *which, "--records", "reproduced/records")
    out = cli(project, "reproduce", *which).stdout
    for text in ("| RandoMix", "Digits, small network: ours", "97.22 (+2.04)", "4 of 4 runs"): assert text in out
    first = dates(project)
    assert len(first) == 4
    found = shown(project / "reproduced/randomix/table_1.ipynb")
    assert any("Digits, small network: ours" in t for t in found), "the executed notebook shows the same table"

    again = cli(project, "reproduce", *which)
    assert dates(project) == first and "run/s" not in again.stderr, "a second call trains nothing"
    assert "Digits, small network: ours" in cli(project, *show).stdout
    status = cli(project, "status").stdout
    assert "4 records" in status and "randomix" in status
    assert "0 + 4 of 35" in cli(project, "list").stdout

    damaged = next((project / "reproduced/records").glob("*.json"))
    damaged.write_text(damaged.read_text().replace('"top1"', '"top2"', 1))
    assert damaged.name in cli(project, "status", code=1).stdout
    assert "3 of 4 runs" in cli(project, *show).stdout, "a damaged record is not used"
    cli(project, "reproduce", *which)
    after = dates(project)
    assert [n for n in after if after[n] != first[n]] in ([], [damaged.name])
    assert "4 of 4 runs" in cli(project, *show).stdout


def test_notebook_alone_trains_as_the_command_does(project):
    paper, own = project / "papers/randomix", project / "reproduced/records"
    asked = ["-p", "methods", "cutmix,mixup", "-p", "seeds", "7", "-p", "train", "True", "--no-progress-bar"]
    command = ["papermill", "table_1.ipynb", str(project / "table_1.ipynb"), "-k", "python3", *asked]
    done = subprocess.run(command, cwd=paper, capture_output=True, text=True, env=environ())
    assert done.returncode == 0, done.stderr
    runs = [Run.from_dict(record["run"]) for record in records(own).values()]
    assert sorted((run.method, run.seed) for run in runs) == [("cutmix", 7), ("mixup", 7)]
    cli(project, "reproduce", "randomix/table_1", "--methods", "cutmix,mixup", "--seeds", "7", "--records", "other")
    for run in runs: assert Store(project / "other").get(run).outcome == Store(own).get(run).outcome


def test_figure_needs_no_training(project):
    out = cli(project, "reproduce", "randomix/figure_1").stdout
    assert "figure_1.ipynb" in out and not (project / "reproduced/records").exists()


def test_diverging_run_fails_visibly(project):
    path = project / "papers/randomix/protocol.yaml"
    protocol = yaml.safe_load(path.read_text())
    protocol["methods"]["mixup"]["lr"] = 1e20
    protocol["presets"]["smoke"]["run"].pop("lr")
    path.write_text(yaml.safe_dump(protocol, sort_keys=False))
    which = ("randomix/table_1", "--methods", "baseline,mixup", "--seeds", "0")
    done = cli(project, "reproduce", *which, code=1)
    assert "failed: mixup seed 0 (digits, small):" in done.stderr and "became" in done.stderr
    assert "1 of 2 runs" in done.stdout
    assert {r["status"] for r in records(project / "reproduced/records").values()} == {"ok", "failed"}


def test_outside_of_a_checkout_papers_are_found_beside_the_package(tmp_path):
    assert "randomix/table_1" in cli(tmp_path, "list").stdout


def test_bench(tmp_path):
    """The smallest sizes, from measuring to the rendered notebook; what was measured is kept."""
    bench = ("bench", "--quick", "--device", "cpu", "--out")
    cli(tmp_path, *bench, "out", "--threads", "1")
    kept = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out/speed").glob("*.json")}
    names = {"mixers_32", "training_small", "growth", "intra", "loss", "reading", "matrix_float32"}
    assert set(kept) == {f"cpu_{name}" for name in names}
    assert all(m["environment"]["threads"] == 1 and m["rows"] and m["date"] for m in kept.values())
    text = "".join(shown(tmp_path / "out/speed.ipynb"))
    for said in ("torchvision CutMix", "miamix", "bare loop", "`target.loss` of cross", "nothing measured on a GPU yet"):
        assert said in text
    assert "nan" not in text
    cli(tmp_path, *bench, "one", "--only", "matrix_float32")
    assert [p.stem for p in (tmp_path / "one/speed").glob("*.json")] == ["cpu_matrix_float32"]
    done = cli(tmp_path, *bench, "none", "--only", "speed", code=2)
    assert "only: unknown 'speed'; nearest: " in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- what is answered without training

QUESTION = """
import sys, time
before = time.process_time()
from mix_research.cli import main
try: code = main(sys.argv[1:])
except SystemExit as e: code = e.code
heavy = sorted({"torch", "pandas", "fastai", "papermill", "nbformat"} & set(sys.modules))
print("\\n", [code, round(time.process_time() - before, 2), heavy], file=sys.stderr)
"""


def asked(cwd, *argv):
    """Exit code, CPU seconds, heavy modules that were imported, output, error stream."""
    done = subprocess.run([sys.executable, "-c", QUESTION, *argv], cwd=cwd, capture_output=True, text=True, env=environ())
    err, last = done.stderr.rsplit("\n ", 1)
    return *json.loads(last.replace("'", '"')), done.stdout, err.strip()


LIGHT = {
    "--help": "",
    "--version": "",
    "reproduce --help": "",
    "reproduce": "artefact: expected either one, e.g. randomix/table_1, or --all",
    "show --all --methods mixup": "--methods: rows differ from table to table; allowed with one artefact",
    "reproduce randomix/table_1 --jobs 0": "--jobs: expected an integer > 0, got 0",
    "reproduce randomix/table_1 --device tpu": "device: unknown 'tpu'; allowed: cpu, cuda",
    "reproduce --all --device tpu": "device: unknown 'tpu'; allowed: cpu, cuda",
    "reproduce randomix/table_1 --log wandb": "log: unknown 'wandb'; allowed: tensorboard",
    "show randomix/table_1 --seeds 0,-1": "argument --seeds: expected integers >= 0, separated by commas, got '0,-1'",
    "show randomix/table_1 --records /dev/null": "records: expected a folder, got /dev/null, a file",
    "reproduce randomix/table_1 --records /dev/null": "records: expected a folder, got /dev/null, a file",
    "bench --device tpu": "device: unknown 'tpu'; allowed: cpu, cuda",
    "bench --only lose": "only: unknown 'lose'; nearest: loss, ",
    "bench --threads -1": "--threads: expected an integer >= 0, got -1",
    "show --all --preset papre": "preset: unknown 'papre'; allowed: smoke, short, paper, fast",
    "show randomix/table_1 --preset papre": "preset: unknown 'papre'; allowed: smoke, short, paper, fast",
    "show randomix/table_1 --datasets cifar01": "datasets: unknown 'cifar01'; allowed: cifar10, cifar100",
    "new-method band-mix": "name: expected an identifier of letters, digits and _, such as BandMix or band_mix, "
                           "got 'band-mix'",
}


@pytest.mark.parametrize("argv", LIGHT)
def test_questions_and_refusals_import_nothing_heavy(argv, tmp_path, record_property):
    code, seconds, heavy, out, err = asked(tmp_path, *argv.split())
    assert heavy == [], heavy
    assert code == (2 if LIGHT[argv] else 0)
    lines = [line for line in err.splitlines() if not line.startswith(("usage: ", " "))]
    assert len(lines) == bool(LIGHT[argv]) and LIGHT[argv] in err, err
    assert not list(tmp_path.iterdir())
    record_property("CPU seconds", seconds)


@pytest.mark.parametrize("argv", ["list", "status", "show randomix/table_1", "reproduce randomix/table_1 --dry-run"])
def test_who_only_reads_waits_for_no_torch(argv, project, record_property):
    shutil.copytree(ROOT / "papers/randomix/records", project / "papers/randomix/records")
    code, seconds, heavy, out, err = asked(project, *argv.split())
    assert (code, err) == (0, "") and set(heavy) <= {"pandas"} and out
    record_property("CPU seconds", seconds)


@pytest.mark.parametrize("argv", ["reproduce randomix/table_1 --jobs 2", "reproduce --all", "bench --quick"])
def test_a_gpu_that_is_not_there(argv, project):
    absent = f"cuda:{torch.cuda.device_count()}"
    err = cli(project, *argv.split(), "--device", absent, code=2).stderr
    assert err.startswith(f"mix-research: device: {absent} is not there; allowed: cpu") and err.count("\n") == 1
    assert not (project / "reproduced").exists()


NEAREST = {
    "randomix/tabel_1": ("artefact", "randomix/table_1"),
    "randomix/table_1 --methods randomx": ("methods", "randomix"),
    "beyond/one_protocol --datasets cifar1000": ("datasets", "cifar100"),
    "randomix/table_1 --preset smoek": ("preset", "smoke"),
}


@pytest.mark.parametrize("argv", NEAREST)
def test_an_unknown_name_is_answered_with_the_nearest(argv, tmp_path):
    """One line of at most 120 columns: all names where they fit on it, otherwise three."""
    name, meant = NEAREST[argv]
    code, _, heavy, out, err = asked(tmp_path, "show", *argv.split())
    assert (code, heavy, out) == (2, [], "") and len(err.removeprefix("mix-research: ")) <= 120 and "\n" not in err
    kind, names = re.search(rf"mix-research: {name}: unknown '\S+'; (nearest|allowed): (.*)", err).groups()
    assert meant in names.split(", ") and (kind == "allowed" or len(names.split(", ")) == 3)


IN_A_RUN = [
    (dict(model="preact_resnet81"), "preact_resnet18"),
    (dict(dataset="cifar_100"), "cifar100"),
    (dict(method="randomx"), "randomix"),
]


@pytest.mark.parametrize("given, meant", IN_A_RUN)
def test_so_is_one_in_a_run(given, meant):
    with pytest.raises(ValueError, match=f"{next(iter(given))}: unknown .*; nearest: ") as e: Run(**given)
    assert meant in str(e.value) and len(str(e.value)) <= 120 and str(e.value).count(", ") == 2


def test_version(tmp_path):
    settings = dict(re.findall(r"^(\w+) = (.*)$", (ROOT / "settings.ini").read_text(), re.M))
    assert cli(tmp_path, "--version").stdout == f"mix-research {settings['version']}\n"


# --- in a terminal

def terminal(cwd, width, *argv):
    """What a command prints in a terminal of so many columns."""
    import fcntl
    import pty
    import struct
    import termios
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    env = {k: v for k, v in environ().items() if k not in ("COLUMNS", "LINES")}
    child = subprocess.Popen(["mix-research", *argv], cwd=cwd, stdout=theirs, stderr=subprocess.PIPE, env=env)
    os.close(theirs)
    parts = []
    while True:
        try: part = os.read(ours, 65536)
        except OSError: break  # Linux says so when the other end is closed
        if not part: break
        parts.append(part)
    os.close(ours)
    assert child.wait() == 0, child.stderr.read()
    return b"".join(parts).decode().replace("\r\n", "\n")


def test_a_table_fits_the_terminal(tmp_path):
    which = ("show", "randomix/table_1", "--seeds", "0,1")
    piped = cli(tmp_path, *which).stdout
    wide = max(map(len, piped.splitlines()))
    assert terminal(tmp_path, wide, *which) == terminal(tmp_path, 60, *which, "--markdown") == piped
    narrow = terminal(tmp_path, 60, *which)
    caption = piped.strip().splitlines()[-1]
    table = narrow.removesuffix(f"{caption}\n")
    assert max(map(len, table.splitlines())) <= 60 < wide
    cells = {cell.strip() for line in piped.splitlines() if line.startswith("|") for cell in line.split("|")}
    values = {cell for cell in cells if re.match(r"[\d.]+ ", cell)}
    assert values and not [value for value in values if value not in table]
