"""How a command ends: by a signal, or with an output that takes nothing more. Nothing stays, and nothing is lost."""
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

import psutil
import pytest
import yaml

from conftest import ROOT
from mix_research.checkpoint import Checkpoint
from mix_research.store import read_log

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
SENT = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL]
TRAINING = ("reproduce", "randomix/table_1", "--methods", "baseline,randomix", "--seeds", "0,1", "--device", "cpu")
KILLS = int(os.environ.get("KILLS", 8))  # in random moments


@pytest.fixture
def project(tmp_path):
    """A copy of papers/ and a temporary folder of its own; whoever inherits that was started by our commands."""
    shutil.copytree(ROOT / "papers", tmp_path / "papers", ignore=shutil.ignore_patterns("records"))
    with tempfile.TemporaryDirectory() as short:  # sockets in it have names that may not be long
        (tmp_path / "tmp").symlink_to(short)
        train_for(tmp_path, 2000)
        yield tmp_path
        for p in ours(tmp_path): p.kill()  # of a test that failed; they would slow down all others


def train_for(project, epochs):
    path = project / "papers/randomix/protocol.yaml"
    protocol = yaml.safe_load(path.read_text())
    protocol["presets"]["smoke"]["run"] |= dict(epochs=epochs, batch_size=50, eval_every=1)
    path.write_text(yaml.safe_dump(protocol, sort_keys=False))


def environ(project, **more):
    own = {k: v for k, v in os.environ.items() if not k.startswith("MIX_RESEARCH")}
    folders = dict(JUPYTER_RUNTIME_DIR="runtime", TORCHINDUCTOR_CACHE_DIR="cache")
    own |= dict(OMP_NUM_THREADS="1", TMPDIR=os.readlink(project / "tmp"))
    return own | {name: str(project / f) for name, f in folders.items()} | more


def start(project, *argv, launcher=("mix-research",)):
    pipe = subprocess.PIPE
    how = dict(cwd=project, env=environ(project), stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    return subprocess.Popen([*launcher, *argv], **how)


def until(condition, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(.02)


def ours(project):
    """The processes that our commands started, directly or not."""
    found = []
    for p in psutil.process_iter():
        try: mine = p.environ().get("TMPDIR") == os.readlink(project / "tmp") and p.status() != psutil.STATUS_ZOMBIE
        except psutil.Error: continue
        if mine: found.append(p)
    return found


def shared_memory(project):
    """Files of our processes in the system's shared memory, such as semaphores."""
    for p in ours(project):
        try: yield from (m.path for m in p.memory_maps() if m.path.startswith("/dev/shm/"))
        except (psutil.Error, OSError, AttributeError): continue  # gone meanwhile; a system that does not say


def send(project, command, number, group):
    """A signal for a command, or for all processes of its group, as a terminal sends it; what they shared just before."""
    shared = set(shared_memory(project))
    if group: os.killpg(command.pid, number)
    else: os.kill(command.pid, number)
    return shared


def check_nothing_stays(project, shared=()):
    until(lambda: not ours(project), 60)
    assert not list((project / "tmp").iterdir())
    assert not list(project.glob("runtime/*"))
    assert not [path for path in shared if os.path.exists(path)]


def last_line(command, number):
    """A command that a signal ended says so in its last line, once, and nothing worse."""
    out, err = command.communicate(timeout=120)
    assert command.returncode == 128 + number, out + err
    assert "Traceback" not in out + err and "Exception ignored" not in out + err, err
    lines = err.splitlines()
    assert lines[-1].startswith("mix-research: interrupted; finished runs and checkpoints are kept"), err
    assert err.count("mix-research:") == 1 and "failed" not in out + err
    return lines


# --- signals

def logs(project): return {p: read_log(p) for p in (project / "reproduced/records").glob("*.jsonl")}
def saved(log): return [e["epoch"] for e in log if e["event"] == "checkpoint"]


TRAININGS = [
    ("1", signal.SIGTERM, False),
    ("1", signal.SIGHUP, True),
    ("2", signal.SIGTERM, True),
    ("2", signal.SIGHUP, False),
    ("2", signal.SIGINT, True),
]


@pytest.mark.parametrize("jobs, number, group", TRAININGS)
def test_a_training_ends_in_order(project, jobs, number, group):
    command = start(project, *TRAINING, "--jobs", jobs)
    until(lambda: sum(bool(saved(log)) for log in logs(project).values()) == int(jobs))
    shared = send(project, command, number, group)
    time.sleep(.05)
    send(project, command, number, group)  # twice
    last_line(command, number)
    check_nothing_stays(project, shared)
    for path, log in logs(project).items():
        assert log[-1]["event"] == "interrupted", log[-1]
        assert Checkpoint(path.with_suffix(".ckpt")).load()["epoch"] == saved(log)[-1]
    assert not list(path.parent.glob("*.json")) and not list(path.parent.glob(".*"))


def test_what_was_ignored_stays_ignored(project):
    command = start(project, *TRAINING, "--jobs", "2", launcher=("nohup", "mix-research"))
    until(lambda: len(logs(project)) == 2)
    send(project, command, signal.SIGHUP, group=True)
    epochs = {p: len(log) for p, log in logs(project).items()}
    until(lambda: all(len(log) > epochs[p] + 1 for p, log in logs(project).items()))
    send(project, command, signal.SIGTERM, group=True)
    last_line(command, signal.SIGTERM)


def catches(pid, number):
    """Has a process a handler of its own for a signal?"""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt"): return int(line.split()[1], 16) >> number - 1 & 1


COMMANDS = [("list",), ("show", "randomix/table_1"), ("status",), ("doctor",), ("bench", "--quick"), TRAINING]
MODULE = (sys.executable, "-m", "mix_research.cli")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks into /proc")
@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: argv[0])
def test_while_it_starts(project, argv):
    """As soon as a command can hear a signal, and a little later, while it imports."""
    launcher = MODULE if argv == ("list",) else ("mix-research",)
    for seconds in (0, .7):
        command = start(project, *argv, launcher=launcher)
        until(lambda: catches(command.pid, signal.SIGHUP))
        time.sleep(seconds)
        for _ in range(2): command.send_signal(signal.SIGTERM)
        if command.wait(120) == 0: command.communicate()  # it was faster
        else: assert len(last_line(command, signal.SIGTERM)) == 1
    check_nothing_stays(project)


def running(project, *names): return [p for p in ours(project) if any(n in " ".join(p.cmdline()) for n in names)]
def kernels(project): return running(project, "ipykernel_launcher")


@pytest.mark.parametrize("argv", [("show", "randomix/figure_1", "--out", "shown"), ("bench", "--quick", "--out", "out")])
def test_while_a_notebook_is_executed(project, argv):
    for number, group in ((signal.SIGTERM, False), (signal.SIGINT, True)):
        command = start(project, *argv)
        until(lambda: kernels(project))
        shared = send(project, command, number, group)
        assert len(last_line(command, number)) == 1
        check_nothing_stays(project, shared)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="kernels split off one process on Linux")
@pytest.mark.parametrize("number, group", [(signal.SIGTERM, True), (signal.SIGINT, False), (signal.SIGKILL, False)])
def test_while_notebooks_split_off_one_process(project, number, group):
    command = start(project, "show", "--all", "--out", "shown")
    until(lambda: len(running(project, "kernels._become")) > 1)
    shared = send(project, command, number, group)
    if number == signal.SIGKILL: command.communicate()
    else: last_line(command, number)
    check_nothing_stays(project, shared)


def at_a_moment(project, command, number, group, draw):
    """A signal while a command starts or, more often, while its kernel or its processes do something."""
    if draw.random() < .3: time.sleep(draw.uniform(.3, 5))
    else:
        until(lambda: command.poll() is not None or running(project, "ipykernel_launcher", "multiprocessing.spawn"))
        time.sleep(draw.uniform(0, 10))
    return send(project, command, number, group) if command.poll() is None else ()


def test_random_moments(project):
    """Commands that train and commands that show, ended by a signal of any kind, alone or with their group."""
    draw = random.Random(3)
    train_for(project, 3)
    for i in range(KILLS):
        which = TRAINING + ("--jobs", "2", "--again") if i % 2 else ("show", "randomix/figure_1", "--out", "shown")
        command, number, group = start(project, *which), draw.choice(SENT), draw.random() < .5
        shared = at_a_moment(project, command, number, group, draw)
        out, err = command.communicate(timeout=60)
        print(i, which[0], number.name, group, command.returncode, err[-300:])
        assert command.returncode in (0, -number, 128 + number), err
        check_nothing_stays(project, shared)


LATE = """
import os, signal
from mix_research import cli
cli._run = lambda argv: 0
class Last:  # goes with its module, when Python has taken handlers away
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM): kill(pid, number)
last = Last()
raise SystemExit(cli.main())
"""


def test_a_signal_while_python_ends(project):
    command = start(project, "-c", LATE, launcher=(sys.executable,))
    out, err = command.communicate(timeout=60)
    assert (command.returncode, err) == (0, "")


LOADING = """
import time, torch
from torch.utils.data import DataLoader
from mix_research import cli
class Slow(torch.utils.data.Dataset):
    def __len__(self): return 10**6
    def __getitem__(self, i): return time.sleep(.001) or torch.zeros(1)
def load(argv):
    try:
        for i, _ in enumerate(DataLoader(Slow(), 8, num_workers=2)):
            if not i: print("loading", flush=True)
    finally:
        end = time.monotonic() + 1
        while time.monotonic() < end: pass  # what is put in order in the end, in Python
        print("in order", flush=True)
cli._run = load
raise SystemExit(cli.main())
"""


def test_workers_of_a_loader_die_of_the_same_signal(project):
    """PyTorch raises an error for them, which would break off what is put in order, and make a failure of it."""
    command = start(project, "-c", LOADING, launcher=(sys.executable,))
    assert command.stdout.readline() == "loading\n"
    os.killpg(command.pid, signal.SIGTERM)
    out, err = command.communicate(timeout=60)
    assert (command.returncode, out, err.count("\n")) == (143, "in order\n", 1), err


# --- an output that takes nothing more

def shell(project, line, **more):
    """Exit code and error stream of a line for bash, whose first command is ours."""
    line = f"mix-research {line}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=project, env=environ(project, **more), capture_output=True)
    return done.returncode, done.stdout, done.stderr.decode()


NO_SPACE = "mix-research: standard output: No space left on device\n"
CLOSED = "mix-research: standard output: closed\n"
OUTPUTS = {
    "list > /dev/full": (1, NO_SPACE),
    "--help > /dev/full": (1, NO_SPACE),
    "show randomix/table_1 > /dev/full": (1, NO_SPACE),
    "list >&-": (1, CLOSED),
    "status >&- <&-": (1, CLOSED),
    "show randomix/table_1 >&- 2>&-": (1, ""),
    "show nothing/at_all >&- 2>&-": (2, ""),
    "show nothing/at_all 2>/dev/full": (2, ""),
    "list | true": (141, ""),
    "list 2>&-": (0, ""),
}


@pytest.mark.parametrize("line", OUTPUTS)
def test_an_output_that_is_gone(project, line):
    code, _, err = shell(project, line)
    assert (code, err) == OUTPUTS[line]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_no_output_stops_a_training(project, jobs):
    """What is said in the middle of it, such as that a checkpoint is not used, is lost; the records are not."""
    train_for(project, 2)
    folder = project / "reproduced/records"
    which = " ".join((*TRAINING, "--jobs", jobs))
    assert shell(project, which)[0] == 0
    first = {p: json.loads(p.read_text()) for p in folder.glob("*.json")}
    assert len(first) == 4
    for path in first:
        path.write_text("damaged")
        path.with_suffix(".ckpt").write_text("damaged")
    code, _, err = shell(project, f"{which} >/dev/full 2>&-", PYTHONUNBUFFERED="1")
    assert (code, err) == (1, "")
    for path, record in first.items(): assert json.loads(path.read_text())["metrics"] == record["metrics"]


PLAIN = [
    dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
    dict(PYTHONIOENCODING="ascii"),
    dict(PYTHONIOENCODING="latin-1"),
]


@pytest.mark.parametrize("how", PLAIN, ids=lambda how: "-".join(how.values()))
def test_plain_signs(project, how):
    encoding = how.get("PYTHONIOENCODING", "ascii")
    shutil.copytree(ROOT / "papers/randomix/records", project / "papers/randomix/records")
    code, out, err = shell(project, "show randomix/table_1", **how)
    text = out.decode(encoding)
    assert (code, err) == (0, "") and "^ and v mark what is higher" in text
    assert ("±" if encoding == "latin-1" else "+-") in text
    for line in ("list", "doctor", "--help"):
        code, out, err = shell(project, line, **how)
        assert (code, err) == (0, "") and out.decode(encoding)


@pytest.mark.parametrize("how", [{}, *PLAIN], ids=lambda how: "-".join(how.values()) or "utf-8")
def test_names_that_are_no_text(project, how):
    folder = os.fsencode(project / "records") + b"\xff"
    os.mkdir(folder)
    Path(os.fsdecode(folder), "damaged.json").write_text("{")
    code, out, err = shell(project, "status --records $'records\\xff'", **how)
    assert (code, err) == (1, "") and b"records\\udcff: 0 records" in out and b"damaged: damaged.json" in out
    code, out, err = shell(project, "show randomix/table_1 --preset $'\\xff'", **how)
    assert code == 2 and err.startswith("mix-research: preset: unknown '\\udcff") and err.count("\n") == 1
