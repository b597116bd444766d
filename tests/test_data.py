"""Every data set, in its own form on disk: read back, compared with torchvision's reader, damaged as it may be."""
import csv
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
import scipy.io.wavfile
import torch
from PIL import Image
from torchvision import datasets as tv

from mix_research import data, dataset, loaders, readers, speech


# ---- writers: `write_tree(name, root)` writes a small data set below root, as its makers publish it ----

def pixels(rng, *shape): return rng.integers(0, 256, shape, dtype=np.uint8)


def photo(rng, label, h, w):
    """Noise around a colour that belongs to the class, so that a network can learn something."""
    colour = np.random.default_rng(label).integers(40, 216, 3)
    return np.clip(colour + rng.normal(0, 20, (h, w, 3)), 0, 255).astype(np.uint8)


def save(path, array, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kw)


def write_fashion_mnist(root, rng):
    folder, truth = root / "FashionMNIST/raw", {}
    folder.mkdir(parents=True)
    for part, n in (("train", 60), ("t10k", 30)):
        x, y = pixels(rng, n, 28, 28), (np.arange(n) % 10).astype(np.uint8)
        images, labels = struct.pack(">HBBIII", 0, 8, 3, n, 28, 28), struct.pack(">HBBI", 0, 8, 1, n)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(images + x.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels + y.tobytes())
        truth[part] = x[:, None], y
    (x, y), (test_x, test_y) = truth["train"], truth["t10k"]
    return dict(x=x, y=y, test_x=test_x, test_y=test_y, n_classes=10)


def write_cifar(root, rng, n_classes, n=None):
    """As of 2009: version 2 of pickle, and the array module's name of that time."""
    fine = n_classes == 100
    folder, n = root / ("cifar-100-python" if fine else "cifar-10-batches-py"), n or (200 if fine else 20)
    files = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    meta, names, labels = "batches.meta", "label_names", "labels"
    if fine: meta, names, labels = "meta", "fine_label_names", "fine_labels"
    folder.mkdir()
    def put(file, content):
        (folder / file).write_bytes(pickle.dumps(content, 2).replace(b"numpy._core", b"numpy.core"))
    truth = {False: [], True: []}  # is it the test set?
    for file in files:
        y = rng.permutation(np.arange(n) % n_classes)
        if n < 1000: x = np.stack([photo(rng, c, 32, 32) for c in y]).transpose(0, 3, 1, 2)
        else: x = pixels(rng, n, 3, 32, 32)
        content = {"data": np.ascontiguousarray(x).reshape(n, -1), labels: y.tolist(), "filenames": ["a.png"] * n}
        if fine: content["coarse_labels"] = (y // 5).tolist()
        put(file, content)
        truth["test" in file].append((x, y))
    put(meta, {names: [f"class {i}" for i in range(n_classes)]})
    (x, y), (test_x, test_y) = (map(np.concatenate, zip(*truth[part])) for part in (False, True))
    return dict(x=x, y=y, test_x=test_x, test_y=test_y, n_classes=n_classes)


def write_cifar10_jpeg(root, rng):
    for part in ("train", "test"):
        for c in range(10):
            for i in range(5): save(root / f"cifar10_jpeg/{part}/class{c}/{i:04d}.jpg", photo(rng, c, 32, 32))
    return dict(y=np.repeat(np.arange(10), 5), test_y=np.repeat(np.arange(10), 5), n_classes=10)


def write_svhn(root, rng, sizes=(60, 30)):
    (root / "svhn").mkdir()
    truth = []
    for part, n in zip(("train", "test"), sizes):
        y = rng.permutation(np.arange(n) % 10)
        x = np.stack([photo(rng, c, 32, 32) for c in y]).transpose(0, 3, 1, 2)
        content = {"X": x.transpose(2, 3, 1, 0), "y": np.where(y == 0, 10, y).astype(np.uint8)[:, None]}
        scipy.io.savemat(root / f"svhn/{part}_32x32.mat", content, do_compression=True)
        truth += [x, y]
    return dict(zip(("x", "y", "test_x", "test_y"), truth), n_classes=10)


def write_tiny_imagenet(root, rng, classes=("n02124075", "n01443537", "n04067472"), n=6):
    """`tiny_imagenet_40` has the same layout."""
    folder, rows, test_y = root / "tiny-imagenet-200", [], []
    for k, c in enumerate(sorted(classes)):
        for i in range(n):
            image = photo(rng, k, 64, 64)
            save(folder / f"train/{c}/images/{c}_{i}.JPEG", image if i else image[..., 0])  # some of them are grey
        boxes = [f"{c}_{i}.JPEG\t0\t0\t62\t62\n" for i in range(n)]
        (folder / f"train/{c}/{c}_boxes.txt").write_text("".join(boxes))
    for i in range(9):
        k = int(rng.integers(len(classes)))
        save(folder / f"val/images/val_{i}.JPEG", photo(rng, k, 64, 64))
        rows.append(f"val_{i}.JPEG\t{sorted(classes)[k]}\t0\t0\t44\t62\n")
        test_y.append(k)
    save(folder / "test/images/test_0.JPEG", photo(rng, 0, 64, 64))
    (folder / "val/val_annotations.txt").write_text("".join(rows))
    (folder / "wnids.txt").write_text("\n".join(classes) + "\n")
    (folder / "words.txt").write_text("".join(f"{c}\tsome thing\n" for c in classes))
    return dict(y=np.repeat(np.arange(len(classes)), n), test_y=np.array(test_y), n_classes=len(classes))


def write_mini_imagenet(root, rng, n=12):
    folder = root / "mini_imagenet"
    parts = {"train": ["n01532829", "n03400231"], "val": ["n01855672"], "test": ["n01930112"]}
    classes = sorted(sum(parts.values(), []))
    for part, names in parts.items():
        rows = [(f"{c}{i:08d}.jpg", c) for c in names for i in rng.permutation(1000)[:n]]
        for f, c in rows: save(folder / "images" / f, photo(rng, classes.index(c), *rng.integers(90, 140, 2)))
        with open(folder / f"{part}.csv", "w", newline="") as f:
            csv.writer(f, lineterminator="\n").writerows([("filename", "label"), *rows])
    cut = n * 5 // 6
    return dict(y=np.repeat(np.arange(4), cut), test_y=np.repeat(np.arange(4), n - cut), n_classes=4)


def write_imagenet(root, rng, sizes=(8, 3)):
    for part, n in zip(("train", "val"), sizes):
        for k, c in enumerate(("n01440764", "n01443537", "n02102040")):
            first = c if part == "train" else "ILSVRC2012_val"
            for i in range(k * n, k * n + n):
                save(root / f"imagenet/{part}/{c}/{first}_{i:08d}.JPEG", photo(rng, k, *rng.integers(40, 90, 2)))
    return dict(y=np.repeat(np.arange(3), sizes[0]), test_y=np.repeat(np.arange(3), sizes[1]), n_classes=3)


def write_food101(root, rng, classes=("waffles", "apple_pie", "sushi")):
    folder, ids = root / "food-101", {"train": {}, "test": {}}
    for part, n in (("train", 6), ("test", 2)):
        for c in classes: ids[part][c] = [f"{c}/{i}" for i in rng.choice(10**6, n, replace=False)]
        for c in classes:
            k = sorted(classes).index(c)
            for i in ids[part][c]: save(folder / f"images/{i}.jpg", photo(rng, k, *rng.integers(40, 90, 2)))
    (folder / "meta").mkdir()
    for part in ids:
        (folder / f"meta/{part}.json").write_text(json.dumps(ids[part]))
        (folder / f"meta/{part}.txt").write_text("\n".join(sum(ids[part].values(), [])))
    (folder / "meta/classes.txt").write_text("\n".join(sorted(classes)) + "\n")
    return dict(y=np.repeat(np.arange(3), 6), test_y=np.repeat(np.arange(3), 2), n_classes=3)


def write_caltech256(root, rng, sizes={"001.ak47": 63, "002.american-flag": 61, "257.clutter": 64}):
    folder = root / "caltech256/256_ObjectCategories"
    for k, (c, n) in enumerate(sizes.items()):
        for i in range(1, n + 1): save(folder / f"{c}/{c[:3]}_{i:04d}.jpg", photo(rng, k, *rng.integers(24, 48, 2)))
    (folder / "001.ak47/RENAME2").write_text("a stray, as in the published archive")
    (folder / c / "greg").mkdir()
    classes, rest = np.arange(len(sizes)), [n - 60 for n in sizes.values()]
    return dict(y=np.repeat(classes, 60), test_y=np.repeat(classes, rest), n_classes=len(sizes))


def write_oxford_pets(root, rng, breeds=("Abyssinian", "american_bulldog", "Bengal")):
    folder, truth = root / "oxford-iiit-pet", {}
    (folder / "annotations").mkdir(parents=True)
    for part, first, n in (("trainval", 1, 6), ("test", 50, 2)):
        rows = [(f"{b}_{first + i}", k + 1, 1 + (b.islower()), 1) for k, b in enumerate(breeds) for i in range(n)]
        for image, k, *_ in rows: save(folder / f"images/{image}.jpg", photo(rng, k - 1, *rng.integers(40, 90, 2)))
        (folder / f"annotations/{part}.txt").write_text("".join(" ".join(map(str, r)) + "\n" for r in rows))
        truth[part] = np.array([r[1] - 1 for r in rows])
    return dict(y=truth["trainval"], test_y=truth["test"], n_classes=3)


def write_speech_commands(root, rng, n=6):
    folder, t = root / "speech_commands_v0.01", np.arange(speech.RATE) / speech.RATE
    def write(name, x): scipy.io.wavfile.write(folder / name, speech.RATE, x.astype(np.int16))
    lists = {"validation_list.txt": [], "testing_list.txt": []}
    for k, word in enumerate([*speech.KEYWORDS, "bed", "cat", "wow"]):
        (folder / word).mkdir(parents=True)
        for i in range(n):
            name = f"{word}/{rng.integers(16**8):08x}_nohash_{i}.wav"
            x = 8000 * np.sin(2 * np.pi * (200 + 150 * k) * t) + rng.normal(0, 100, len(t))
            write(name, x[:rng.integers(9000, len(t) + 1)])
            if i < 2: lists[("validation_list.txt", "testing_list.txt")[i]].append(name)
    for file, names in lists.items(): (folder / file).write_text("\n".join(names) + "\n")
    (folder / "_background_noise_").mkdir()
    for name in ("pink_noise", "running_tap"):
        write(f"_background_noise_/{name}.wav", rng.normal(0, 1000, 12 * speech.RATE))
    (folder / "_background_noise_/README.md").write_text("noise")
    return dict(y=np.repeat(np.arange(12), n - 2), test_y=np.arange(12), n_classes=12)  # in no particular order


def write_cifar_c(root, rng, n_classes, n=20):
    folder = root / f"CIFAR-{n_classes}-C"
    folder.mkdir()
    y = rng.integers(0, n_classes, n)
    np.save(folder / "labels.npy", np.tile(y, 5).astype(np.uint8))
    x = {c: pixels(rng, 5 * n, 32, 32, 3) for c in data.CORRUPTIONS}
    for c in x: np.save(folder / f"{c}.npy", x[c])
    return dict(x=x, y=y)


WRITERS = dict(
    fashion_mnist=write_fashion_mnist,
    cifar10=partial(write_cifar, n_classes=10), cifar100=partial(write_cifar, n_classes=100),
    cifar10_jpeg=write_cifar10_jpeg, svhn=write_svhn,
    tiny_imagenet=write_tiny_imagenet, tiny_imagenet_40=write_tiny_imagenet, mini_imagenet=write_mini_imagenet, imagenet=write_imagenet,
    food101=write_food101, caltech256=write_caltech256, oxford_pets=write_oxford_pets,
    speech_commands=write_speech_commands,
    cifar10_c=partial(write_cifar_c, n_classes=10), cifar100_c=partial(write_cifar_c, n_classes=100))


def write_tree(name, root):
    """
    Writes a small data set below `root`. What is in it: n_classes, y, test_y and, where the format keeps pixels as
    they are, x and test_x (NumPy).
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(**WRITERS[name](root, np.random.default_rng(0)))


# ---- reading ----

IN_MEMORY = ("fashion_mnist", "cifar10", "cifar100", "cifar10_jpeg", "svhn", "tiny_imagenet", "tiny_imagenet_40",
             "mini_imagenet", "speech_commands")
STREAMED = ("imagenet", "food101", "caltech256", "oxford_pets")


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch, tmp_path):
    """A small tree is none of the published data sets: their numbers are put aside, but for the tests of them."""
    data._load.cache_clear()
    monkeypatch.setattr(readers, "DEBIAN_FASHION_MNIST", tmp_path / "no-debian")
    monkeypatch.setattr(readers, "PUBLISHED", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield
    data._load.cache_clear()


def test_every_data_set_has_a_writer():
    assert {*IN_MEMORY, *STREAMED, "digits"} == set(data.DATASETS)
    assert set(data.SOURCES) | {"cifar10_jpeg"} == set(WRITERS)


@pytest.mark.parametrize("name", IN_MEMORY + STREAMED)
def test_counts_and_labels(name, tmp_path):
    truth, d = write_tree(name, tmp_path), data.load(name, tmp_path)
    assert ("valid" in d.parts) == (name in data.VALIDATED)
    assert d.name == name and d.n_classes == truth.n_classes
    assert type(d) is (dataset.Dataset if name in IN_MEMORY else dataset.Files)
    for part in ("y", "test_y"):
        want, got = getattr(truth, part), getattr(d, part).numpy()
        if name == "speech_commands": got = np.sort(got)
        assert np.array_equal(got, want), part
    for part in ("x", "test_x"):
        if hasattr(truth, part): assert np.array_equal(getattr(d, part).numpy(), getattr(truth, part)), part
    assert len(d.x) == len(d.y) and len(d.test_x) == len(d.test_y)
    if name in IN_MEMORY: assert torch.equal(next(iter(d.batches("test", 4)))[0], d.test_x[:4])
    assert data.load(name, tmp_path) is d and data.load(name, tmp_path, download=False) is d


def both_parts(make): return make(True), make(False)


def md5_of(path): return hashlib.md5(path.read_bytes()).hexdigest()


def torchvision_reads(name, root, monkeypatch):
    """torchvision's own readers of the same tree; what they hash is this tree's."""
    if name in ("cifar10", "cifar100"):
        cls = {"cifar10": tv.CIFAR10, "cifar100": tv.CIFAR100}[name]
        def hashed(file): return md5_of(root / cls.base_folder / file)
        for part in ("train_list", "test_list"):
            monkeypatch.setattr(cls, part, [[f, hashed(f)] for f, _ in getattr(cls, part)])
        monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": hashed(cls.meta["filename"])})
        return both_parts(lambda train: cls(root, train=train))
    if name == "svhn":
        parts = ((k, tv.SVHN.split_list[k]) for k in ("train", "test"))
        files = {k: [url, f, md5_of(root / "svhn" / f)] for k, (url, f, _) in parts}
        monkeypatch.setattr(tv.SVHN, "split_list", files)
        return both_parts(lambda train: tv.SVHN(root / "svhn", "train" if train else "test"))
    if name == "fashion_mnist": return both_parts(lambda train: tv.FashionMNIST(root, train))
    if name == "food101": return both_parts(lambda train: tv.Food101(root, "train" if train else "test"))
    if name == "oxford_pets": return both_parts(lambda train: tv.OxfordIIITPet(root, "trainval" if train else "test"))
    test = "val" if name == "imagenet" else "test"
    return both_parts(lambda train: tv.ImageFolder(root / name / ("train" if train else test)))


SAME = ["fashion_mnist", "cifar10", "cifar100", "cifar10_jpeg", "svhn", "food101", "oxford_pets", "imagenet"]


@pytest.mark.parametrize("name", SAME)
def test_same_as_torchvision(name, tmp_path, monkeypatch):
    """Image by image; for Food-101 in any order, since torchvision keeps that of the JSON file's classes."""
    write_tree(name, tmp_path)
    d = data.load(name, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy about the pickles of 2009
        theirs = torchvision_reads(name, tmp_path, monkeypatch)
    for part, them in zip(("train", "test"), theirs):
        x, y = d.part(part)
        if name in STREAMED: x = [loaders.decode(p) for p in x]
        ours = [(int(c), im.permute(1, 2, 0).numpy().tobytes(), tuple(im.shape[1:])) for im, c in zip(x, y)]
        if name != "fashion_mnist": them = [(im.convert("RGB"), c) for im, c in them]
        want = [(int(c), np.asarray(im).tobytes(), im.size[::-1]) for im, c in them]
        assert (sorted(ours) == sorted(want)) if name == "food101" else (ours == want)
    if name not in ("svhn", "oxford_pets"): assert d.classes == list(theirs[0].classes)


def test_caltech256_is_split_once(tmp_path, monkeypatch):
    write_tree("caltech256", tmp_path)
    d, folder = data.load("caltech256", tmp_path), tmp_path / "caltech256/256_ObjectCategories"
    assert d.classes == ["ak47", "american-flag", "clutter"] and not set(d.x) & set(d.test_x)
    assert sorted(d.x + d.test_x) == sorted(map(str, folder.glob("*/*.jpg")))
    for paths, y in (d.part("train"), d.part("test")):
        for p, c in zip(paths, y): assert d.classes[c] in p
    data._load.cache_clear()
    assert data.load("caltech256", tmp_path).x == d.x, "the same split every time"
    assert d.x[:60] != sorted(map(str, (folder / "001.ak47").glob("*.jpg")))[:60], "drawn, not the first sixty"


def image(tensor): return tensor.permute(1, 2, 0).numpy()


def test_tiny_imagenet_pixels(tmp_path):
    write_tree("tiny_imagenet", tmp_path)
    d, folder = data.load("tiny_imagenet", tmp_path), tmp_path / "tiny-imagenet-200"
    c = d.classes[1]
    for i, im in enumerate(d.x[6:12]):
        want = Image.open(folder / f"train/{c}/images/{c}_{i}.JPEG").convert("RGB")
        assert np.array_equal(image(im), np.asarray(want))
    for i, im in enumerate(d.test_x):
        assert np.array_equal(image(im), np.asarray(Image.open(folder / f"val/images/val_{i}.JPEG")))


def test_mini_imagenet_pixels(tmp_path):
    """Of each class ten images train and two test, in the order of the lists."""
    write_tree("mini_imagenet", tmp_path)
    d, folder, rows = data.load("mini_imagenet", tmp_path), tmp_path / "mini_imagenet", []
    for part in ("train", "val", "test"): rows += list(csv.DictReader(open(folder / f"{part}.csv")))
    assert d.x.shape[1:] == (3, 84, 84)
    for c in range(4):
        files = [r["filename"] for r in rows if r["label"] == d.classes[c]]
        for got, f in zip([*d.x[d.y == c], *d.test_x[d.test_y == c]], files, strict=True):
            im = Image.open(folder / "images" / f)
            w, h = (int(n * 84 / min(im.size)) for n in im.size)
            left, top = round((w - 84) / 2), round((h - 84) / 2)
            want = im.resize((w, h), Image.Resampling.BILINEAR).crop((left, top, left + 84, top + 84))
            assert np.abs(image(got).astype(int) - np.asarray(want)).mean() < 2, f


def test_speech_commands(tmp_path):
    write_tree("speech_commands", tmp_path)
    d, folder = data.load("speech_commands", tmp_path), tmp_path / "speech_commands_v0.01"
    assert d.x.shape == (48, 1, 32, 32) and d.parts == ["train", "test", "valid"]
    assert torch.bincount(d.valid_y).tolist() == [1] * 12 and d.classes[10:] == ["unknown", "silence"]
    for part, file in (("valid", "validation_list.txt"), ("test", "testing_list.txt")):
        x, y = d.part(part)
        for name in (folder / file).read_text().split():
            word = name.split("/")[0]
            if word not in speech.KEYWORDS: continue
            _, samples = scipy.io.wavfile.read(folder / name)
            clip = torch.from_numpy(np.pad(samples, (0, 16_000 - len(samples))))[None].float() / 2**15
            want = speech.as_image(speech.log_mel(clip))
            assert torch.equal(x[y == speech.KEYWORDS.index(word)][0], want), name
    for k in range(10):  # a word's own tone
        band = int((speech.mel(torch.tensor(200. + 150 * k)) / 86.06).round() - 1)
        assert (d.x[d.y == k].float().mean((0, 1, 3)).argmax() - band).abs() <= 1, k


@pytest.mark.parametrize("n_classes", [10, 100])
def test_corrupted(n_classes, tmp_path):
    truth, found = write_tree(f"cifar{n_classes}_c", tmp_path), data.corrupted(f"cifar{n_classes}", tmp_path)
    assert len(found) == 95 == len({(c, s) for c, s, _ in found}) and np.array_equal(found.y.numpy(), truth.y)
    for c, s, x in found: assert np.array_equal(x.numpy(), truth.x[c][(s - 1) * 20:s * 20].transpose(0, 3, 1, 2))


# ---- damage ----

def halve(path): path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
def remove(path): path.unlink()
def smaller(path): Image.open(path).resize((20, 20)).save(path)


def repickle(change):
    def damage(path):
        d = pickle.loads(path.read_bytes())
        change(d)
        path.write_bytes(pickle.dumps(d))
    return damage


def remat(change):
    def damage(path):
        d = {k: v for k, v in scipy.io.loadmat(path).items() if k in "Xy"}
        change(d)
        scipy.io.savemat(path, d)
    return damage


def replace(old, new):
    def damage(path):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
    return damage


def set_byte(at, value):
    def damage(path):
        b = bytearray(path.read_bytes())
        b[at] = value
        path.write_bytes(b)
    return damage


FASHION, CIFAR10, CIFAR100 = "FashionMNIST/raw/", "cifar-10-batches-py/", "cifar-100-python/"
TINY, MINI, FOOD, PETS = "tiny-imagenet-200/", "mini_imagenet/", "food-101/", "oxford-iiit-pet/"
TINY_IMAGE, SPEECH = TINY + "train/n01443537/images/n01443537_4.JPEG", "speech_commands_v0.01/"

DAMAGE = [  # data set, file (a pattern), what happens to it, what the error says
    ("fashion_mnist", FASHION + "train-images-idx3-ubyte", halve, "not a whole IDX file"),
    ("fashion_mnist", FASHION + "t10k-labels-idx1-ubyte", set_byte(20, 10), "labels must be 0..9, got 0..10"),
    ("fashion_mnist", FASHION + "t10k-images-idx3-ubyte", set_byte(15, 27), "not a whole IDX file"),
    ("fashion_mnist", FASHION + "train-labels-idx1-ubyte", remove, "train-labels-idx1-ubyte.gz: not found"),
    ("cifar10", CIFAR10 + "data_batch_3", halve, "not a readable CIFAR file"),
    ("cifar10", CIFAR10 + "test_batch", remove, "test_batch: not found"),
    ("cifar10", CIFAR10 + "data_batch_2", repickle(lambda d: d.update(data=d["data"][:, :1000])),
     "expected (N, 3072) uint8, got (20, 1000)"),
    ("cifar10", CIFAR10 + "data_batch_2", repickle(lambda d: d["labels"].__setitem__(3, 10)),
     "labels must be 0..9, got 0..10"),
    ("cifar10", CIFAR10 + "data_batch_2", repickle(lambda d: d["labels"].pop()), "expected 20 integer labels"),
    ("cifar100", CIFAR100 + "meta", remove, "meta: not found"),
    ("cifar100", CIFAR100 + "train", repickle(lambda d: d.pop("fine_labels")), "not a CIFAR file: no 'fine_labels'"),
    ("cifar100", CIFAR100 + "test", repickle(lambda d: d["fine_labels"].__setitem__(0, -1)),
     "labels must be 0..99, got -1..99"),
    ("cifar10_jpeg", "cifar10_jpeg/train/class3/0002.jpg", halve, "not a readable image"),
    ("cifar10_jpeg", "cifar10_jpeg/test/class3/0002.jpg", smaller, "expected (32, 32) pixels, got (20, 20)"),
    ("svhn", "svhn/train_32x32.mat", halve, "not a readable MATLAB file"),
    ("svhn", "svhn/test_32x32.mat", remove, "no complete data set in"),
    ("svhn", "svhn/test_32x32.mat", remat(lambda d: d["y"].__setitem__((0, 0), 11)), "labels must be 1..10, got 1..11"),
    ("svhn", "svhn/test_32x32.mat", remat(lambda d: d["y"].__setitem__((0, 0), 0)), "labels must be 1..10, got 0..10"),
    ("svhn", "svhn/train_32x32.mat", remat(lambda d: d.update(X=d["X"][:16])),
     "expected X (32, 32, 3, N) uint8, got (16, 32, 3, 60)"),
    ("svhn", "svhn/train_32x32.mat", remat(lambda d: d.update(y=d["y"][1:])), "expected 60 integer labels"),
    ("svhn", "svhn/train_32x32.mat", remat(lambda d: d.pop("X")), "expected the variables X and y"),
    ("tiny_imagenet", TINY_IMAGE, halve, "not a readable image"),
    ("tiny_imagenet", TINY_IMAGE, smaller, "expected (64, 64) pixels, got (20, 20)"),
    ("tiny_imagenet", TINY + "val/images/val_3.JPEG", remove, "val_3.JPEG is not there"),
    ("tiny_imagenet", TINY + "val/images/val_3.JPEG", halve, "not a readable image"),
    ("tiny_imagenet", TINY + "wnids.txt", remove, "wnids.txt: not found"),
    ("tiny_imagenet", TINY + "val/val_annotations.txt", remove, "val_annotations.txt: not found"),
    ("tiny_imagenet", TINY + "val/val_annotations.txt", replace("\tn0", "\tx0"),
     "expected a file and a class of wnids.txt, got 'val_0.JPEG x0"),
    ("mini_imagenet", MINI + "images/n01855672*.jpg", halve, "not a readable image"),
    ("mini_imagenet", MINI + "images/n01930112*.jpg", remove, "is not there"),
    ("mini_imagenet", MINI + "val.csv", remove, "val.csv: not found"),
    ("mini_imagenet", MINI + "test.csv", replace(",n", ";n"), "expected lines of filename,label"),
    ("mini_imagenet", MINI + "train.csv", replace("filename,label\n", ""), "expected lines of filename,label"),
    ("imagenet", "imagenet/train/n01440764/*_00000003.JPEG", halve, "not a readable image"),
    ("food101", FOOD + "images/sushi/*.jpg", halve, "not a readable image"),
    ("food101", FOOD + "images/waffles/*.jpg", remove, "is not there"),
    ("food101", FOOD + "meta/test.json", halve, "not readable JSON"),
    ("food101", FOOD + "meta/train.json", remove, "train.json: not found"),
    ("food101", FOOD + "meta/test.json", replace('"sushi"', '"shushi"'),
     "other classes than train.json: ['shushi', 'sushi']"),
    ("caltech256", "caltech256/256_ObjectCategories/257.clutter/257_0007.jpg", halve, "not a readable image"),
    ("oxford_pets", PETS + "images/Bengal_2.jpg", halve, "not a readable image"),
    ("oxford_pets", PETS + "images/Bengal_50.jpg", remove, "Bengal_50.jpg is not there"),
    ("oxford_pets", PETS + "annotations/test.txt", remove, "test.txt: not found"),
    ("oxford_pets", PETS + "annotations/test.txt", replace("Bengal_50 3", "Bengal_50 2"),
     "class 2 is american_bulldog and Bengal"),
    ("oxford_pets", PETS + "annotations/trainval.txt", replace(" 1 1 1", " 0 1 1"),
     "expected an image and three numbers > 0"),
    ("speech_commands", SPEECH + "stop/*_nohash_4.wav", halve, "truncated"),
    ("speech_commands", SPEECH + "_background_noise_/pink_noise.wav", halve, "truncated"),
    ("speech_commands", SPEECH + "testing_list.txt", remove, "cannot be read"),
    ("speech_commands", SPEECH + "testing_list.txt", replace("yes/", "yess/"), "is not there"),
    ("cifar10_c", "CIFAR-10-C/gaussian_blur.npy", halve, "not a whole .npy file"),
    ("cifar100_c", "CIFAR-100-C/labels.npy", remove, "labels.npy: not found"),
]


def read_all(name, root):
    """Everything, decoded."""
    if name.endswith("_c"): return list(data.corrupted(name[:-2], root))
    d = data.load(name, root)
    how = dict(workers=0) if name in STREAMED else {}
    for part in d.parts: list(d.batches(part, 16, **how))


@pytest.mark.parametrize("name,file,damage,message", DAMAGE,
                         ids=[f"{d[0]}-{d[1].rsplit('/')[-1]}-{i}" for i, d in enumerate(DAMAGE)])
def test_damage_is_named(name, file, damage, message, tmp_path):
    write_tree(name, tmp_path)
    path = sorted(tmp_path.glob(file))[0]
    damage(path)
    with pytest.raises((ValueError, data.DataNotFound)) as e: read_all(name, tmp_path)
    assert message in str(e.value) and path.name in str(e.value) and "\n" not in str(e.value)


def test_a_class_too_few(tmp_path):
    for name in ("caltech256", "tiny_imagenet", "imagenet"): write_tree(name, tmp_path)
    def refused(name, match, error=data.DataNotFound):
        with pytest.raises(error, match=match): data.load(name, tmp_path)
    for i in (1, 2, 3): (tmp_path / f"caltech256/256_ObjectCategories/001.ak47/001_{i:04d}.jpg").unlink()
    refused("caltech256", "001.ak47: expected more than 60 images")
    for p in (tmp_path / TINY / "train/n02124075/images").iterdir(): p.unlink()
    refused("tiny_imagenet", "n02124075/images: no images")
    for p in (tmp_path / "imagenet/val/n02102040").iterdir(): p.unlink()
    refused("imagenet", "imagenet/val: expected a folder of images for each class .*n02102040")
    (tmp_path / "imagenet/val/n02102040").rmdir()
    refused("imagenet", "different classes: .*n02102040", ValueError)


def loader_of(name):
    """`data.load` or `data.corrupted` of this name, with its other arguments left open."""
    return partial(data.corrupted, name[:-2]) if name.endswith("_c") else partial(data.load, name)


@pytest.mark.parametrize("name", [n for n in WRITERS if n != "cifar10_jpeg"])
def test_missing_says_what_where_and_whence(name, tmp_path):
    with pytest.raises(data.DataNotFound) as e: loader_of(name)(tmp_path)
    source, text = data.SOURCES[name][0], str(e.value)
    assert f"{name}: no complete data set in {tmp_path / source.place}; put " in text
    assert ("--download" in text) == bool(source.url) and "\n" not in text
    assert source.archive in text or source.how in text
    assert not list(tmp_path.iterdir()), "looking leaves nothing behind"


# ---- archives and downloads ----

def test_published_hashes():
    """torchvision publishes most of them, too."""
    def bare(url): return url.split("://")[1]
    def pairs(*names): return [(bare(s.url), s.md5) for n in names for s in data.SOURCES[n]]
    houses, fashion = tv.SVHN.split_list, tv.FashionMNIST
    assert pairs("cifar10", "cifar100") == [(bare(c.url), c.tgz_md5) for c in (tv.CIFAR10, tv.CIFAR100)]
    assert pairs("svhn") == [(bare(u), h) for k, (u, _, h) in houses.items() if k != "extra"]
    assert pairs("fashion_mnist") == [(bare(fashion.mirrors[0]) + f, h) for f, h in fashion.resources]
    assert pairs("food101") == [(bare(tv.Food101._URL), tv.Food101._MD5)]
    assert pairs("oxford_pets") == [(bare(u), h) for u, h in tv.OxfordIIITPet._RESOURCES]
    caltech = Path(sys.modules[tv.Caltech256.__module__].__file__).read_text()
    assert all(s.md5 in caltech for s in data.SOURCES["caltech256"])
    assert all(len(s.md5) == 32 for sources in data.SOURCES.values() for s in sources if s.url)


@pytest.fixture
def server(tmp_path):
    """A folder, served; `asked` are the requests."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *a): super().__init__(*a, directory=folder)
        def log_message(self, *a): asked.append(self.path)
    s = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=s.serve_forever, args=(.01,), daemon=True).start()
    yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{s.server_port}", asked=asked)
    s.shutdown()
    s.server_close()


def pack(target, packed, flat):
    """A file or folder as one archive; `flat`: of what is in the folder, without the folder."""
    if packed.suffix == ".zip": return shutil.make_archive(packed.with_suffix(""), "zip", target.parent, target.name)
    with tarfile.open(packed, "w:gz" if packed.suffix in (".gz", ".tgz") else "w") as t:
        t.add(target, "." if flat else target.name)


def publish(name, root, server, monkeypatch):
    """Packs a tree as its makers do, and lets SOURCES point to it."""
    sources = []
    for s in data.SOURCES[name]:
        target, packed = root / s.target, server.folder / s.archive
        if s.single and packed.suffix == ".gz": packed.write_bytes(gzip.compress(target.with_suffix("").read_bytes()))
        elif s.single: shutil.copy(target, packed)
        else: pack(target, packed, flat=name == "speech_commands")
        sources.append(dataclasses.replace(s, url=f"{server.url}/{s.archive}", md5=md5_of(packed)))
    monkeypatch.setitem(data.SOURCES, name, sources)


@pytest.mark.parametrize("name", [n for n in WRITERS if n != "cifar10_jpeg" and data.SOURCES[n][0].url])
def test_download(name, tmp_path, server, monkeypatch):
    write_tree(name, tmp_path / "there")
    publish(name, tmp_path / "there", server, monkeypatch)
    load = loader_of(name)
    load(tmp_path / "there", download=True)
    assert not server.asked, "what is there is not fetched"
    here = load(tmp_path / "here", download=True)
    n = len(data.SOURCES[name])
    assert len(server.asked) == n and not list((tmp_path / "here").rglob("*.part"))
    there = load(tmp_path / "there")
    if name in STREAMED:
        for a, b in zip(here.test_x, there.test_x, strict=True): assert Path(a).read_bytes() == Path(b).read_bytes()
    elif name in IN_MEMORY: assert torch.equal(here.x, there.x) and torch.equal(here.test_y, there.test_y)
    data._load.cache_clear()
    load(tmp_path / "here", download=True)
    assert len(server.asked) == n, "a second time nothing is fetched"


def test_wrong_download_is_refused_and_an_archive_beside_is_used(tmp_path, server, monkeypatch):
    write_tree("cifar10", tmp_path / "there")
    publish("cifar10", tmp_path / "there", server, monkeypatch)
    packed, beside = server.folder / "cifar-10-python.tar.gz", tmp_path / "here/cifar-10-python.tar.gz"
    whole = packed.read_bytes()
    packed.write_bytes(whole[:-100])
    with pytest.raises(data.DataNotFound, match="cifar10: .*expected MD5 .* found"):
        data.load("cifar10", tmp_path / "here", download=True)
    assert not list((tmp_path / "here").iterdir())
    beside.write_bytes(whole[:-100])
    with pytest.raises(data.DataNotFound, match="cifar-10-python.tar.gz: expected MD5"):
        data.load("cifar10", tmp_path / "here")
    beside.write_bytes(whole)  # brought by hand: unpacked without download=True
    before = len(server.asked)
    assert len(data.load("cifar10", tmp_path / "here").x) == 100 and len(server.asked) == before


WNIDS = ["n02102040", "n01440764", "n01443537"]


def tar(path, files):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as t:
        for name, blob in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(blob)
            t.addfile(info, io.BytesIO(blob))


def jpeg(rng, k):
    f = io.BytesIO()
    Image.fromarray(photo(rng, k, 40, 50)).save(f, "JPEG")
    return f.getvalue()


def synsets():
    """MATLAB's list of classes, a parent among them."""
    fields = [(field, "O") for field in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    rows = [(k + 1, w, f"word {k}, other", "gloss", 0) for k, w in enumerate(WNIDS)]
    mat = io.BytesIO()
    scipy.io.savemat(mat, {"synsets": np.array(rows + [(4, "n00000000", "parent", "gloss", 3)], dtype=fields)[:, None]})
    return mat.getvalue()


def write_imagenet_archives(root):
    """The three official tars, in small: a tar of tars, flat validation images, and the list of classes; its truth."""
    rng, folder, images = np.random.default_rng(0), root / "imagenet", {}
    folder.mkdir()
    truth = rng.integers(1, 4, 8)
    for k, w in enumerate(WNIDS):
        tar(root / f"{w}.tar", {f"{w}_{i}.JPEG": jpeg(rng, k) for i in range(4)})
        images[f"{w}.tar"] = (root / f"{w}.tar").read_bytes()
    tar(folder / "ILSVRC2012_img_train.tar", images)
    validation = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": jpeg(rng, t - 1) for i, t in enumerate(truth)}
    tar(folder / "ILSVRC2012_img_val.tar", validation)
    kit, lines = "ILSVRC2012_devkit_t12/data", "".join(f"{t}\n" for t in truth)
    tar(folder / "ILSVRC2012_devkit_t12.tar.gz", {
        f"{kit}/meta.mat": synsets(), f"{kit}/ILSVRC2012_validation_ground_truth.txt": lines.encode()})
    return truth


def test_imagenet_from_its_archives(tmp_path, monkeypatch):
    folder, truth = tmp_path / "imagenet", write_imagenet_archives(tmp_path)
    missing = "imagenet: no complete data set in .*ILSVRC2012_devkit_t12.tar.gz"  # they have not the published hashes
    with pytest.raises(data.DataNotFound, match=missing): data.load("imagenet", tmp_path)
    assert not (folder / "train").exists()
    ours = {k: (f, md5_of(folder / f)) for k, (f, _) in tv.imagenet.ARCHIVE_META.items()}
    monkeypatch.setattr(tv.imagenet, "ARCHIVE_META", ours)
    (folder / "train.part/half").mkdir(parents=True)  # of an unpacking that was killed
    d = data.load("imagenet", tmp_path)
    assert d.classes == sorted(WNIDS) and d.y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert not list(folder.glob("*.part"))
    for p, y in zip(*d.part("test")): assert d.classes[y] == WNIDS[truth[int(p[-10:-5]) - 1] - 1] == Path(p).parent.name
    (folder / "val").rename(folder / "old")
    (folder / "ILSVRC2012_img_val.tar").unlink()
    data._load.cache_clear()
    with pytest.raises(data.DataNotFound, match="no ILSVRC2012_img_val.tar to unpack"): data.load("imagenet", tmp_path)


# ---- old names ----

def test_batches_is_found_under_its_old_name():
    sys.modules.pop("mix_research.batches", None)
    with pytest.warns(DeprecationWarning, match="batches is mix_research.loaders and mix_research.dataset now"):
        from mix_research import batches
    for name in ("Order", "put_back", "Loader", "Items", "Batches", "decode", "canvas", "Stream"):
        assert getattr(batches, name) is getattr(loaders, name)
    for name in ("IMAGENET_STATS", "stratified_split", "few_of_each", "Dataset", "Files"):
        assert getattr(batches, name) is getattr(dataset, name)


@pytest.mark.parametrize("old, new", [("LOADERS", "READERS"), ("check_labels", "labels_from")])
def test_names_of_data_that_moved(old, new):
    with pytest.warns(DeprecationWarning, match=f"data.{old} is mix_research.readers.{new} now"):
        assert getattr(data, old) is getattr(readers, new)


# ---- memory ----

MEASURE = """
import sys
from mix_research import data
def peak():  # ru_maxrss would begin with the parent's
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) / 1000
data.load("digits")
before = peak()
d = data.load("cifar10", sys.argv[1])
print(len(d.x), len(d.test_x), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_cifar10(tmp_path):
    """The full size, 50,000 and 10,000 images: 184 MB, and little besides while they are read."""
    write_cifar(tmp_path, np.random.default_rng(0), 10, 10_000)
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    n, test_n, extra = done.stdout.split()
    assert (n, test_n) == ("50000", "10000") and 180 < float(extra) < 400, extra


STREAM = """
import sys, torch
from mix_research.loaders import Stream
paths, workers = sys.argv[2:], int(sys.argv[1])
try: print(sum(len(y) for *_, y in Stream(paths, torch.zeros(len(paths), dtype=torch.long), 2, workers=workers)))
except ValueError as e: print(e)
"""


@pytest.mark.skipif(os.name != "posix", reason="sockets with names in folders")
@pytest.mark.parametrize("more, workers", [(0, 2), (1, 2), (1, 0)])
def test_no_loader_waits_for_sockets_that_cannot_be(more, workers, tmp_path):
    """Images come from workers over sockets in the temporary folder, and the system limits their names."""
    from mix_research.loaders import LONGEST_TMP
    paths = [str(tmp_path / f"{i}.png") for i in range(3)]
    for path in paths: Image.new("RGB", (8, 8)).save(path)
    place = tempfile.mkdtemp(prefix="", suffix=(LONGEST_TMP + more - len(tempfile.gettempdir()) - 9) * "x")
    try:
        env = os.environ | dict(TMPDIR=place)
        command = [sys.executable, "-c", STREAM, str(workers), *paths]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
    finally: shutil.rmtree(place)
    refused = f"TMPDIR: expected a name of at most {LONGEST_TMP} bytes"
    assert done.stdout.startswith(refused) if more and workers else done.stdout == "3\n", done.stdout
