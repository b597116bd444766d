"""Workers of a dask cluster that differ, forge, break or die, and a scheduler that goes away: what comes back is checked."""
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from threading import Barrier

import pytest
import torch

from conftest import ROOT
from mix_research.jobs import Cluster, Task, train_tasks
from mix_research.run import Run
from mix_research.store import Store, run_files
from test_survival import busy, dask_scheduler, ended, project, start, train_with, until

distributed = pytest.importorskip("distributed", reason="the extra cluster is not installed")

# what a worker does in place of training: it is loaded before the worker joins
FORGERY = """
import os, pickle
from dataclasses import replace
import mix_research.jobs as jobs
from mix_research.record import sealed, unsealed
jobs.honest = honest = getattr(jobs, "honest", jobs._remotely)  # this may be loaded twice

class Unreadable:
    def __reduce__(self): return int, ("no number",)

def another(task): return replace(task, run=replace(task.run, seed=task.run.seed + 100))
def another_run(*given): return honest(another(given[0]), *given[1:])
def another_network(*given): return honest(*given)[0], another_run(*given)[1]
def another_key(*given):
    text, weights = honest(*given)
    return sealed(unsealed(text) | {"key": another(given[0]).run.key}), weights
def no_record(*given): return "{}", b""
def unreadable(*given): return Unreadable()
def full(*given): raise OSError(28, "No space left on device")
def dies(*given): os._exit(1)

jobs._remotely = globals()[os.environ["FORGERY"]]
"""


@pytest.fixture
def forger(tmp_path):
    """Options and environment of a worker that forges."""
    (tmp_path / "forgery.py").write_text(FORGERY)
    return lambda kind: (("--preload", str(tmp_path / "forgery.py")), {"FORGERY": kind})


@pytest.fixture
def one_thread():
    """As the workers have, for the same numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def of_another_schema(folder):
    """The environment of a worker whose package writes other records."""
    copy = folder / "other/mix_research"
    shutil.copytree(ROOT / "mix_research", copy)
    source = (copy / "record.py").read_text()
    (copy / "record.py").write_text(source.replace("SCHEMA = 3", "SCHEMA = 4"))
    return {"PYTHONPATH": str(folder / "other")}


def present(address, n):
    """Waits until there are so many workers."""
    with distributed.Client(address, set_as_default=False) as client: client.wait_for_workers(n, timeout=120)


def tasks(folder, seeds, **run):
    return [Task(Run(method=m, batch_size=50, seed=s, **run), Store(folder), device="cpu")
            for s in seeds for m in ("baseline", "cutmix")]


@contextmanager
def trained_on(address, tasks, jobs=16):
    """A future of what `train_tasks` returns."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(train_tasks, tasks, device="cpu", progress=False, jobs=jobs, scheduler=address)


def said(capfd):
    """What was printed: lines in the order of the alphabet."""
    return sorted("".join(capfd.readouterr()).splitlines())


def check_the_others(tasks, folder, failed):
    """All records but the failed ones are those of runs that are trained alone, and lie beside their networks."""
    store = tasks[0].store
    bad, good = {record.run.key for record in failed}, [t for t in tasks if t.run not in [r.run for r in failed]]
    assert {store.get(t.run).status for t in tasks if t.run.key in bad} == {"failed"}
    assert train_tasks([replace(t, store=Store(folder)) for t in good], device="cpu", progress=False) == []
    for t in good: assert store.get(t.run).outcome == Store(folder).get(t.run).outcome
    assert {p.stem for p in store.weights_path(good[0].run).parent.iterdir()} == {t.run.key for t in good}
    assert len(run_files(store.folders[0], "record")) == len(tasks)


def test_one_differs_one_forges_and_one_dies(tmp_path, forger, capfd, one_thread):
    grid = tasks(tmp_path / "cluster", (0, 1, 2), epochs=12)
    with dask_scheduler(tmp_path) as (_, address, worker):
        argv, env = forger("another_run")
        worker("forger", *argv, **env)
        worker("stranger", **of_another_schema(tmp_path))
        mortal = worker("mortal")
        present(address, 3)
        with trained_on(address, grid) as failed:
            worker("late")
            present(address, 4)
            until(lambda: failed.done() or busy(tmp_path / "mortal"))
            mortal.kill()
    lines = said(capfd)
    assert len(lines) == 3, lines
    forged, left, refused = lines
    assert re.match("failed: .* worker forger returned the record of another run, [0-9a-f]{16}; it gets no more", forged)
    assert re.match("worker mortal has left while it trained ", left)
    assert re.match("worker stranger gets no runs: .*schema 4 and not 3", refused)
    assert len(failed.result()) == 1
    check_the_others(grid, tmp_path / "alone", failed.result())


WRONG = {
    "another_network": "returned weights with the hash [0-9a-f]{16} and a record of those with [0-9a-f]{16}",
    "another_key": "returned no record: key '[0-9a-f]{16}' is not that of its run",
    "no_record": "returned no record: .*",
    "unreadable": "raised ValueError: invalid literal for int.*",
    "full": r"raised OSError: \[Errno 28\] No space left on device",
}


def test_whatever_a_worker_returns_the_others_go_on(tmp_path, forger, capfd, one_thread):
    grid = tasks(tmp_path / "cluster", (0, 1, 2, 3), epochs=2)
    with dask_scheduler(tmp_path) as (_, address, worker):
        for kind in WRONG:
            argv, env = forger(kind)
            worker(kind, *argv, **env)
        worker("honest")
        present(address, len(WRONG) + 1)
        with trained_on(address, grid) as failed: pass
    lines = said(capfd)
    assert len(lines) == len(WRONG), lines
    for kind, why in WRONG.items():
        pattern = f"failed: .*: worker {kind} {why}; it gets no more runs"
        assert [line for line in lines if re.match(pattern, line)], (kind, lines)
    check_the_others(grid, tmp_path / "alone", failed.result())


def test_a_run_that_kills_its_workers(tmp_path, forger, capfd):
    task, *_ = tasks(tmp_path / "cluster", (0,), epochs=2)
    with dask_scheduler(tmp_path) as (_, address, worker):
        argv, env = forger("dies")
        worker("mortal", *argv, nanny="--nanny", **env)
        with trained_on(address, [task]) as failed: pass
    lines = said(capfd)
    assert lines.count("worker mortal has left while it trained baseline seed 0") == 4
    end = "failed: baseline seed 0 (digits, small): 4 workers that tried it have left, the last of them mortal"
    waits = "scheduler: no worker that fits is there; waiting for one"
    assert set(lines) - {"worker mortal has left while it trained baseline seed 0"} == {end, waits}


GONE = "went away; finished runs are kept, and the same command goes on from there"


def test_the_scheduler_is_closed(tmp_path, capfd):
    short, _ = tasks(tmp_path / "cluster", (0,), epochs=1)
    _, long = tasks(tmp_path / "cluster", (0,), epochs=100_000)
    with dask_scheduler(tmp_path) as (scheduler, address, worker):
        worker("one")
        present(address, 1)
        with trained_on(address, [short, long], jobs=1) as failed:
            until(lambda: failed.done() or short.store.get(short.run) and busy(tmp_path / "one"))
            scheduler.terminate()
        with pytest.raises(ValueError, match=f"scheduler: '{address}' {GONE}"): failed.result()
    assert said(capfd) == []
    assert short.store.get(short.run).status == "ok" and short.store.weights_path(short.run).exists()
    assert long.store.get(long.run) is None


def test_an_interrupted_command_and_a_scheduler_that_is_killed(project):
    train_with(project, epochs=100_000)
    with dask_scheduler(project) as (scheduler, address, worker):
        worker("one")
        present(address, 1)
        which = ("reproduce", "randomix/table_1", "--methods", "baseline", "--seeds", "0,1")
        where = ("--device", "cpu", "--scheduler", address)
        command = start(project, *which, *where)
        until(lambda: busy(project / "one"))
        command.send_signal(signal.SIGINT)
        assert "goes on from there" in ended(command, code=130)
        until(lambda: not list((project / "one").rglob("*.jsonl")))  # the training was stopped
        command = start(project, *which, *where)
        until(lambda: busy(project / "one"))
        scheduler.kill()
        out = ended(command, code=2)
    lines = [line for line in re.split("[\r\n]+", out) if line.strip() and "run/s" not in line]  # but for the bar
    assert lines == [f"mix-research: scheduler: '{address}' {GONE}"]


def test_two_commands_want_different_things_of_a_run(tmp_path):
    run = Run(epochs=3, batch_size=50)
    tasks = [Task(run, Store(tmp_path / what), [(what, {})], device="cpu") for what in ("occlusion", "fgsm", "clean")]
    with dask_scheduler(tmp_path) as (_, address, worker):
        worker("cpu")
        worker("gpu", "--resources", "GPU=1")
        present(address, 2)
        at_once = Barrier(len(tasks))
        def train(task):
            with Cluster(address) as place:
                at_once.wait()
                return place(task)
        with ThreadPoolExecutor(len(tasks)) as threads: found = list(threads.map(train, tasks))
        assert [list(record.evaluations) for record in found] == [["occlusion"], ["fgsm"], ["clean"]]
        assert [task.store.get(run) for task in tasks] == found
        with Cluster(address) as place: assert place._take().name == "gpu"


def test_no_room_here_is_a_failed_run(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records/weights").write_text("no folder")
    task = Task(Run(epochs=1, batch_size=50), Store(tmp_path / "records"), device="cpu")
    with dask_scheduler(tmp_path) as (_, address, worker):
        worker("one")
        with Cluster(address) as place: record = place(task)
    assert record.status == "failed" and record.error.startswith("its results cannot be written: "), record.error
    assert "\n" not in record.error
