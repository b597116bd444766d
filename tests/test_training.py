"""Records: the same in one process or two, with fastai's own data, and on a GPU where there is one."""
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mix_research import data, models, readers
from mix_research.callback import MixCallback
from mix_research.randomix import RandoMix
from mix_research.train import Run, train

SMALL = dict(epochs=2, batch_size=50)
TRAIN = """
import json, sys
from mix_research.train import Run, train
run = Run.from_dict(json.loads(sys.argv[1]))
print(json.dumps(train(run).outcome))
"""


@pytest.mark.parametrize("method", ["baseline", "randomix", "fmix"])
def test_two_processes_give_the_same_record(method, tmp_path):
    run = Run(method=method, seed=3, pad=1, **SMALL)
    command = [sys.executable, "-c", TRAIN, json.dumps(run.asdict())]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    here = train(run).outcome
    assert json.loads(other.communicate()[0]) == json.loads(json.dumps(here))


def test_data_order_and_crops_do_not_depend_on_the_method():
    """Methods of one seed are paired: weights, order and augmentation are the same."""
    from mix_research.train import build_learner
    seen = []
    for method in ("baseline", "cutmix"):
        run = Run(method=method, seed=1, pad=1, **SMALL)
        learn = build_learner(run, data.load("digits"), torch.device("cpu"))
        batches = list(learn.dls.train)
        order = torch.cat([y for _, y in batches])
        crops = learn.augment.pipeline(batches[0][0], True, learn.augment.generator)
        seen.append((order, crops, next(learn.model.parameters()).clone()))
    assert all(torch.equal(a, b) for a, b in zip(*seen))


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_training():
    """Compiled, the same steps up to rounding: plain, mixed by the same draws, of SynerMix with batches of varying
    size, and bit for bit where nothing is compiled."""
    compiles = ("baseline", "cutmix", "randomix", "synermix")
    for method in (*compiles, "manifold_mixup"):
        run = dict(method=method, lr=.01, epochs=2, batch_size=30)
        plain, fast = (train(Run(compile=c, **run)) for c in (False, True))
        assert (plain.metrics["weights"] == fast.metrics["weights"]) == (method not in compiles), method
        for a, b in zip(plain.history, fast.history):
            assert abs(a["train_loss"] - b["train_loss"]) < 1e-3 and abs(a["loss"] - b["loss"]) < 1e-3, (method, a, b)


@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
def test_compiled_training_goes_on(tmp_path):
    """Interrupted after two of three epochs and taken up again, with network and mixing compiled: the weights of a run
    that was not, bit for bit."""
    run = Run(method="agmix", compile=True, lr=.05, epochs=3, batch_size=30)
    def stop(event):
        if event["event"] == "epoch" and event["epoch"] == 2: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): train(run, tmp_path, listener=stop)
    again = train(run, tmp_path)
    assert again.timing["resumed"] == 1 and again.metrics["weights"] == train(run).metrics["weights"]


@pytest.fixture
def image_folder(tmp_path):
    """120 digits as PNG files in class folders."""
    from PIL import Image
    d = data.load("digits")
    for part, x, y in (("train", d.x, d.y), ("test", d.test_x[:80], d.test_y[:80])):
        for i, (image, label) in enumerate(zip(x, y)):
            folder = tmp_path / "pngs" / part / str(int(label))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy()).save(folder / f"{i}.png")
    return tmp_path


def test_class_folders_train(image_folder):
    record = train(Run(dataset="folder:pngs", method="cutmix", **SMALL), data_path=image_folder)
    assert record.status == "ok" and record.history[-1]["epoch"] == 2


def test_fastai_data_block(image_folder):
    """A learner made the fastai way, with its typed tensors and batch transforms."""
    from fastai.vision.all import Learner, ImageDataLoaders, PILImageBW, accuracy
    how = dict(train="train", valid="test", bs=32, img_cls=PILImageBW, num_workers=0)
    dls = ImageDataLoaders.from_folder(image_folder / "pngs", **how)
    loss, mix = nn.CrossEntropyLoss(label_smoothing=.1), MixCallback(RandoMix(per="sample"))
    learn = Learner(dls, models.build("small", 10, 1), loss_func=loss, metrics=accuracy, cbs=mix)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(12, 1e-2)
    assert learn.recorder.values[-1][2] > .6 and learn.loss_func is loss


NO_FASHION = "Fashion-MNIST is not installed (Debian: dataset-fashion-mnist)"


@pytest.mark.skipif(not data.DEBIAN_FASHION_MNIST.exists(), reason=NO_FASHION)
def test_fashion_mnist(tmp_path):
    d = data.load("fashion_mnist", tmp_path)
    assert d.x.shape == (60_000, 1, 28, 28) and d.test_x.shape == (10_000, 1, 28, 28) and d.classes[0] == "T-shirt/top"
    assert torch.equal(torch.bincount(d.y), torch.full((10,), 6000)) and abs(d.pixel_stats()[0][0] - .2860) < 1e-3


def hashed_cifar(root, coarse):
    """A few images in CIFAR's own pickled format: their folder, and the hashes that torchvision would check."""
    import hashlib, pickle
    rng, md5 = np.random.default_rng(0), {}
    folder = root / ("cifar-100-python" if coarse else "cifar-10-batches-py")
    folder.mkdir()
    def write(name, content):
        blob = pickle.dumps(content)
        (folder / name).write_bytes(blob)
        md5[name] = hashlib.md5(blob).hexdigest()
    key = "fine_labels" if coarse else "labels"
    parts = ["train", "test"] if coarse else [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in parts: write(name, {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), key: list(range(10))})
    classes = [str(i) for i in range(100 if coarse else 10)]
    if coarse: write("meta", {"fine_label_names": classes})
    else: write("batches.meta", {"label_names": classes})
    return folder, md5


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_from_files(name, tmp_path, monkeypatch):
    import pickle
    from torchvision import datasets
    cls = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    folder, md5 = hashed_cifar(tmp_path, name == "cifar100")
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(cls, part, [[n, md5[n]] for n, _ in getattr(cls, part)])
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5[cls.meta["filename"]]})
    monkeypatch.delitem(readers.PUBLISHED, name)
    d = data.load(name, tmp_path)
    first = pickle.loads((folder / cls.train_list[0][0]).read_bytes())["data"][0]
    assert np.array_equal(d.x[0].numpy(), first.reshape(3, 32, 32))
    assert d.n_classes == len(d.classes) and len(d.test_x) == 10
    next(p for p in folder.iterdir() if "test" in p.name).write_bytes(b"damaged")
    data._load.cache_clear()
    with pytest.raises(data.DataNotFound, match="no complete data set in"): data.load(name, tmp_path)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_gpu_training(precision):
    run = Run(method="randomix", precision=precision, epochs=15, batch_size=20, lr=.05, pad=1)
    record = train(run, device="cuda")
    assert record.status == "ok" and record.metrics["top1"] > .7 and record.environment["device"] == "cuda"


@pytest.mark.gpu
def test_gpu_mixers_do_not_wait():
    from test_oracles import MIXER_NAMES, made
    x, y = torch.rand(64, 3, 32, 32, device="cuda"), torch.arange(64, device="cuda") % 10
    for name in MIXER_NAMES:
        mixer = made(name)
        for generator in (None, torch.Generator("cuda").manual_seed(0)):
            mixer(x, y, generator=generator)
            torch.cuda.set_sync_debug_mode("error")
            try: mixed, target = mixer(x, y, generator=generator)  # raises where it would wait
            finally: torch.cuda.set_sync_debug_mode("default")
            assert mixed.isfinite().all() and mixed.shape == x.shape, name
            assert 0 <= target.lam.min() and target.lam.max() <= 1, name


@pytest.mark.gpu
def test_gpu_compiled_mixers():
    """Compiled on the GPU, where MiAMix and ResizeMix compile too: the same draws, and the same images but for a few
    pixels at edges."""
    from mix_research.compiled import Compiled
    from mix_research.mixers import build
    from mix_research.speed import OWN
    x, y = torch.rand(64, 3, 32, 32, device="cuda"), torch.arange(64, device="cuda") % 10
    for name in OWN:
        mixer = build(name)
        fast = Compiled(mixer)
        g, twin = (torch.Generator("cuda").manual_seed(1) for _ in range(2))
        for _ in range(3):
            (a, s), (b, t) = mixer(x, y, generator=g), fast(x, y, generator=twin)
            assert torch.equal(s.index, t.index) and torch.equal(g.get_state(), twin.get_state()), name
            assert (s.lam - t.lam).abs().max() < 1e-2 and ((a - b).abs() > 1e-3).float().mean() < .01, name


WATCHED = [
    dict(),
    dict(method="cutmix"),
    dict(method="miamix"),
    dict(method="lmix"),
    dict(method="synermix"),
    dict(method="manifold_mixup"),
    dict(precision="bfloat16"),
    dict(compile=True),
    dict(method="synermix", compile=True),
    dict(compile=True, cuda_graphs=True),
    dict(method="cutmix", compile=True),
    dict(method="resizemix", compile=True),
    dict(method="fmix", compile=True),
    dict(method="miamix", compile=True),
]


@pytest.mark.gpu
@pytest.mark.parametrize("how", WATCHED, ids=str)
def test_gpu_steps_do_not_wait(how):
    """From the second epoch on, when all is compiled and cached, no step asks the device for anything."""
    from fastai.callback.core import Callback
    from mix_research.train import build_learner
    class Watch(Callback):
        run_valid = False
        def __init__(self, order, event, mode):
            self.order = order
            setattr(self, event, lambda: torch.cuda.set_sync_debug_mode(mode if self.epoch else "default"))
    run = Run(epochs=3, batch_size=50, lr=.05, pad=1, **how)
    learn = build_learner(run, data.load("digits"), torch.device("cuda"))
    learn.add_cbs([Watch(-100, "before_batch", "error"), Watch(100, "after_batch", "default")])
    try: learn.fit(3)
    finally: torch.cuda.set_sync_debug_mode("default")
    history = learn.progress.history
    assert len(history) == 3 and history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.gpu
def test_gpu_runs_side_by_side(tmp_path):
    from mix_research.study import Study, train_all
    methods = ["baseline", "mixup", "cutmix"]
    s = Study("randomix/table_1", "smoke", seeds=[0], methods=methods, records=tmp_path)
    assert not train_all([s], device="cuda", progress=False, jobs=3)
    found = s.records().values()
    assert len(found) == 3 and all(r.environment["device"] == "cuda" and r.metrics["top1"] > .9 for r in found)
