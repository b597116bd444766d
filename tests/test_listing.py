"""Folders of records as they come: large, read-only, full of odd things. They are listed, and nothing is written to them."""
import ctypes
import fcntl
import json
import os
import pty
import shutil
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import ROOT
from mix_research.record import SCHEMA, Record, sealed, unsealed
from mix_research.run import Run
from mix_research.store import Log, Store

# what every Python process does first: it notes what is opened, in which way, and whether PyTorch is imported
WATCH = '''
import os, sys
note = os.open(os.environ["WATCH_NOTES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {f"os.{name}" for name in "chmod chown link mkdir remove rename rmdir symlink truncate utime setxattr".split()}
def watch(event, args):
    if event == "import" and args[0] == "torch": os.write(note, b"torch imported\\n")
    if event != "open" and event not in CHANGES: return
    how = "change" if event != "open" or (args[2] or 0) & WRITES else "read"
    for path in args[:1] if event == "open" else args:
        if isinstance(path, (str, bytes)):
            path = os.path.abspath(os.fsdecode(path))
            os.write(note, f"{how} {path}\\n".encode(errors="backslashreplace"))
sys.addaudithook(watch)
'''
COMMANDS = ("status", "doctor", "list", "show")


@pytest.fixture
def watched(tmp_path):
    """The environment of processes that note what they open, with a cache of their own."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch/sitecustomize.py").write_text(WATCH)
    path = os.pathsep.join(filter(None, [str(tmp_path / "watch"), str(ROOT), os.environ.get("PYTHONPATH")]))
    own = dict(PYTHONPATH=path, WATCH_NOTES=str(tmp_path / "notes"), XDG_CACHE_HOME=str(tmp_path / "cache"))
    return os.environ | own | dict(MIX_RESEARCH_RECORDS=str(tmp_path / "records"), OMP_NUM_THREADS="1")


def notes(env):
    """What was noted since this was last asked: how -> paths."""
    path, found = Path(env["WATCH_NOTES"]), dict(read=[], change=[], torch=[])
    for line in path.read_text().splitlines() if path.exists() else ():
        how, what = line.split(" ", 1)
        found[how].append(what)
    path.unlink(missing_ok=True)
    return found


CALLS = """
import contextlib, io, json, sys
from mix_research.cli import main
said = {}
for name, argv in json.loads(sys.argv[1]).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err): code = main([name, *argv])
    print(out.getvalue(), err.getvalue(), file=sys.stderr) # which fails for what cannot be printed
    said[name] = code, out.getvalue(), err.getvalue()
print(json.dumps(said))
"""


def commands(env, folder, *names, **how):
    """What commands say, one after the other in one process: name -> exit code, output, errors."""
    records = ["--records", str(folder)]
    argv = dict(list=[], show=["randomix/table_1", *records], doctor=[*records, "--data", str(folder.parent)], status=records)
    asked = json.dumps({name: argv[name] for name in names or COMMANDS})
    done = subprocess.run([sys.executable, "-c", CALLS, asked], env=env, capture_output=True, text=True, timeout=500, **how)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def committed():
    """Records that came with the package, of RandoMix's first table."""
    return [Record.from_json(p.read_text()) for p in sorted((ROOT / "papers/randomix/records").glob("*.json"))]


def filled(folder, n=3):
    """A store with n records, a failed one, and a run that was interrupted."""
    store, known = Store(folder), committed()
    for i in range(n): store.put(replace(known[i % len(known)], run=replace(known[i % len(known)].run, seed=100 + i)))
    store.put(Record(Run(seed=7), "failed", {}, [], {}, {}, "2026-01-01", "the loss became nan"))
    log = Log(store.log_path(Run(seed=8)))
    log("started", run=Run(seed=8).asdict())
    log("epoch", epoch=3)
    store.checkpoint_path(Run(seed=8)).write_bytes(b"as far as it came")
    return store


def state(folder):
    """All that can be seen of a folder from outside."""
    def seen(path):
        about = path.lstat()
        return str(path), about.st_mode, about.st_size, about.st_mtime_ns, about.st_ctime_ns
    return [seen(p) for p in sorted([folder, *folder.rglob("*")])]


def powerless():
    """Rights on files count for root, too, once it has given up what sets it above them."""
    if os.getuid(): return
    drop = ctypes.CDLL(None, use_errno=True).prctl
    for capability in (1, 2): # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        if drop(24, capability, 0, 0, 0): raise OSError(ctypes.get_errno(), "prctl")


def kept_out(folder):
    """Does a process that gave up its rights respect those of files?"""
    probe = f"import os, sys; sys.exit(os.access({str(folder)!r}, os.W_OK))"
    try: return not subprocess.run([sys.executable, "-c", probe], preexec_fn=powerless).returncode
    except subprocess.SubprocessError: return False


# --- nothing is written

def test_looking_opens_nothing_for_writing(tmp_path, watched):
    folder, data = tmp_path / "records", tmp_path / "data"
    store = filled(folder)
    data.mkdir()
    store.claim_path(Run(seed=9)).touch() # of a command that was killed
    with store.claim(Run(seed=8)):
        before = state(folder)
        said = commands(watched, folder)
        assert state(folder) == before
    assert "being trained: baseline seed 8" in said["status"][1] and "ckpt: being trained" in said["doctor"][1]
    kept = (str(folder), str(data), str(ROOT / "mix_research"), str(ROOT / "papers"))
    assert not [p for p in notes(watched)["change"] if p.startswith(kept) and "__pycache__" not in p]
    subprocess.run([sys.executable, "-c", "open('records/x', 'w')"], env=watched, cwd=tmp_path, check=True)
    assert str(folder / "x") in notes(watched)["change"], "what is written is noticed"


def rights(folder, file, place):
    for p in folder.rglob("*"): p.chmod(place if p.is_dir() else file)
    folder.chmod(place)


def test_a_folder_that_may_only_be_read(tmp_path, watched):
    folder = tmp_path / "records"
    store = filled(folder)
    store.claim_path(Run(seed=8)).touch()
    writable = commands(watched, folder)
    rights(folder, 0o444, 0o555)
    try:
        if kept_out(folder): read_only = commands(watched, folder, preexec_fn=powerless)
        else: pytest.skip("rights on files do not count for this user")
    finally: rights(folder, 0o644, 0o755)
    assert "cannot be written: you have no right to" in read_only["doctor"][1]
    assert read_only.pop("doctor")[0] == writable.pop("doctor")[0]
    assert read_only == writable


def test_a_disk_that_is_mounted_read_only(tmp_path, watched):
    from mix_research.doctor import check_disk
    folder = tmp_path / "records"
    filled(folder)
    mount = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && ! touch {folder}/x 2>/dev/null"
    alone = ["unshare", "-m", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*alone, mount], capture_output=True).returncode:
        pytest.skip("this user cannot mount")
    program = f"from mix_research.doctor import check_disk; print(*check_disk('{folder}')[0])"
    inside = f'{mount} && mix-research status --records {folder}; {sys.executable} -c "{program}"'
    done = subprocess.run([*alone, inside], env=watched, capture_output=True, text=True)
    status, disk = done.stdout.rsplit("\n", 2)[:2]
    assert disk == f"note disk {folder} cannot be written: the disk is mounted read-only", done.stdout + done.stderr
    assert status + "\n" == commands(watched, folder, "status")["status"][1]


# --- odd things

def odd_things(folder, whole):
    """What nobody expects: name -> how it is shown."""
    for name in ("folder.json", "folder.jsonl", "folder.ckpt"): (folder / name).mkdir()
    for name in ("pipe.json", "pipe.jsonl"): os.mkfifo(folder / name)
    for name in ("huge.json", "huge.jsonl"):
        (folder / name).touch()
        os.truncate(folder / name, 10 * 2**30)
    for name in ("gone.json", "gone.jsonl"): (folder / name).symlink_to("nothing")
    (folder / "loop.json").symlink_to("loop.json")
    there = socket.socket(socket.AF_UNIX)
    os.chdir(folder) # the path of a socket may not be long
    there.bind("socket.json")
    os.chdir(ROOT)
    there.close()
    contents = {"empty.json": b"", "binary.json": bytes(range(256)), "no right.json": whole, "two\nlines.json": b"{", "copy.json": whole}
    for name, content in contents.items(): (folder / name).write_bytes(content)
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.json")).write_bytes(b"{")
    (folder / "no right.json").chmod(0)
    newer = sealed(unsealed(whole) | dict(schema=SCHEMA + 1))
    (folder / "newer.json").write_text(newer)
    names = [p.name for p in folder.iterdir() if len(p.stem) != 16 and p.name != ".lock"]
    return [n.replace("\n", r"\n").replace("\udcff", r"\udcff") for n in names]


def test_odd_things_are_named_in_a_line_each_and_the_rest_is_listed(tmp_path, watched):
    folder = tmp_path / "records"
    store = filled(folder)
    names = odd_things(folder, store.record_path(Run(seed=7)).read_bytes())
    said = commands(watched, folder, preexec_fn=powerless)
    assert {name: code for name, (code, *_) in said.items()} == dict(status=1, doctor=1, list=0, show=0)
    status, doctor = (said[name][1].splitlines() for name in ("status", "doctor"))
    assert f"{folder}: 4 records" in status and "3 successful, 1 failed" in said["doctor"][1]
    for name in names:
        if not name.endswith("ckpt"): assert sum(f" {name}: " in line for line in status) == 1, name
        assert name == "huge.jsonl" or sum(f"{folder}/{name}: " in line for line in doctor) == 1, name
    alone = [line for line in status if line.startswith("left alone")]
    assert [line.split(": ")[1] for line in alone] == ["copy.json", "newer.json"]
    assert "newer version" in alone[1] and f"of run {Run(seed=7).key}" in alone[0]
    fails = [line for line in doctor if line.startswith("| FAIL") and "records" in line]
    assert len(fails) == len(names) - 3 and not [line for line in fails if "newer.json" in line or "copy.json" in line]


@pytest.mark.parametrize("kind", ["file", "missing", "dangling", "loop", "unreadable"])
def test_a_folder_that_is_none(tmp_path, watched, kind):
    folder = tmp_path / "records"
    if kind == "file": folder.touch()
    if kind == "dangling": folder.symlink_to("nothing")
    if kind == "loop": folder.symlink_to("records")
    if kind == "unreadable":
        folder.mkdir()
        folder.chmod(0)
        if not kept_out(folder): pytest.skip("rights on files do not count for this user")
    said = commands(watched, folder, "status", "list", "doctor", preexec_fn=powerless)
    assert "randomix/table_1" in said["list"][1]
    if kind == "missing":
        assert said["status"] == [0, f"{folder}: 0 records\n", ""]
        assert said["doctor"][0] == said["list"][0] == 0
        return
    for name, (code, start) in dict(status=(2, "mix-research: records: "), list=(1, "records: ")).items():
        assert said[name][0] == code and said[name][2].startswith(start)
        assert len(said[name][2].splitlines()) == 1 and str(folder) in said[name][2]
    fails = [line for line in said["doctor"][1].splitlines() if "FAIL" in line and "records: " in line]
    assert said["doctor"][0] == 1 and len(fails) == 1


# --- many records

N = 400 # more than what is read anew each time

LIST = """
import sys
from mix_research.listing import listing
print(sum(e.status == "ok" for e in listing(sys.argv[1])))
"""


def listed(env, folder):
    """How many successes there are, how many records were read for it, and whether PyTorch was needed."""
    notes(env)
    done = subprocess.run([sys.executable, "-c", LIST, folder], env=env, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    found = notes(env)
    read = [p for p in found["read"] if p.startswith(f"{folder}/") and p.endswith(".json")]
    assert not [p for p in found["change"] if p.startswith(str(folder))]
    return int(done.stdout), len(read), bool(found["torch"])


@pytest.fixture
def many(tmp_path):
    """A folder of records that were written a while ago."""
    store = filled(tmp_path / "records", N)
    time.sleep(3.5) # until a further change has another stamp
    return store


def test_a_record_is_read_once(many, watched):
    (folder,), (first, second) = many.folders, committed()[:2]
    def index(): return next(Path(watched["XDG_CACHE_HOME"], "mix_research").iterdir())
    assert listed(watched, folder) == (N, N + 1, False)
    assert listed(watched, folder) == (N, 0, False), "the second look knows all"
    many.put(replace(first, run=replace(first.run, seed=5000)))
    path = many.record_path(replace(first.run, seed=100))
    about = path.stat()
    path.write_text(path.read_text().replace('"ok"', '"OK"'))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns)) # as large and as old as before
    many.record_path(replace(second.run, seed=101)).unlink()
    assert listed(watched, folder) == (N - 1, 2, False), "what was added, changed or removed is seen, and only it is read"
    whole = index().read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b'"failed"', b'"ok"')):
        index().write_bytes(damaged)
        assert listed(watched, folder)[:2] == (N - 1, N + 1), "made again"
    elsewhere = index()
    elsewhere.unlink()
    elsewhere.parent.rmdir()
    elsewhere.parent.touch() # where nothing can be written, it is only slower
    assert listed(watched, folder) == listed(watched, folder) == (N - 1, N + 1, False)


def test_commands_look_again_without_reading(many, watched):
    (folder,) = many.folders
    first = commands(watched, folder, "status")
    assert f"{folder}: {N + 1} records" in first["status"][1] and "failed: baseline seed 7" in first["status"][1]
    notes(watched)
    assert commands(watched, folder, "status") == first
    found = notes(watched)
    opened = Counter(Path(p).suffix for p in found["read"] if p.startswith(str(folder)))
    assert opened == {".jsonl": 2, ".claim": 1} and not found["torch"], "the one log, of a run that has not ended"
    commands(watched, folder, "doctor", "list")
    assert not [p for p in notes(watched)["read"] if p.startswith(f"{folder}/") and p.endswith(".json")]


def bytes_read():
    about = Path("/proc/self/io")
    if not about.exists(): pytest.skip("this system does not count what a process reads")
    return int(dict(line.split(": ") for line in about.read_text().splitlines())["rchar"])


def test_a_log_of_a_run_that_ended_is_read_at_its_end(tmp_path):
    from mix_research.cli import _unfinished
    path = tmp_path / "0123.jsonl"
    log = Log(path)
    log("started", run=Run().asdict())
    with open(path, "a") as f: f.write('{"event": "epoch"}\n' * 10**5)
    (line,) = _unfinished(tmp_path)
    assert line.startswith("interrupted: baseline seed 0")
    log("finished")
    before = bytes_read()
    assert list(_unfinished(tmp_path)) == []
    assert bytes_read() - before < path.stat().st_size / 10


def test_several_may_write_the_index_at_once(tmp_path):
    from mix_research import listing
    path, seen, stop = tmp_path / "index.json", [], threading.Event()
    def write(i):
        while not stop.is_set(): listing._remember(path, {f"{i}.json": [[i] * 4, "x" * 10**5]})
    writers = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for w in writers: w.start()
    while len(seen) < 200:
        if path.exists(): seen.append(listing._recalled(path))
    stop.set()
    for w in writers: w.join()
    whole = [{f"{i}.json": [[i] * 4, "x" * 10**5]} for i in range(4)]
    assert all(s in whole for s in seen)
    assert [p.name for p in tmp_path.iterdir()] == ["index.json"]


def on_terminal(argv, env):
    """What a command shows there."""
    master, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with subprocess.Popen(argv, env=env, stdout=other, stderr=other) as process:
        os.close(other)
        shown = b""
        while True:
            try: part = os.read(master, 4096)
            except OSError: break # it ended
            if not part: break
            shown += part
    os.close(master)
    assert process.returncode == 1
    return shown.decode()


def test_a_first_look_shows_how_far_it_is(many, watched):
    argv = ["mix-research", "status", "--records", str(many.folders[0])]
    first, second = on_terminal(argv, watched), on_terminal(argv, watched)
    assert f"/{N + 1} [" in first and f"/{N + 1} [" not in second
    assert f"{N + 1} records" in first and f"{N + 1} records" in second


def test_each_core_reads_some(many, watched):
    """What processes find is what one finds, and they end with the one that began them."""
    program = f"""
if __name__ == "__main__":
    import sys
    from mix_research import listing
    listing.MANY = 100
    many = listing.listing(sys.argv[1], watched=True)
    listing.MANY, watched = 10**9, listing.index_path(sys.argv[1]).unlink()
    print(len(many), many == listing.listing(sys.argv[1]))
"""
    script = many.folders[0].parent / "program.py"
    script.write_text(program)
    done = subprocess.run([sys.executable, script, many.folders[0]], env=watched, capture_output=True, text=True)
    assert done.stdout == f"{N + 1} True\n" and not done.stderr


def test_processes_end_with_the_one_that_began_them(tmp_path, watched):
    for i in range(600): (tmp_path / f"{i}.json").write_text("{" * 10**6)
    program = f"""
if __name__ == "__main__":
    import multiprocessing, os, signal
    from mix_research import listing
    for found in listing._side_by_side([f"{tmp_path}/{{i}}.json" for i in range(600)], 2):
        print(*(p.pid for p in multiprocessing.active_children()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run([sys.executable, tmp_path / "program.py"], env=watched, stdout=subprocess.PIPE, text=True)
    left, end = done.stdout.split(), time.monotonic() + 60
    assert len(left) == 2
    while [p for p in left if os.path.exists(f"/proc/{p}")] and time.monotonic() < end: time.sleep(.1)
    assert not [p for p in left if os.path.exists(f"/proc/{p}")]
