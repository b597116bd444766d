"""Data sets that were read once are mapped from then on, by all processes, and are what their files say."""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mix_research import data, prepared, readers
from test_data import IN_MEMORY, WRITERS, nothing_remembered, write_cifar, write_tiny_imagenet, write_tree  # noqa: F401

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, limits files as Linux does")
PREPARED = [name for name in IN_MEMORY if name != "fashion_mnist"]  # whose files hold the pixels as they are
DECODERS = ("_cifar_part", "_variables", "read_images", "spectrograms")
SIZE = 24_000 * 3072  # bytes of the images of a CIFAR-10 with 4,000 of them in each file


def again(name, root):
    data._load.cache_clear()
    return data.load(name, root)


def parts(d): return [t for part in d.parts for t in d.part(part)]
def same(a, b): return a.classes == b.classes and all(x.equal(y) for x, y in zip(parts(a), parts(b), strict=True))


def copies(root):
    """The files of all copies, but for those that are being written."""
    return sorted(p for p in root.glob("prepared/*/*/*") if p.parent.name != "part")


def nothing_is_decoded(monkeypatch):
    def refuse(*args, **kw): raise AssertionError("decoded again")
    for name in DECODERS: monkeypatch.setattr(readers, name, refuse)


@pytest.mark.parametrize("name", PREPARED)
def test_the_second_start_decodes_nothing(name, tmp_path, monkeypatch):
    write_tree(name, tmp_path)
    first = data.load(name, tmp_path)
    nothing_is_decoded(monkeypatch)
    second = again(name, tmp_path)
    assert second is not first and same(second, first) and second.name == first.name
    del second._fingerprint  # which the copy remembers
    assert second.fingerprint == first.fingerprint


@pytest.mark.parametrize("name", PREPARED)
def test_images_are_those_of_a_reader_without_copies(name, tmp_path, monkeypatch):
    write_tree(name, tmp_path)
    found = data.load(name, tmp_path)
    monkeypatch.setattr(readers, "prepared", lambda name, root, sources, make: make())
    plain = again(name, tmp_path)
    assert same(found, plain) and found.fingerprint == plain.fingerprint


def test_a_changed_file_is_read_and_a_damaged_one_named(tmp_path):
    write_tree("tiny_imagenet", tmp_path)
    before = data.load("tiny_imagenet", tmp_path)
    one, other = sorted(tmp_path.glob("tiny-imagenet-200/val/images/*"))[:2]
    one.write_bytes(other.read_bytes())
    after = again("tiny_imagenet", tmp_path)
    assert torch.equal(after.test_x[0], before.test_x[1]) and not same(after, before)
    assert len({p.parent for p in copies(tmp_path)}) == 1, "the copy of the old files is gone"
    size, times = other.stat().st_size, other.stat()
    other.write_bytes(bytes(size))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    with pytest.raises(ValueError, match=f"{other.name}: not a readable image"): again("tiny_imagenet", tmp_path)


def test_another_reader_makes_its_own_copy(tmp_path, monkeypatch):
    write_tree("svhn", tmp_path)
    data.load("svhn", tmp_path)
    before = copies(tmp_path)
    monkeypatch.setattr(prepared, "_readers", lambda: b"another version")
    again("svhn", tmp_path)
    assert len(copies(tmp_path)) == len(before) and not set(copies(tmp_path)) & set(before)


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "folder"])
def test_a_damaged_copy_is_made_anew(damage, tmp_path):
    write_tree("cifar10", tmp_path)
    right = data.load("cifar10", tmp_path)
    for path in copies(tmp_path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        if damage == "flipped": path.write_bytes(content)
        elif damage == "cut": path.write_bytes(content[:-1])
        else: path.unlink()
        if damage == "folder": path.mkdir()
        assert same(again("cifar10", tmp_path), right), path.name
        assert path.is_file() and path.stat().st_size == len(content)


def test_whoever_writes_into_images_writes_into_nobody_elses(tmp_path):
    write_tree("cifar10", tmp_path)
    data.load("cifar10", tmp_path)
    mine, right = again("cifar10", tmp_path), again("cifar10", tmp_path).x.clone()
    mine.x[:] = 0
    assert torch.equal(again("cifar10", tmp_path).x, right)


# ---- several processes, and a full disk ----

LOAD = """
import os, resource, sys
from mix_research import data, readers
readers.PUBLISHED = {} # small trees
limit = int(sys.argv[2])
if limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if sys.argv[3]: # another user
    data.load("digits")
    os.setgid(65534)
    os.setuid(65534)
print("imported", flush=True)
sys.stdin.readline()
d = data.load("cifar10", sys.argv[1])
d.x.sum(), d.test_x.sum()
print(d.fingerprint, flush=True)
sys.stdin.readline()
"""


def start(root, limit=0, another_user=False):
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", LOAD, root, str(limit), "other" if another_user else ""], **pipes)


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()


def pss(process):
    """Memory in bytes, what is shared divided by those who share it; without programs, which others share, too."""
    total, counts = 0, False
    for line in Path(f"/proc/{process.pid}/smaps").read_text().splitlines():
        mapping = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)", line)
        if mapping: counts = not mapping[1].startswith("/") or mapping[1].endswith(".npy")
        elif counts and line.startswith("Pss:"): total += 1024 * int(line.split()[1])
    return total


@LINUX
def test_four_processes_share_one_copy(tmp_path, record_property):
    """All four begin at once, and nothing is prepared yet."""
    write_cifar(tmp_path, np.random.default_rng(0), 10, 4000)
    processes = [start(tmp_path) for _ in range(4)]
    assert [p.stdout.readline() for p in processes] == ["imported\n"] * 4
    before = sum(map(pss, processes))
    for p in processes: go_on(p)
    found = {p.stdout.readline().strip() for p in processes}
    assert found == {data.load("cifar10", tmp_path).fingerprint}
    data._load.cache_clear()
    more = sum(map(pss, processes)) - before
    said = "".join(p.communicate("\n")[1] for p in processes)
    assert not said.replace("waiting: cifar10 is being prepared by another process\n", "")
    record_property("memory of four processes", f"{more / SIZE:.2f} times the images")
    assert more < 2 * SIZE, "one copy, and a little of each process"


@LINUX
def test_without_room_the_data_set_is_used_all_the_same(tmp_path):
    write_cifar(tmp_path, np.random.default_rng(0), 10, 20)
    process = start(tmp_path, 100_000)
    out, err = process.communicate("\n\n")
    assert out.split() == ["imported", data.load("cifar10", tmp_path).fingerprint]
    assert err.startswith("not kept: cifar10 cannot be prepared in ") and err.count("\n") == 1 and "(File too large)" in err


@LINUX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can act as another user")
def test_who_may_not_write_there_keeps_it_in_the_cache(monkeypatch):
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "root"), Path(folder, "cache")
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        os.chmod(folder, 0o755)
        for place in (root, cache): place.mkdir()
        write_cifar(root, np.random.default_rng(0), 10, 20)
        for mode, said in ((0o777, ""), (0o700, f"not kept: cifar10 cannot be prepared in {root}/prepared/cifar10 ")):
            os.chmod(cache, mode)
            out, err = start(root, another_user=True).communicate("\n\n")
            assert len(out.split()) == 2 and err.startswith(said) and err.count("\n") == bool(said), out + err
        assert len(list(cache.glob("mix_research/prepared/*/cifar10/*/x.npy"))) == 1
        assert not (root / "prepared").exists()


# ---- what is published ----

def small(name, root):
    """A small tree, and the error of whoever asks for it by its name."""
    write_tree(name, root)
    with pytest.raises(data.DataNotFound) as e: data.load(name, root)
    return str(e.value)


@pytest.mark.parametrize("name", [name for name in WRITERS if not name.endswith("_c")])
def test_a_part_of_a_data_set_is_not_it(name, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(readers, "DEBIAN_FASHION_MNIST", tmp_path / "no-debian")
    assert name in readers.PUBLISHED
    classes, counts = readers.PUBLISHED[name]
    said = small(name, tmp_path)
    assert said.startswith(f"{name}: expected {classes:,} classes, {counts['train']:,} train, ") and "\n" not in said
    assert "got " in said and len(said) < 200


def test_too_many_classes_and_those_of_a_subset(tmp_path, monkeypatch):
    """It is said before anything is decoded: no file here is an image."""
    published = {"tiny_imagenet": (5, dict(train=20, test=9)), "tiny_imagenet_40": (3, dict(train=12, test=9))}
    monkeypatch.setattr(readers, "PUBLISHED", published)
    nothing_is_decoded(monkeypatch)
    for n, like in ((3, "; that is tiny_imagenet_40"), (6, "")):
        write_tiny_imagenet(tmp_path / str(n), np.random.default_rng(0), [f"n0000000{i}" for i in range(n)], 4)
        with pytest.raises(data.DataNotFound) as e: data.load("tiny_imagenet", tmp_path / str(n))
        got = f"got {n} classes, {4 * n} train, 9 test{like}"
        assert str(e.value) == f"tiny_imagenet: expected 5 classes, 20 train, 9 test, {got}"


def test_a_folder_of_ones_own_may_have_any_number(tmp_path, monkeypatch):
    write_tree("cifar10_jpeg", tmp_path)
    (tmp_path / "cifar10_jpeg").rename(tmp_path / "cifar10")
    monkeypatch.setattr(readers, "PUBLISHED", {"cifar10": (10, dict(train=50_000, test=10_000))})
    assert len(data.load("folder:cifar10", tmp_path).x) == 50
