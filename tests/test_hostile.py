"""Files that are damaged or made to do harm end in one line that names them; texts that are not ours stay texts."""
import csv
import gzip
import io
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import scipy.io
import yaml

from conftest import ROOT
from mix_research import data, download, readers, sentences, study
from mix_research.notebooks import export
from mix_research.protocol import read_protocol
from mix_research.record import Record

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
READ = """
import resource, sys
from pathlib import Path
from mix_research import readers
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)) # torch alone asks for three
name, *paths = sys.argv[1:]
for path in map(Path, paths):
    try:
        if name == "svhn": readers._house_numbers(path, path.parent)
        else: readers._cifar_part("cifar10", [path], "labels", 10, path.parent)
        print("read")
    except (ValueError, readers.DataNotFound) as e: print(" ".join(["refused:", str(e)]))
status = Path("/proc/self/status").read_text() # ru_maxrss would begin with the parent's
print(int(status.split("VmHWM:")[1].split()[0]) // 1000, "MB")
"""


def read_apart(name, paths, seconds=120):
    """What a process of its own says of each file, and its peak of memory in MB."""
    done = subprocess.run([sys.executable, "-c", READ, name, *map(str, paths)], capture_output=True, text=True,
                          timeout=seconds)
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, peak = done.stdout.splitlines()
    assert len(lines) == len(paths), done.stdout[-2000:] # one line each
    for line, path in zip(lines, paths): assert line == "read" or path.name in line and len(line) < 700, line
    return lines, int(peak.split()[0])


# ---- pickles ----

X = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
CONTENT = {"data": X, "labels": [1, 0], "batch_label": "a", "filenames": ["a.png", "b.png"]}


def python2(core=b"numpy.core"):
    """As Python 2 wrote the published files: texts are strings of bytes, truth values numbers."""
    def text(v): return b"U" + bytes([len(v)]) + v
    array = b"c" + core + b".multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85q\x03U\x01b\x87Rq\x04"
    kind = b"cnumpy\ndtype\nq\x05U\x02u1K\x00K\x01\x87Rq\x06(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array += b"(K\x01K\x02M\x00\x0c\x86" + kind + b"\x89T" + struct.pack("<i", X.size) + X.tobytes() + b"tb"
    labels = b"]q\x07(K\x01K\x00e"
    return b"\x80\x02}q\x00(" + text(b"data") + array + text(b"labels") + labels + b"u."


def forms():
    """A batch as NumPy 1 and 2 write it, with numbers of Python and of NumPy, and as it was published."""
    numpy = CONTENT | {"labels": np.array([1, 0])}
    each = CONTENT | {"labels": [np.int64(1), np.int32(0)]}
    written = [pickle.dumps(c, p) for c in (CONTENT, numpy, each) for p in range(6)]
    return [python2(), *written, *(w.replace(b"numpy._core", b"numpy.core") for w in written[:5] if b"\x95" not in w)]


def test_cifar_in_every_form(tmp_path):
    for i, content in enumerate(forms()):
        path = tmp_path / f"batch_{i}"
        path.write_bytes(content)
        x, y = readers._cifar_part("cifar10", [path], "labels", 10, tmp_path)
        assert (x.numpy() == X.reshape(2, 3, 32, 32)).all() and y.tolist() == [1, 0]


def nested(n):
    """A tuple of two of the same tuple, n deep, in the memory at 0."""
    return b")q\x00" + b"h\x00h\x00\x86q\x00" * n


KIND = b"cnumpy\ndtype\nX\x02\0\0\0O8K\0K\1\x87R"
HARMFUL = {
    "the kind of a number, restored from nonsense": b"\x80\x02cnumpy\ndtype\nX\x02\0\0\0V8K\0K\1\x87R"
        b"(K\x04X\1\0\0\0|(K\1K\2tK\1NJ\xff\xff\xff\x7fJ\xff\xff\xff\x7fK\x10tb.",
    "objects at any address": b"\x80\x02cnumpy._core.numeric\n_frombuffer\n(C\x08AAAAAAAA" + KIND
        + b"K\1\x85X\1\0\0\0CtR.",
    "an array of a shape without its bytes": b"\x80\x02cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.",
    "a place far out in the memory": b"\x80\x02Nr\xff\xff\xff\x3f.",
    "bytes that are not there": b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b"abc.",
    "a text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.",
    "a key that takes for ever to look for": b"\x80\x02" + nested(80) + b"}h\0K\1s.",
    "labels that take for ever to count": b"\x80\x02" + nested(40) + b"}(X\4\0\0\0dataK\1X\6\0\0\0labelsh\0u.",
    "one text made bytes again and again": b"\x80\x02X" + struct.pack("<I", 1 << 22) + b"a" * (1 << 22) + b"q\0"
        + b"0c_codecs\nencode\nq\2X\6\0\0\0latin1q\3]q\4" + b"h\2h\0h\3\x86Ra" * 3000 + b".",
    "very many lists": b"\x80\x02(" + b"]" * 20_000_000 + b"l.",
    "a call": b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.",
    "nothing": b"",
}


@LINUX
def test_harmful_pickles(tmp_path):
    paths = [tmp_path / f"batch_{i}" for i in range(len(HARMFUL))]
    for path, content in zip(paths, HARMFUL.values()): path.write_bytes(content)
    lines, peak = read_apart("cifar10", paths)
    assert all(line.startswith("refused: ") for line in lines), dict(zip(HARMFUL, lines))
    assert peak < 1500, peak


def disturbed(rng, content):
    """Bytes changed, put in, taken out, near the beginning or the end, where the steps are."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(len(content), 400)) if rng.random() < .5 else len(content) - rng.randint(1, 200)
        at, how = max(0, at), rng.random()
        if how < .4: content[at:at + 1] = bytes([rng.randrange(256)])
        elif how < .8: content[at:at] = bytes([rng.randrange(256)]) + rng.choice([b"", b"\0", b"\xff" * 4, b"\xff" * 8])
        else: del content[at:at + rng.randint(1, 9)]
    return bytes(content)


@LINUX
def test_fuzzed_pickles(tmp_path):
    rng, written = random.Random(0), forms()
    paths = [tmp_path / f"batch_{i}" for i in range(1000)]
    for path in paths: path.write_bytes(disturbed(rng, rng.choice(written)))
    lines, peak = read_apart("cifar10", paths)
    assert sum(line != "read" for line in lines) > 500 and peak < 1000


# ---- other files ----

def packed_again(rng, content):
    """A MATLAB file whose variables are changed inside and packed again."""
    out, at = content[:128], 128
    while at < len(content):
        size, = struct.unpack_from("<I", content, at + 4)
        inside = bytearray(zlib.decompress(content[at + 8:at + 8 + size]))
        for _ in range(rng.randint(0, 2)): inside[rng.randrange(90) % len(inside)] = rng.choice([0, 1, 5, 9, 14, 255])
        again, at = zlib.compress(inside), at + 8 + size
        out += struct.pack("<II", 15, len(again)) + again
    return out


@LINUX
def test_fuzzed_matlab_files(tmp_path):
    rng, written = random.Random(0), []
    for packed in (True, False):
        content = {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[1], [2]], np.uint8)}
        scipy.io.savemat(tmp_path / "a.mat", content, do_compression=packed)
        written.append((tmp_path / "a.mat").read_bytes())
    paths = [tmp_path / f"{i}.mat" for i in range(900)]
    for i, path in enumerate(paths):
        path.write_bytes(packed_again(rng, written[0]) if i % 3 else disturbed(rng, written[i % 2]))
    bomb = zlib.compress(bytes(1 << 28), 9)
    paths[0].write_bytes(written[0][:128] + (struct.pack("<II", 15, len(bomb)) + bomb) * 8)
    lines, peak = read_apart("svhn", paths)
    assert sum(line != "read" for line in lines) > 300 and peak < 1500


def test_packed_idx_that_promises_much(tmp_path):
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(struct.pack(">HBBI", 0, 8, 1, 100) + bytes(1 << 28), 1))
    with pytest.raises(ValueError, match="a.gz: not a whole IDX file"): readers.read_idx(path)
    path.write_bytes(gzip.compress(struct.pack(">HBBII", 0, 8, 2, 1 << 31, 1 << 31) + bytes(1 << 20), 1))
    with pytest.raises(ValueError, match="a.gz: expected at most 1,073,741,824 bytes"): readers.read_idx(path)


PIPES = {  # data set -> what is a named pipe instead of a file
    "fashion_mnist": "FashionMNIST/raw/train-images-idx3-ubyte", "cifar10": "cifar-10-batches-py/batches.meta",
    "svhn": "svhn/train_32x32.mat", "tiny_imagenet": "tiny-imagenet-200/wnids.txt",
    "mini_imagenet": "mini_imagenet/train.csv", "food101": "food-101/meta/train.json",
    "oxford_pets": "oxford-iiit-pet/annotations/trainval.txt", "caltech256": "256_ObjectCategories.tar",
    "cifar100": "cifar-100-python.tar.gz"}
LOAD = """
import sys
from mix_research import data
for name in sys.argv[2:]:
    try: data.load(name, sys.argv[1])
    except (ValueError, data.DataNotFound) as e: print(e, flush=True)
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_pipe_in_place_of_a_file(tmp_path):
    for place in PIPES.values():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / place)
    for part in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"FashionMNIST/raw/{part}-ubyte").touch()
    (tmp_path / "oxford-iiit-pet/images").mkdir()
    (tmp_path / "svhn/test_32x32.mat").touch()
    done = subprocess.run([sys.executable, "-c", LOAD, tmp_path, *PIPES], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert len(lines) == len(PIPES), done.stdout + done.stderr
    for line, place in zip(lines[:-2], PIPES.values()): assert place in line and "expected a file, got a pipe" in line
    assert "256_ObjectCategories.tar" in lines[-2] and "cifar-100-python.tar.gz" in lines[-1]


LISTS = ["[" * 100_000, '{"a": 1}', '{"a": [1]}', "[]", '{"a": ["x\\n\\u0000y"]}', "\xff", "{"]


@pytest.mark.parametrize("text", LISTS, ids=map(str, range(len(LISTS))))
def test_lists_of_food(text, tmp_path):
    for part in ("train", "test"):
        path = tmp_path / f"food-101/meta/{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="latin1")
    with pytest.raises((ValueError, data.DataNotFound)) as e: data.load("food101", tmp_path)
    assert "train.json" in str(e.value) and str(e.value).isprintable()


# ---- archives ----

def tar_of(mode, members, path):
    with tarfile.open(path, mode) as t:
        for name, content, fields in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for k, v in fields.items(): setattr(member, k, v)
            t.addfile(member, io.BytesIO(content) if content else None)


def zip_of(path, name="a", content=b"abc" * 100, change=None, **fields):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        info = zipfile.ZipInfo(name)
        for k, v in fields.items(): setattr(info, k, v)
        z.writestr(info, content, zipfile.ZIP_DEFLATED)
    if change: path.write_bytes(change(path.read_bytes()))


def directory(blob, at, new):
    start = blob.index(b"PK\1\2")
    return blob[:start + at] + new + blob[start + at + len(new):]


def damaged(mode, at):
    """A tar file with one byte changed so far from its end."""
    def make(path):
        noise = random.Random(0).randbytes(30_000)
        tar_of(mode, [("set/a", noise, {}), ("set/b", noise[::-1], {})], path)
        blob = bytearray(path.read_bytes())
        blob[-at] ^= 0x55
        path.write_bytes(blob)
    return make


def long_name(path): # a header that says a name of 64 GB follows
    head = tarfile.TarInfo("././@LongLink")
    head.type, head.size = tarfile.GNUTYPE_LONGNAME, 1 << 36
    with gzip.open(path, "wb", 1) as f:
        f.write(head.tobuf(tarfile.GNU_FORMAT))
        for _ in range(96): f.write(bytes(1 << 24))


def cut_between(path): # at the end of a member, where nothing tells
    tar_of("w", [("a", b"1", {}), ("b", b"2", {})], path)
    path.write_bytes(path.read_bytes()[:1024])


def spoilt_head(path): # of the second member
    tar_of("w", [("a", b"1", {}), ("b", b"2", {})], path)
    blob = path.read_bytes()
    path.write_bytes(blob[:1024] + b"\xff" * 512 + blob[1536:])


ARCHIVES = {
    "tar: outside": lambda p: tar_of("w", [("../out", b"1", {})], p),
    "tar: absolute": lambda p: tar_of("w", [("/out", b"1", {})], p),
    "tar: link outside": lambda p: tar_of("w", [("a", b"", dict(type=tarfile.SYMTYPE, linkname="../../out"))], p),
    "tar: hard link outside": lambda p: tar_of("w", [("a", b"", dict(type=tarfile.LNKTYPE, linkname="/etc/x"))], p),
    "tar: device": lambda p: tar_of("w", [("a", b"", dict(type=tarfile.CHRTYPE))], p),
    "tar: pipe": lambda p: tar_of("w", [("a", b"", dict(type=tarfile.FIFOTYPE))], p),
    "tar: a promise of a terabyte": lambda p: tar_of("w:gz", [("a", b"", dict(size=1 << 40))], p),
    "tar: a name of 64 GB": long_name,
    "tar: cut between two members": cut_between,
    "tar: a spoilt head": spoilt_head,
    "tar: a file that is a folder": lambda p: tar_of("w", [("a", b"1", {}), ("a/b", b"2", {})], p),
    "tar: a name too long for the disk": lambda p: tar_of("w", [("a" * 5000, b"1", {})], p),
    "tar.gz: damaged": damaged("w:gz", 20_000), "tar.bz2: damaged": damaged("w:bz2", 20_000),
    "tar.xz: damaged": damaged("w:xz", 20_000), "tar.gz: wrong check sum": damaged("w:gz", 8),
    "zip: outside": lambda p: zip_of(p, "../out"), "zip: absolute": lambda p: zip_of(p, "/out"),
    "zip: link": lambda p: zip_of(p, content=b"/etc/passwd", external_attr=0o120777 << 16, create_system=3),
    "zip: encrypted": lambda p: zip_of(p, change=lambda b: directory(b[:6] + b"\1" + b[7:], 8, b"\1")),
    "zip: unknown packing": lambda p: zip_of(p, change=lambda b: directory(b[:8] + b"\x63" + b[9:], 10, b"\x63")),
    "zip: wrong check sum": lambda p: zip_of(p, change=lambda b: directory(b[:14] + b"1234" + b[18:], 16, b"1234")),
    "zip: a promise of 4 GB": lambda p: zip_of(p, change=lambda b: directory(b, 24, b"\xfe\xff\xff\xff")),
    "zip: cut": lambda p: zip_of(p, change=lambda b: b[:-30]),
    "nothing": lambda p: p.touch(), "text": lambda p: p.write_text("<html>please log in</html>"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(kind, tmp_path):
    path = tmp_path / "in/set.archive"
    path.parent.mkdir()
    ARCHIVES[kind](path)
    with pytest.raises(ValueError, match="set.archive: (refused|not a whole archive) ") as e:
        download.unpack(path, tmp_path / "in/set")
    assert "\n" not in str(e.value) and len(str(e.value)) < 500
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["in", "set.archive"]


def test_what_an_archive_may_become(tmp_path, monkeypatch):
    members = [(f"set/{i}", bytes(1000), {}) for i in range(20)]
    tar_of("w:gz", members, tmp_path / "a.tar.gz")
    tar_of("w", [("set/a", b"1", dict(mode=0o6777))], tmp_path / "b.tar")
    with monkeypatch.context() as m:
        m.setattr(download, "MEMBERS", 19)
        with pytest.raises(ValueError, match="more than 19 members"):
            download.unpack(tmp_path / "a.tar.gz", tmp_path / "set")
    with monkeypatch.context() as m:
        m.setattr(download, "SMALL", 0)
        m.setattr(download, "TIMES", 10)
        with pytest.raises(ValueError, match="would become more than"):
            download.unpack(tmp_path / "a.tar.gz", tmp_path / "set")
    with monkeypatch.context() as m:
        m.setattr(download.shutil, "disk_usage", lambda folder: type("Usage", (), dict(free=10_000)))
        with pytest.raises(download.DownloadFailed, match="set: the disk is full"):
            download.unpack(tmp_path / "a.tar.gz", tmp_path / "set")
    assert not list(tmp_path.glob("set*"))
    assert len(list(download.unpack(tmp_path / "a.tar.gz", tmp_path / "set").iterdir())) == 20
    mode = (download.unpack(tmp_path / "b.tar", tmp_path / "other") / "set/a").stat().st_mode
    assert not mode & 0o6022 # no other user's rights


# ---- protocols ----

def project(folder, change, reference="", name="table_1"):
    """RandoMix's protocol, changed, with its numbers, as the only paper of a folder."""
    paper = folder / "papers/randomix"
    paper.mkdir(parents=True)
    protocol = yaml.safe_load((ROOT / "papers/randomix/protocol.yaml").read_text())
    text = change(protocol) or yaml.safe_dump(protocol)
    (paper / "protocol.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    printed = (ROOT / "papers/randomix/reference.csv").read_bytes()
    (paper / "reference.csv").write_bytes(reference or printed)
    return folder


def aliases(what):
    lines = [f"a0: &a0 {what[0]}"]
    return "\n".join(lines + [f"a{i}: &a{i} {what[1].format(*[f'*a{i - 1}'] * 9)}" for i in range(1, 30)])


FIRST = b"artefact,dataset,model,method,metric,value,std,setting,note\n"
FILES = [  # the text of a protocol, or the bytes of the numbers; what is said
    (aliases(("[lol]", "[{}, {}, {}, {}, {}, {}, {}, {}, {}]")), "with its aliases more than 262,144 characters"),
    (aliases(("{x: 1}", "{{<<: [{}, {}, {}, {}]}}")), "with its aliases more than"),
    ("a: &a [*a]", "with its aliases more than"), ("paper: " + "x" * 3_000_000, "expected at most 262,144 characters"),
    ("a: " + "[" * 9000, "maximum recursion depth"), ("paper: a\nbase: {lr: 1, lr: 2}", "line 2: 'lr' stands twice"),
    (b"paper: \xff", "cannot be read ('utf-8'"),
    ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
    (FIRST[:-6] + b"\n", "expected the columns artefact, dataset"),
    (FIRST + b"table_1,a,b,c,d,1,,,,\n", "line 2: expected 9"),
    (FIRST + b"table_1,a,b,c,d,95,1.2.3,,\n", "line 2: std: expected a number, got '1.2.3'"),
    (FIRST + b"table_1,a,b,c,d,nan,,,\n", "line 2: value: expected a number, got 'nan'"),
    (FIRST + b"table_1,a,b,c,d,1,,x,\n", "line 2: setting: expected NAME=VALUE"),
    (FIRST + b"\xff", "cannot be read ('utf-8'"),
    (FIRST + b"a" * 300_000, "expected at most 262,144 characters"), (FIRST + b'"', "not CSV"),
]


@pytest.fixture
def remembered():
    """No protocol of another folder, before and after."""
    read_protocol.cache_clear()
    yield
    read_protocol.cache_clear()


@pytest.mark.parametrize("text,message", FILES, ids=[f"{i}" for i in range(len(FILES))])
def test_files_of_a_paper(text, message, tmp_path, monkeypatch, remembered):
    numbers = isinstance(text, bytes) and text.startswith(FIRST[:20])
    monkeypatch.chdir(project(tmp_path, lambda p: None if numbers else text, text if numbers else b""))
    with pytest.raises(ValueError) as e: study.Study("randomix/table_1", records=tmp_path / "records").table()
    said = str(e.value)
    assert message in said and said.isprintable() and len(said) < 600, said
    assert str(tmp_path / "papers/randomix" / ("reference.csv" if numbers else "protocol.yaml")) in said


def test_a_command_says_it_in_one_line(tmp_path):
    project(tmp_path, lambda p: aliases(("[lol]", "[{}, {}, {}]")))
    done = subprocess.run(["mix-research", "list"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode and len(done.stderr.splitlines()) == 1 and "protocol.yaml: not plain YAML" in done.stderr


# ---- texts ----

NAME = '=1+<script>alert("x")</script> & a|b `c` $x$ [d](http://e) \\f{g}~^#%_'


@pytest.fixture
def hostile(tmp_path, monkeypatch, remembered):
    """A study whose labels, notes and error messages are markup in every language."""
    def change(p):
        p["labels"] |= dict.fromkeys(("mixup", "digits", "top1", "preact_resnet18"), NAME)
        p["presets"]["smoke"]["note"] = NAME
        p["unstated"]["x"] = p["contradictions"]["X-1"] = NAME
    monkeypatch.chdir(project(tmp_path, change))
    s = study.Study("randomix/table_1", "smoke", seeds=[0], methods=["baseline", "mixup"], records=tmp_path / "records")
    for run in s.runs:
        s.store.put(Record(run, "ok", dict(top1=.9, weights="0"), [], {}, {}, "2026-01-01T00:00:00+00:00"))
    return s


def unescaped(sign, text): return [part for part in text.split(sign)[:-1] if not part.endswith("\\")]


def test_texts_in_markdown(hostile):
    run = hostile.runs[0]
    failed = Record(run, "failed", {}, [], {}, {}, "2026-01-01T00:00:00+00:00", NAME)
    shown = [*sentences.conclusions(hostile, "mixup"), sentences.progress_line(hostile, [failed]),
             sentences.settings("randomix"), sentences.disagreements(hostile.protocol, "X-1"),
             sentences.left_open(hostile.protocol, "x")]
    for text in shown:
        assert "script" in text
        for sign in ("<", "`", "$", "&"): assert not unescaped(sign, text), (sign, text)
        assert "](" not in text


def test_texts_in_a_notebook(hostile, monkeypatch):
    from bs4 import BeautifulSoup
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    sentences.show(hostile)
    page = BeautifulSoup(shown[0]["text/html"], "html.parser")
    assert not page.find_all("script") and not page.find_all("a") and page.get_text().count(NAME) >= 5
    table, caption = shown[0]["text/markdown"].split("\n\n")
    assert not unescaped("<", table + caption) and not unescaped("`", table + caption)
    lines = [line.replace("\\|", "") for line in table.splitlines()]
    assert len({line.count("|") for line in lines}) == 1 # as many cells in each row


def test_texts_in_files(hostile, tmp_path):
    import nbformat
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "table_1.ipynb")
    export(hostile, tmp_path / "table_1.ipynb")
    rows = list(csv.reader((tmp_path / "table_1.csv").open(newline="")))
    names = [*rows[0], *(row[0] for row in rows)]
    assert any(name.startswith("'=1+<script>") for name in names)
    assert not any(name.startswith(("=", "+", "-", "@")) for name in names)
    tex = (tmp_path / "table_1.tex").read_text()
    written = r"\textless{}script\textgreater{}"
    assert written in tex and r"\textbackslash{}f\{g\}\textasciitilde{}\textasciicircum{}\#\%\_" in tex
    assert r"\$x\$ {[}d]" in tex and "<" not in tex


def test_pages_keep_raw_html_in_its_fence(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "site")
    from sources import html
    fence, *_, last, _ = html("a\n```\n# b").strip("\n").splitlines() + [""]
    assert fence == "````{raw} html" and last == "````"
