"""Records that nobody can lose or mistake: what decides a number is part of it, whoever writes adds to what is there, and
nothing depends on whose clock is right."""
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT
from test_survival import call, ended, events, project, records, start, train_with, until  # noqa: F401
from mix_research import environment, mixers
from mix_research.checkpoint import Checkpoint
from mix_research.classic import Mixup
from mix_research.evaluate import EVALUATIONS, evaluate
from mix_research.jobs import Task, finish, train_tasks
from mix_research.record import Record, sealed
from mix_research.run import Run
from mix_research.store import Store, read_log, run_files
from mix_research.train import train

RUN = Run(method="cutmix", epochs=4, batch_size=50, seed=3)


# --- what decides a number

class Stop(KeyboardInterrupt):
    "A training is interrupted here."


def stopped(run, store, epoch=2, **how):
    """A training that is interrupted after an epoch that was saved."""
    def listener(event):
        if event["event"] == "checkpoint" and event["epoch"] >= epoch: saved.append(event)
        if event["event"] == "epoch" and saved: raise Stop
    saved = []
    with pytest.raises(Stop): train(run, store, listener=listener, **how)


@pytest.fixture
def eager(monkeypatch):
    "Checkpoints after every epoch."
    monkeypatch.setattr(Checkpoint, "due", lambda self: self.writing is None or self.writing.done())


LONG = dataclasses.replace(RUN, epochs=20)


@pytest.mark.parametrize("first, then", [(1, 2), (2, 1)])
def test_a_training_keeps_the_threads_with_which_it_began(first, then, tmp_path, eager):
    with environment.threads(first):
        straight = train(LONG)
        stopped(LONG, tmp_path)
    with environment.threads(then):
        found = train(LONG, tmp_path)
        more = evaluate(found, "classes", tmp_path)
        assert torch.get_num_threads() == then
    assert found.outcome == straight.outcome and found.timing["resumed"] == 1
    assert found.environment["threads"] == more.evaluations["classes"]["environment"]["threads"] == first


def own_method(step):
    """A method of a notebook, as it was written and changed."""
    class Mine(Mixup):
        def draw(self, x, *how): return super().draw(x + 1, *how)
    class Changed(Mixup):
        def draw(self, x, *how): return super().draw(x + 2, *how)
    return Changed if step else Mine


CHANGES = {
    "source": lambda patch: patch.setattr(environment, "SOURCE", "0" * 16),
    "method": lambda patch: patch.setitem(mixers.MIXERS, "mine", own_method(1)),
    "settings": lambda patch: patch.setattr(environment, "settings", lambda: {"float32_matmul": "high"}),
    "torch": lambda patch: patch.setattr(environment, "version", lambda package: "0.1"),
    "capability": lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "none"),
    "processor": lambda patch: patch.setattr(environment, "_processor", lambda: "another one"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_checkpoint_counts_only_where_all_that_decides_is_the_same(what, tmp_path, eager, monkeypatch, capsys):
    monkeypatch.setitem(mixers.MIXERS, "mine", own_method(0))
    run = dataclasses.replace(LONG, method="mine")
    stopped(run, tmp_path)
    before = Store(tmp_path).checkpoint_path(run).read_bytes()
    CHANGES[what](monkeypatch)
    found, said = train(run, tmp_path), capsys.readouterr().out
    assert "resumed" not in found.timing and what in said and said.count("\n") == 1, said
    (aside,) = run_files(tmp_path, "aside")
    assert aside.read_bytes() == before and aside.name in said


def test_a_checkpoint_of_more_threads_than_there_are_cores_is_not_used(tmp_path, eager, capsys, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() + 1)
    try: stopped(LONG, tmp_path)
    finally: torch.set_num_threads(before)
    assert "resumed" not in train(LONG, tmp_path).timing
    assert f"threads {os.cpu_count() + 1}, here {before}; it is" in capsys.readouterr().out


def photos(folder, seed):
    """Class folders of small images."""
    pixels = np.random.default_rng(seed)
    for part in ("train", "test"):
        for c in "ab":
            (folder / part / c).mkdir(parents=True, exist_ok=True)
            for i in range(12): Image.fromarray(pixels.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / part / c / f"{i}.png")


def test_other_images_under_the_same_name(tmp_path, eager, capsys):
    data, store, run = tmp_path / "data", tmp_path / "records", dataclasses.replace(LONG, dataset="folder:photos", batch_size=8)
    photos(data / "photos", 0)
    first = train(run, store, data)
    assert train(run, store, data).date == first.date and len(first.environment["data"]) == 16
    photos(data / "photos", 1)
    with pytest.raises(ValueError, match="holds other images here than those that .* was trained on"):
        evaluate(first, "clean", store, data)
    stopped(dataclasses.replace(run, seed=9), store, data_path=data)
    capsys.readouterr()
    second = train(run, store, data)
    assert second.metrics != first.metrics and second.environment["data"] != first.environment["data"]
    said = capsys.readouterr().out
    assert "folder:photos holds other images now" in said and "of another training of this run" in said, said
    assert Record.from_json(run_files(store, "aside")[0].read_text()) == first  # nothing is lost
    photos(data / "photos", 2)
    assert "resumed" not in train(dataclasses.replace(run, seed=9), store, data).timing
    assert "data " in capsys.readouterr().out
    assert finish(Task(run, Store(store), data_path=data)).environment["data"] not in (first.environment["data"], second.environment["data"])
    shutil.rmtree(data / "photos")
    assert train(run, store, data).status == "ok"  # what is not at hand is not compared


# --- read, change, write

def test_every_evaluation_stays(tmp_path):
    record = train(RUN, tmp_path)
    for what in ("clean", "classes", "features"): last = evaluate(record, what, tmp_path)  # each with the first record
    assert list(last.evaluations) == ["clean", "classes", "features"] and Store(tmp_path).get(RUN) == last


ADD = """
import sys
from mix_research.record import Record
from mix_research.store import Store
from mix_research.run import Run
store, name, rounds = Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for seed in range(rounds):
    record = store.get(Run(seed=seed))
    for i in range(10): store.add(record, f"{name}{i}", {"values": {"top1": i / 10}})
"""


def plain_record(run): return Record(run, "ok", {"top1": .9, "weights": "0" * 16}, [], {}, {"device": "cpu"}, "2026-01-01T00:00:00+00:00")


def test_two_processes_add_to_one_record(tmp_path, rounds=int(os.environ.get("MIX_RESEARCH_ROUNDS", 20))):
    store = Store(tmp_path)
    for seed in range(rounds): store.put(plain_record(Run(seed=seed)))
    both = [subprocess.Popen([sys.executable, "-c", ADD, tmp_path, name, str(rounds)]) for name in "ab"]
    assert [p.wait() for p in both] == [0, 0]
    want = {f"{name}{i}" for name in "ab" for i in range(10)}
    assert all(set(store.get(Run(seed=seed)).evaluations) == want for seed in range(rounds))
    assert not [p for p in tmp_path.iterdir() if p.suffix != ".json"]


def test_whoever_trains_the_same_run_waits_and_says_so(tmp_path):
    program = "import sys; from mix_research.train import *; print(train(Run(epochs=60, batch_size=20), sys.argv[1]).metrics['weights'])"
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    two = [subprocess.Popen([sys.executable, "-c", program, tmp_path], **how) for _ in range(2)]
    (a, said_a), (b, said_b) = (p.communicate() for p in two)
    assert a == b and len(a) > 10
    waited = [line for line in (said_a + said_b).splitlines() if line.startswith("waiting: baseline seed 0 is being trained by process")]
    log = [e["event"] for e in read_log(Store(tmp_path).log_path(Run(epochs=60, batch_size=20)))]
    assert log.count("started") == 1 and len(waited) <= 1  # one trained; the other waited, or came when it was over


# --- clocks

@pytest.mark.parametrize("date", ["2999-01-01T00:00:00+00:00", "1970-01-01T00:00:00+00:00"])
def test_no_clock_is_believed(date, tmp_path):
    """Records of machines whose clocks are ahead or behind: a failed one is trained again, a success again if asked for."""
    store, tasks = Store(tmp_path), [Task(dataclasses.replace(RUN, epochs=1, seed=s), Store(tmp_path)) for s in (0, 1)]
    failed = Record(tasks[0].run, "failed", {}, [], {}, {"device": "cpu"}, date, "no room")
    store.put(failed)
    store.put(dataclasses.replace(plain_record(tasks[1].run), date=date))
    assert train_tasks(tasks, device="cpu", progress=False) == []
    assert store.get(tasks[0].run).status == "ok" and store.get(tasks[1].run).date == date
    assert train_tasks(tasks, device="cpu", progress=False, again=True) == []
    assert store.get(tasks[1].run).date not in (date, "") and store.get(tasks[1].run).metrics["top1"] != .9


# --- other users, other versions

def newer(record): return sealed({k: v for k, v in json.loads(record.to_json()).items() if k != "checksum"} | {"schema": 99, "mood": "good"})


def test_a_record_of_a_newer_version_is_left_alone(project):
    train_with(project, epochs=1)
    which = ("randomix/table_1", "--methods", "baseline,mixup", "--seeds", "0")
    ended(start(project, "reproduce", *which))
    folder = project / "reproduced/records"
    path, other = sorted(folder.glob("*.json"))
    path.write_text(newer(Record.from_json(path.read_text())))
    before = path.read_text()
    for more in ((), ("--again",)):
        out = ended(start(project, "reproduce", *which, *more), code=1)
        assert "failed: " in out and out.count("not shown: ") == 1 and "of a newer version of mix_research (schema 99" in out, out
        assert path.read_text() == before and not run_files(folder, "aside")
    assert "not shown: " in ended(start(project, "show", *which, "--records", str(folder)))


OTHER = """
import os, sys
from mix_research.jobs import Task, finish
from mix_research.run import Run
from mix_research.store import Store
from mix_research import train, evaluate
os.setgroups([]), os.setgid(65534), os.setuid(65534)
for seed in (0, 1): print(finish(Task(Run(epochs=1, batch_size=50, seed=seed), Store(sys.argv[1]), device="cpu")).error)
"""


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can be another user")
def test_what_another_user_left():
    """The claim of a killed command of somebody else does not block, in a folder that both may write to; a folder that one may
    not write to is one line a run."""
    with tempfile.TemporaryDirectory() as t:
        os.chmod(t, 0o777)
        left = f"{Run(epochs=1, batch_size=50).key}.claim"
        Path(t, left).touch(0o644)
        done = call([sys.executable, "-c", OTHER, t], cwd="/")
        assert done.stdout.splitlines() == ["", ""], done.stdout + done.stderr
        closed = Path(t, "closed")
        closed.mkdir(0o755)
        closed.joinpath(left).touch(0o600)
        done = call([sys.executable, "-c", OTHER, closed], cwd="/")
    assert all(line.startswith("PermissionError: ") for line in done.stdout.splitlines()), done.stdout
    assert len(done.stdout.splitlines()) == 2 and not done.stderr, done.stdout + done.stderr


# --- the promise of README

def given_again(project, jobs, threads, folder):
    which = ("reproduce", "randomix/table_1", "--methods", "baseline,cutmix", "--seeds", "0,1", "--records", folder)
    command = [shutil.which("mix-research"), *which, "--jobs", str(jobs), "--device", "cpu"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MIX_RESEARCH")} | {"OMP_NUM_THREADS": str(threads)}
    env["OMP_WAIT_POLICY"] = "passive"  # threads that spin wait very long for each other on a busy machine
    return subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_an_interrupted_grid_goes_on_with_other_jobs_and_threads(project, moments=int(os.environ.get("MIX_RESEARCH_MOMENTS", 2))):
    """Interrupted at random moments, given again with other --jobs and another number of threads: every run that had a
    checkpoint ends with the numbers that it has with the threads with which it began, bit for bit."""
    train_with(project, epochs=25)
    draw, straight, resumed = random.Random(5), {}, 0
    for threads in (1, 2):
        ended(given_again(project, 1, threads, f"straight{threads}"))
        straight[threads] = records(project / f"straight{threads}")
    for moment in range(moments):
        folder = f"again{moment}"
        (first, n), (then, m) = draw.sample([(jobs, threads) for jobs in (1, 2, 3) for threads in (1, 2)], 2)
        command = given_again(project, first, n, folder)
        until(lambda: [e for log in events(project / folder, "epoch").values() for e in log] or command.poll() is not None)
        time.sleep(draw.uniform(0, 4))
        command.send_signal(draw.choice([signal.SIGINT, signal.SIGKILL]))
        command.communicate()
        ended(given_again(project, then, m, folder))
        found = records(project / folder)
        assert len(found) == 4
        for key, r in found.items():
            assert r.outcome == straight[r.environment["threads"]][key].outcome, (first, n, then, m, r.environment["threads"])
            resumed += r.timing.get("resumed", 0)
            begun = [e["environment"]["threads"] for e in events(project / folder, "started")[key]]
            assert len(set(begun)) == 1 or "resumed" not in r.timing, (key, begun)
    print(f"\n{moments} moments, {resumed} runs went on from a checkpoint")


def test_nothing_grows_over_many_runs(tmp_path, n=int(os.environ.get("MIX_RESEARCH_RUNS", 30))):
    """Memory and open files of one process that trains one run after another."""
    import psutil
    process, seen = psutil.Process(), []
    for seed in range(n):
        finish(Task(Run(method="randomix", epochs=1, batch_size=50, seed=seed), Store(tmp_path), [("clean", {})], device="cpu"))
        seen.append((process.num_fds(), process.num_threads(), process.memory_info().rss / 2**20))
    early, late = seen[n // 3], seen[-1]
    print(f"\n{n} runs: descriptors, threads, MiB after a third {early}, at the end {late}")
    assert late[0] <= early[0] and late[1] <= early[1]
    assert late[2] <= early[2] + 40
