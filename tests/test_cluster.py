"""Workers of a dask cluster that differ, forge, break or die, and a scheduler that goes away: what comes back is checked."""
import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import pytest

from conftest import ROOT
from mix_research.jobs import Cluster, Task
from mix_research.run import Run
from mix_research.store import Store
from test_survival import busy, dask_scheduler, ended, project, records, start, train_with, until

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
def forger(project):
    """Options and environment of a worker that forges."""
    (project / "forgery.py").write_text(FORGERY)
    return lambda kind: (("--preload", str(project / "forgery.py")), {"FORGERY": kind})


def of_another_schema(project):
    """The environment of a worker whose package writes other records."""
    copy = project / "other/mix_research"
    shutil.copytree(ROOT / "mix_research", copy)
    source = (copy / "record.py").read_text()
    (copy / "record.py").write_text(source.replace("SCHEMA = 3", "SCHEMA = 4"))
    return {"PYTHONPATH": str(project / "other")}


def present(address, n):
    """Waits until there are so many workers."""
    with distributed.Client(address, set_as_default=False) as client: client.wait_for_workers(n, timeout=120)


def said(out):
    """The lines about workers, runs and the scheduler, each once."""
    lines = [line.strip() for line in re.split("[\r\n]+", out)]
    return sorted({re.sub(r"^.*?(?=scheduler: )", "", line) for line in lines
                   if line.startswith(("worker ", "failed: ")) or "scheduler: " in line})


def grid(methods, seeds): return ("reproduce", "randomix/table_1", "--methods", methods, "--seeds", seeds)
def there(address): return ("--device", "cpu", "--scheduler", address)


def check_the_others(project, which, bad):
    """All records but the failed ones are those of runs that are trained alone, and lie beside their networks."""
    ended(start(project, *which, "--records", "alone", "--jobs", "1"))
    here, alone = records(project / "cluster"), records(project / "alone")
    good = {key for key, record in here.items() if record.status == "ok"}
    assert here.keys() == alone.keys() and len(here) == len(good) + bad
    assert {key: here[key].outcome for key in good} == {key: alone[key].outcome for key in good}
    assert {p.stem for p in (project / "cluster/weights").iterdir()} == good


def test_one_differs_one_forges_and_one_dies(project, forger):
    which = grid("baseline,cutmix", "0,1,2")
    train_with(project, epochs=12)
    with dask_scheduler(project) as (_, address, worker):
        argv, env = forger("another_run")
        worker("forger", *argv, **env)
        worker("stranger", **of_another_schema(project))
        mortal = worker("mortal")
        present(address, 3)
        command = start(project, *which, "--records", "cluster", *there(address))
        until(lambda: len(list((project / "cluster").glob("*.json"))) >= 1)
        worker("late")
        present(address, 4)
        until(lambda: busy(project / "mortal"))
        mortal.kill()
        out = ended(command, code=1)
    lines = said(out)
    assert len(lines) == 3, lines
    failed, left, refused = lines
    assert re.match("failed: .* worker forger returned the record of another run, [0-9a-f]{16}; it gets no more", failed)
    assert re.match("worker mortal has left while it trained ", left)
    assert re.match("worker stranger gets no runs: .*schema 4 and not 3", refused)
    check_the_others(project, which, bad=1)


WRONG = {
    "another_network": "returned weights with the hash [0-9a-f]{16} and a record of those with [0-9a-f]{16}",
    "another_key": "returned no record: key '[0-9a-f]{16}' is not that of its run",
    "no_record": "returned no record: .*",
    "unreadable": "raised ValueError: invalid literal for int.*",
    "full": r"raised OSError: \[Errno 28\] No space left on device",
}


def test_whatever_a_worker_returns_the_others_go_on(project, forger):
    which = grid("baseline,cutmix", "0,1,2,3")
    train_with(project, epochs=2)
    with dask_scheduler(project) as (_, address, worker):
        for kind in WRONG:
            argv, env = forger(kind)
            worker(kind, *argv, **env)
        worker("honest")
        present(address, len(WRONG) + 1)
        out = ended(start(project, *which, "--records", "cluster", *there(address)), code=1)
    lines = said(out)
    assert len(lines) == len(WRONG), lines
    for kind, why in WRONG.items():
        assert [line for line in lines if re.match(f"failed: .*: worker {kind} {why}; it gets no more runs", line)], (kind, lines)
    check_the_others(project, which, bad=len(WRONG))


def test_a_run_that_kills_its_workers(project, forger):
    train_with(project, epochs=2)
    with dask_scheduler(project) as (_, address, worker):
        argv, env = forger("dies")
        worker("mortal", *argv, nanny="--nanny", **env)
        out = ended(start(project, *grid("baseline", "0"), *there(address)), code=1)
    assert out.count("worker mortal has left while it trained baseline seed 0") == 4
    assert "failed: baseline seed 0 (digits, small): 4 workers that tried it have left, the last of them mortal" in out
    assert "scheduler: no worker that fits is there; waiting for one" in said(out)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_scheduler_goes_away(project, how):
    which = grid("baseline", "0,1,2")
    with dask_scheduler(project) as (scheduler, address, worker):
        worker("one")
        ended(start(project, *which[:-1], "0", *there(address)))
        train_with(project, epochs=100_000)
        command = start(project, *which, *there(address))
        until(lambda: busy(project / "one"))
        command.send_signal(signal.SIGINT)
        assert "goes on from there" in ended(command, code=130)
        until(lambda: not list((project / "one").rglob("*.jsonl")))  # the training was stopped
        command = start(project, *which, *there(address))
        until(lambda: busy(project / "one"))
        scheduler.send_signal(how)
        out = ended(command, code=2)
    kept = "went away; finished runs are kept, and the same command goes on from there"
    assert said(out) == [f"scheduler: '{address}' {kept}"]
    last = [line for line in re.split("[\r\n]+", out) if line and "run/s" not in line and "?run" not in line]
    assert len(last) == 1, out
    (record,) = records(project / "reproduced/records").values()
    assert record.status == "ok"


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
        with Cluster(address) as place: assert place._take().name == "gpu"
    assert [list(record.evaluations) for record in found] == [["occlusion"], ["fgsm"], ["clean"]]
    assert [task.store.get(run) for task in tasks] == found


def test_no_room_here_is_a_failed_run(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records/weights").write_text("no folder")
    task = Task(Run(epochs=1, batch_size=50), Store(tmp_path / "records"), device="cpu")
    with dask_scheduler(tmp_path) as (_, address, worker):
        worker("one")
        with Cluster(address) as place: record = place(task)
    assert record.status == "failed" and record.error.startswith("its results cannot be written: "), record.error
    assert "\n" not in record.error
