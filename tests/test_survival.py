"""Kills, full disks, damaged files, several commands at once, a cluster: no number is lost, mixed up or invented."""
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import ROOT
from mix_research import mixers, models, study
from mix_research.checkpoint import Checkpoint, pack
from mix_research.record import BadRecord, Record, sealed
from mix_research.jobs import Task, finish, train_tasks
from mix_research.protocol import read_protocol
from mix_research.run import Run
from mix_research.store import ENDS, Store, read_log, run_files

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
PRELOADED = ["mix_research.train", "mix_research.evaluate", "mix_research.study", "sklearn.datasets"]


@pytest.fixture
def project(tmp_path):
    """A copy of papers/ whose smoke preset trains for a few epochs."""
    shutil.copytree(ROOT / "papers", tmp_path / "papers", ignore=shutil.ignore_patterns("records"))
    train_with(tmp_path, epochs=8, batch_size=50, eval_every=1)
    return tmp_path


def train_with(project, **fields):
    """Fields of the runs that RandoMix's smoke preset trains."""
    path = project / "papers/randomix/protocol.yaml"
    protocol = yaml.safe_load(path.read_text())
    protocol["presets"]["smoke"]["run"].update(fields)
    path.write_text(yaml.safe_dump(protocol, sort_keys=False))


def start(project, *argv, launcher=()):
    command = [*launcher, shutil.which("mix-research"), *argv]
    env = {k: v for k, v in ONE_THREAD.items() if not k.startswith("MIX_RESEARCH")}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=project, stdout=pipe, stderr=pipe, text=True, env=env)


def call(argv, **how):
    return subprocess.run(list(map(str, argv)), capture_output=True, text=True, env=ONE_THREAD, **how)


def ended(process, code=0):
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, out + err
    assert "Traceback" not in out + err, out + err
    return out + err


def records(folder): return {p.stem: Record.from_json(p.read_text()) for p in Path(folder).glob("*.json")}


def events(folder, *names):
    """Key -> the events of its log, of these names or all."""
    logs = {p.stem: read_log(p) for p in Path(folder).glob("*.jsonl")}
    return {key: [e for e in log if not names or e["event"] in names] for key, log in logs.items()}


def until(condition, seconds=400):
    """What a condition says as soon as it says something; a busy machine may take its time."""
    end = time.monotonic() + seconds
    found = condition()
    while not found:
        assert time.monotonic() < end, "nothing happened"
        time.sleep(.01)
        found = condition()
    return found


# --- kills

FORKS = multiprocessing.get_context("forkserver")


def begin(run, store):
    """A process that trains a run."""
    process = FORKS.Process(target=train_tasks, args=([Task(run, store)],), kwargs=dict(progress=False))
    process.start()
    return process


def half_written(folder, run, suffix):
    """The files of a run that have not yet taken their place."""
    names = os.listdir(folder) if folder.exists() else ()
    return {name for name in names if name.startswith(f".{run.key}{suffix}.")}


def wait_for_the_moment(process, run, folder, suffix, seconds, nth):
    """Until some time has passed or, with a suffix, the nth file of its kind is being written."""
    deadline, seen = time.monotonic() + seconds, set()
    while process.is_alive():
        if suffix:
            seen |= half_written(folder, run, suffix)
            if len(seen) >= nth: return
        elif time.monotonic() > deadline: return


def killed(process, run, store, draw):
    """Kills a process at a drawn moment; was it still there?"""
    suffix = draw.choice([ENDS["checkpoint"], ".pt", ENDS["record"], "", "", "", ""])
    seconds, nth = draw.uniform(.2, 2), draw.randrange(1, 8)
    path = store.weights_path(run) if suffix == ".pt" else store.record_path(run)
    wait_for_the_moment(process, run, path.parent, suffix, seconds, nth if suffix == ENDS["checkpoint"] else 1)
    if not process.is_alive(): return False
    os.kill(process.pid, signal.SIGKILL)
    return True


def check_undisturbed(runs, store):
    """Other processes, which nobody kills, come to the same numbers."""
    for run in runs:
        with tempfile.TemporaryDirectory() as other:
            begin(run, Store(other)).join()
            assert Store(other).get(run).outcome == store.get(run).outcome, run


def test_fifty_kills(tmp_path):
    """SIGKILL at seeded random moments, a third of them while a checkpoint, weights or a record are being written: the
    numbers are those of the undisturbed runs."""
    FORKS.set_forkserver_preload(PRELOADED)
    draw, store = random.Random(7), Store(tmp_path)
    methods = ("randomix", "synermix", "lmix", "manifold_mixup")
    runs = [Run(method=m, epochs=12, batch_size=40, seed=s, pad=1, flip=True) for s in range(20) for m in methods]
    kills, inside, done = 0, 0, []
    for run in runs:
        if kills >= 50: break
        while store.get(run) is None:
            process = begin(run, store)
            if kills < 50: kills += killed(process, run, store, draw)
            process.join()
            inside += bool(list(tmp_path.rglob(f".{run.key}.*")))
        assert store.get(run).status == "ok"
        assert not list(tmp_path.glob("*.aside-*"))
        done.append(run)
    assert kills == 50 and inside >= 5, (kills, inside)
    check_undisturbed(done, store)
    resumed = sum(store.get(run).timing.get("resumed", 0) for run in done)
    assert resumed >= 10, "most kills came after a checkpoint"
    print(f"\n50 kills, {inside} of them left a half-written file; {len(done)} runs, {resumed} resumptions")


def started(folder):
    """Key -> the processes that began its run, in order."""
    return {key: [e["pid"] for e in log] for key, log in events(folder, "started").items()}


def test_four_commands_share_a_grid_and_two_are_killed(project):
    methods = "baseline,mixup,cutmix,fmix,resizemix,randomix"
    which = ("reproduce", "randomix/table_1", "--methods", methods, "--seeds", "0,1,2,3", "--jobs", "1")
    train_with(project, epochs=20)
    folder = project / "reproduced/records"
    four = [start(project, *which) for _ in range(4)]
    def all_work(): return len({pid for pids in started(folder).values() for pid in pids}) == 4
    until(lambda: len(list(folder.glob("*.json"))) >= 6 and all_work())
    for p in four[:2]:
        p.kill()
        p.communicate()
    for p in four[2:]: assert "24 of 24 runs" in ended(p)
    found = records(folder)
    assert len(found) == 24 and all(r.status == "ok" for r in found.values())
    for key, log in events(folder, "finished").items(): assert len(log) == 1, (key, log)
    dead = {p.pid for p in four[:2]}
    for pids in started(folder).values(): assert dead.issuperset(pids[:-1]), pids  # again only after its owner died
    assert not run_files(folder, "checkpoint") and not run_files(folder, "claim")


def stop(project, which, how, code):
    """What a command says that is stopped when two of its runs have a checkpoint more."""
    import psutil
    folder = project / "reproduced/records"
    def saved(): return {key: len(log) for key, log in events(folder, "checkpoint").items()}
    command, before = start(project, *which), saved()
    until(lambda: sum(n > before.get(key, 0) for key, n in saved().items()) >= 2)
    children, begun = psutil.Process(command.pid).children(recursive=True), time.monotonic()
    command.send_signal(how)
    out, err = command.communicate(timeout=60)
    took = time.monotonic() - begun
    assert command.returncode == code, err
    assert not psutil.wait_procs(children, timeout=30)[1], "processes were left"
    print(f"\n{how.name}: ended after {took:.1f} s")
    return err


def test_killed_or_interrupted_command_leaves_no_process_behind_and_goes_on(project):
    which = ("reproduce", "randomix/table_1", "--methods", "baseline,randomix", "--seeds", "0,1", "--jobs", "2")
    train_with(project, epochs=60)
    assert "goes on from there" in stop(project, which, signal.SIGINT, 130)
    stop(project, which, signal.SIGKILL, -9)
    status = ended(start(project, "status"))
    assert "interrupted: baseline seed" in status and "of 60" in status
    assert "4 of 4 runs" in ended(start(project, *which))
    folder = project / "reproduced/records"
    for log in events(folder).values():  # nothing that was saved is lost
        last = 0
        for e in log:
            if e["event"] == "resumed": assert e["epoch"] >= last, log
            if e["event"] == "checkpoint": last = e["epoch"]
    assert sum(r.timing.get("resumed", 0) for r in records(folder).values()) >= 2


# --- damage

def damaged(content):
    """A file cut short every 64 bytes, and with one bit flipped at up to 3,000 places."""
    for cut in range(0, len(content), 64): yield content[:cut]
    for at in range(0, len(content), max(1, len(content) // 3000)):
        flipped = bytes([content[at] ^ 1 << at % 8])
        yield content[:at] + flipped + content[at + 1:]


def test_damaged_files_are_never_used(tmp_path):
    run = Run(method="cutmix", epochs=1, batch_size=50)
    store = Store(tmp_path)
    record = finish(Task(run, store))
    whole = store.record_path(run).read_bytes()
    for content in damaged(whole):
        store.record_path(run).write_bytes(content)
        found = store.get(run)
        assert found is None or found == record  # e.g. 1E-05 for 1e-05
    checkpoint = Checkpoint(tmp_path / "a.ckpt")
    content = pack({"weights": {"a": torch.arange(20_000.)}, "epoch": 3})
    for bad in damaged(content):
        checkpoint.path.write_bytes(bad)
        assert checkpoint.load() is None
    for bad in (b"", b"\0" * 100, whole):
        store.claim_path(run).write_bytes(bad)
        with store.claim(run) as mine: assert mine
    store.record_path(run).write_bytes(whole[:-1])
    again = finish(Task(run, store))
    assert again.outcome == record.outcome and store.get(run) == again
    assert store.record_path(run).with_suffix(".aside-1").read_bytes() == whole[:-1]


# --- what runs out

LIMITED = """
import resource, sys
from mix_research.run import Run
from mix_research.store import Store
from mix_research.train import train
from mix_research.jobs import Task, finish
train(Run(epochs=1))
used = int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmSize"))) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 1_500_000_000, -1))
large = Run(model="preact_resnet18", size=64, batch_size=200, epochs=1, seed=0)
for run in (large, Run(epochs=1, seed=1)): finish(Task(run, Store(sys.argv[1])))
"""


def test_out_of_memory_says_what_would_fit_and_the_rest_goes_on(tmp_path):
    done = call([sys.executable, "-c", LIMITED, tmp_path])
    assert done.returncode == 0, done.stdout + done.stderr
    failed, ok = sorted(records(tmp_path).values(), key=lambda r: r.status)
    assert ok.status == "ok" and failed.status == "failed"
    advice = r"batch_size 200 is too large here, \d+ would fit"
    assert "out of memory" in failed.error and re.search(advice, failed.error), failed.error


FULL = """
import sys
from mix_research.study import Study, train_all
two = Study("randomix/table_1", "smoke", seeds=[0], methods=["baseline", "mixup"], records=sys.argv[1])
print(*(r.error for r in train_all([two], device="cpu", progress=False)), sep="\\n")
"""


@contextmanager
def small_disk(folder):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", folder], capture_output=True)
    if mount.returncode: pytest.skip("a small disk needs the right to mount one")
    try: yield
    finally: subprocess.run(["umount", folder], check=True)


def small_files(): resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))


FULL_DISKS = {
    "full": (small_disk, None, "No space left on device"),
    "limit": (nullcontext, small_files, "File too large"),
}


@pytest.mark.parametrize("how", FULL_DISKS)
def test_full_disk(project, how, tmp_path_factory):
    disk, limit, said = FULL_DISKS[how]
    folder = tmp_path_factory.mktemp("disk")
    with disk(folder):
        done = call([sys.executable, "-c", FULL, folder], cwd=project, preexec_fn=limit)
        left = records(folder)
        assert not list(folder.rglob(f".*{ENDS['checkpoint']}.*"))
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert [said in line for line in done.stdout.splitlines()[-2:]] == [True, True], done.stdout
    assert all(r.status == "failed" for r in left.values())


WITH_LAST_WORDS = """import atexit, os
atexit.register(os.write, 2, b"the kernel's own last words")"""
WITHOUT_PORTS = """import ipykernel, json  # no port that another command could take first
assert json.load(open(ipykernel.get_connection_file()))['transport'] == 'ipc'"""


def figure_that_ends(project, source, code=0):
    """What the command says of a figure whose notebook has one cell more."""
    notebook = nbformat.read(ROOT / "papers/randomix/figure_1.ipynb", 4)
    notebook.cells.append(nbformat.v4.new_code_cell(source))
    nbformat.write(notebook, project / "papers/randomix/figure_1.ipynb")
    return ended(start(project, "reproduce", "randomix/figure_1"), code)


def test_killed_kernel_and_failing_notebook(project):
    out = figure_that_ends(project, "import os\nos.write(2, b'no room left')\nos.kill(os.getpid(), 9)", code=1)
    assert "randomix/figure_1: the kernel of its notebook was killed" in out
    assert "last words" not in figure_that_ends(project, WITH_LAST_WORDS)
    figure_that_ends(project, WITHOUT_PORTS)
    out = figure_that_ends(project, "1 / 0", code=1)
    assert "randomix/figure_1: its notebook stopped with ZeroDivisionError: division by zero" in out


# --- many machines, several devices

@contextmanager
def dask_scheduler(project):
    """A scheduler: its process, its address, and a function that starts a worker in a folder of its own."""
    processes, unheard = [], dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file = project / "scheduler.json"
    def dask(*argv, **env):
        command = [sys.executable, "-m", "dask", *argv, "--scheduler-file", str(file)]
        processes.append(subprocess.Popen(command, cwd=project, env=ONE_THREAD | env, **unheard))
        return processes[-1]
    def worker(name, *argv, nanny="--no-nanny", **env):
        (project / name).mkdir()
        place = ("--name", name, "--local-directory", str(project / name))
        return dask("worker", nanny, "--nthreads", "1", "--no-dashboard", *place, *argv, **env)
    try:
        scheduler = dask("scheduler", "--port", "0", "--dashboard-address", ":0")
        until(file.exists)
        yield scheduler, json.loads(file.read_text())["address"], worker
    finally:
        for p in reversed(processes):  # a nanny that is asked to end ends its worker
            p.terminate() if "--nanny" in p.args else p.kill()
            p.wait()


def busy(worker):
    """Is a run that the worker trains past its second epoch?"""
    for path in worker.rglob("*.jsonl"):
        log = [e["event"] for e in read_log(path)]
        if log.count("epoch") >= 2 and log[-1] != "finished": return True
    return False


def test_dask_cluster_loses_a_worker(project):
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    which = ("reproduce", "randomix/table_1", "--methods", "baseline,mixup,cutmix,randomix", "--seeds", "0,1,2")
    train_with(project, epochs=20)
    alone = start(project, *which, "--records", "alone", "--jobs", "1")
    with dask_scheduler(project) as (_, address, worker):
        workers = [worker(f"worker{i}", "--resources", "GPU=1") for i in range(3)]
        where = ("--device", "cpu", "--scheduler", address)
        command = start(project, *which, "--records", "cluster", *where)
        until(lambda: len(list((project / "cluster").glob("*.json"))) >= 2)
        victim = until(lambda: [w for i, w in enumerate(workers) if busy(project / f"worker{i}")])[0]
        victim.kill()
        assert "12 of 12 runs" in ended(command)
    ended(alone)
    there, here = records(project / "cluster"), records(project / "alone")
    assert len(here) == 12 and {k: r.outcome for k, r in there.items()} == {k: r.outcome for k, r in here.items()}
    assert {p.stem for p in (project / "cluster/weights").iterdir()} == set(there)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "tcp://", "127.0.0.1:none"])
def test_no_scheduler_is_one_line(address, project):
    pytest.importorskip("distributed", reason="the extra cluster is not installed")
    command = start(project, "reproduce", "randomix/table_1", "--scheduler", address)
    lines = ended(command, code=2).strip().splitlines()
    assert lines[-1].startswith(f"mix-research: scheduler: no dask scheduler answers at '{address}' ("), lines


LAUNCH = ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision",
          "no", "--dynamo_backend", "no")
STEPS = """
import json, sys, torch
import mix_research.assemble as t
from fastai.callback.core import Callback
from torch import nn
from mix_research import data, models
from mix_research.parallel import gather, is_main, launched
from mix_research.run import Run
class Steps(Callback):
    order, run_valid = -100, False
    def before_fit(self): self.labels = []
    def before_batch(self): self.labels.append(self.yb[0].tolist())
class Plain(models.Network): # no batch norm: the same function of an image in any batch
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(256, 10)
    def features(self, x): return x.flatten(1)
together = launched("cpu")
t.build_model = lambda run, d: Plain()
run = Run(epochs=2, batch_size=50, lr=.01, seed=4)
learn = t.build_learner(run, data.load("digits"), torch.device("cpu"), None, together)
learn.add_cb(Steps())
learn.fit(2)
parts = gather(together, learn.steps.labels)
weights = learn.model.head.weight.flatten().tolist()
done = dict(parts=parts, weights=weights, history=learn.progress.history)
if is_main(together): json.dump(done, open(sys.argv[1], "w"))
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    """The same images in every step, and, without batch norm and mixing, the same weights after two epochs."""
    pytest.importorskip("accelerate", reason="the extra cluster is not installed")
    (tmp_path / "steps.py").write_text(STEPS)
    for name, launcher in (("one", (sys.executable,)), ("two", LAUNCH)):
        done = call([*launcher, "steps.py", name], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / n).read_text()) for n in ("one", "two"))
    assert len(two["parts"]) == 2 and all(abs(len(a) - len(b)) <= 1 for a, b in zip(*two["parts"]))
    assert [sorted(a + b) for a, b in zip(*two["parts"])] == [sorted(a) for a in one["parts"][0]]
    assert max(abs(a - b) for a, b in zip(one["weights"], two["weights"])) < 1e-5
    for a, b in zip(one["history"], two["history"]):
        assert abs(a["train_loss"] - b["train_loss"]) < 1e-4 and a["top1"] == b["top1"]


def test_data_parallel_training(project):
    pytest.importorskip("accelerate", reason="the extra cluster is not installed")
    which = ("reproduce", "randomix/table_1", "--methods", "baseline,cutmix", "--seeds", "0,1,2", "--device", "cpu")
    train_with(project, epochs=30)
    alone = start(project, *which, "--records", "one")
    together = start(project, *which, "--records", "two", launcher=LAUNCH)
    ended(alone)
    assert "6 of 6 runs" in ended(together)
    one, two = records(project / "one"), records(project / "two")
    assert one.keys() == two.keys() and all(r.environment["processes"] == 2 for r in two.values())
    for method in ("baseline", "cutmix"):
        a, b = ([r.metrics["top1"] for r in rs.values() if r.run.method == method] for rs in (one, two))
        spread = max(max(v) - min(v) for v in (a, b))
        assert abs(sum(a) - sum(b)) / 3 <= max(spread, .02), (method, a, b)


# --- bad input: 5,000 examples in all

QUIET = dict(deadline=None, suppress_health_check=list(HealthCheck), database=None)
NAMES = ["digits", "small", "cutmix", "randomix", "synermix", "mixup", "step", "cosine", "baseline", "alpha", "inter"]
NUMBERS = (st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats())
WORDS = st.one_of(*NUMBERS, st.text(max_size=8), st.sampled_from(NAMES))
KEYS = st.text(max_size=6) | st.sampled_from(["alpha", "weights", "beta", "inter", "p", "delta", "per", "k"])
VALUES = st.recursive(WORDS, lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=3), max_leaves=6)
FIELDS = st.sampled_from(list(Run().asdict())) | st.text(max_size=5)
METHODS = st.sampled_from(sorted({"baseline", "synermix", *mixers.MIXERS}))


@settings(max_examples=2500, **QUIET)
@given(st.dictionaries(FIELDS, VALUES, max_size=4), METHODS)
def test_fuzzed_runs(fields, method):
    try: run = Run.from_dict({"method": method, **fields})
    except ValueError as e:
        assert str(e) and "\n" not in str(e)
        return
    assert Run.from_dict(json.loads(json.dumps(run.asdict()))) == run and re.fullmatch("[0-9a-f]{16}", run.key)


HISTORY, DATE = [{"epoch": 1, "top1": .9}], "2026-01-01T00:00:00+00:00"
GOOD = Record(Run(), "ok", {"top1": .9}, HISTORY, {"seconds": 1.}, {"device": "cpu"}, DATE)
FIELDS_OF_A_RECORD = st.sampled_from([*json.loads(GOOD.to_json()), "other"])


@settings(max_examples=1500, **QUIET)
@given(FIELDS_OF_A_RECORD, VALUES, st.booleans(), st.binary(max_size=40), st.integers(0, 900))
def test_fuzzed_records(key, value, seal, noise, at):
    values = json.loads(GOOD.to_json())
    values[key] = value
    text = sealed({k: v for k, v in values.items() if k != "checksum"}) if seal else json.dumps(values)
    disturbed = text.encode()[:at] + noise + text.encode()[at:]
    for content in (text, disturbed.decode("utf-8", "replace")):
        try: record = Record.from_json(content)
        except BadRecord as e:
            assert "\n" not in str(e)
            continue
        if not seal or noise: assert record == GOOD or seal
        assert Record.from_json(record.to_json()) == record
        assert isinstance(record.value("top1_best"), (float, int, type(None)))


@contextmanager
def inside(folder):
    """Works in a folder, and remembers no protocol of another."""
    here = os.getcwd()
    os.chdir(folder)
    read_protocol.cache_clear()
    try: yield
    finally:
        os.chdir(here)
        read_protocol.cache_clear()


def change_at(tree, path, value, remove):
    """Sets a value in nested dicts, or takes it out, as deep down the path as there are dicts."""
    for key in path[:-1]:
        if isinstance(tree.get(key), dict): tree = tree[key]
    if remove: tree.pop(path[-1], None)
    else: tree[path[-1]] = value


PLACES = ["base", "datasets", "methods", "presets", "artefacts", "smoke", "run", "table_1", "cells", "rows", "metrics",
          "mixup", "digits", "seeds", "labels", "epochs"]


@settings(max_examples=500, **QUIET)
@given(st.lists(st.sampled_from(PLACES), min_size=1, max_size=4), VALUES, st.booleans())
def test_fuzzed_protocols(path, value, remove):
    protocol = yaml.safe_load((ROOT / "papers/randomix/protocol.yaml").read_text())
    change_at(protocol, path, value, remove)
    with tempfile.TemporaryDirectory() as t:
        folder = Path(t) / "papers/randomix"
        folder.mkdir(parents=True)
        (folder / "protocol.yaml").write_text(yaml.safe_dump(protocol))
        shutil.copy(ROOT / "papers/randomix/reference.csv", folder)
        with inside(t):
            try: study.Study("randomix/table_1", "smoke", records=Path(t) / "records").table()
            except ValueError as e: assert str(e) and "\n" not in str(e)


ARTEFACTS = st.text(max_size=12) | st.sampled_from(["randomix/table_1", "../randomix/table_1"])
PRESETS = st.text(max_size=8) | st.just("smoke")
ROWS = WORDS | st.sampled_from(["baseline", "cutmix"])


@settings(max_examples=500, **QUIET)
@given(ARTEFACTS, PRESETS, st.lists(WORDS, max_size=3), st.lists(ROWS, max_size=3))
def test_fuzzed_notebook_parameters(name, preset, seeds, methods):
    try: s = study.Study(name, preset, seeds, methods, records="nowhere")
    except ValueError as e:
        assert "\n" not in str(e)
        return
    assert s.name == name and set(s.methods) <= set(s.protocol.methods) and all(isinstance(v, int) for v in s.seeds)


def test_a_parameter_that_is_code_is_a_text(project):
    bad = "x'); open('pwned', 'w').close() #\n__import__('os').system('touch pwned2')"
    which = ("reproduce", "randomix/table_1", "--methods", "baseline", "--seeds", "0")
    out = ended(start(project, *which, "--data", bad, "--records", "r'); open('pwned3', 'w') #"))
    assert "1 of 1 runs" in out and not list(project.rglob("pwned*"))
