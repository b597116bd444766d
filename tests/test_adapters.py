"""Adapters where they are used: in worker processes of every kind, in timm, on batches as Hugging Face makes them."""
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from mix_research.adapters import as_collate, as_mixup_fn
from mix_research.mixers import CutMix, Mixup
from mix_research.randomix import RandoMix

STARTS = ("fork", "spawn", "forkserver")
multiprocessing.set_forkserver_preload(["torch", "mix_research.randomix"])  # else each of its workers imports them


class Same:
    """Every batch of eight holds the same images and labels, so that only the draws differ."""
    def __init__(self, batches): self.n = 8 * batches
    def __len__(self): return self.n
    def __getitem__(self, i): return torch.full((1, 4, 4), float(i % 4)), i % 4


def from_the_end(y, partner_y, generator): return torch.arange(len(y)).flip(0)


class Flipped(Mixup, key=""):
    """Mixup of what timm pairs, the first with the last, and one share for all."""
    def __init__(self, lam):
        super().__init__(pairing=from_the_end)
        self.lam = lam
    def share(self, n, x, generator): return torch.full((n,), 1 - self.lam, device=x.device)


class OwnGenerator:
    """A collate function that keeps a generator, as no worker should."""
    def __init__(self, seed): self.mixup_fn = as_mixup_fn(Mixup(), 4, torch.Generator().manual_seed(seed))
    def __call__(self, samples): return self.mixup_fn(*default_collate(samples))


def loader(start, persistent, collate, batches=6, workers=2, generator=None):
    return DataLoader(Same(batches), 8, collate_fn=collate, num_workers=workers, multiprocessing_context=start,
                      persistent_workers=persistent, generator=generator)


def epochs(loading, n):
    """Images and soft labels of n epochs, as bytes."""
    return [pickle.dumps((x.numpy(), y.numpy())) for _ in range(n) for x, y in loading]


@pytest.mark.parametrize("persistent", (False, True), ids=("new_workers", "persistent"))
@pytest.mark.parametrize("start", STARTS)
def test_every_batch_of_every_worker_and_epoch_draws_anew_and_the_same_again(start, persistent):
    def drawn(seed, n):
        loading = loader(start, persistent, as_collate(RandoMix(), 4), 6, 2, torch.Generator().manual_seed(seed))
        return epochs(loading, n)
    first = drawn(1, 2)
    assert len(first) == len(set(first)) == 12
    if start == "spawn" and not persistent: return  # a spawned process takes seconds to start
    assert drawn(1, 1) == first[:6]
    if start == "fork": assert not set(drawn(2, 2)) & set(first)


def test_torchs_own_seed_decides_where_the_loader_has_no_generator():
    def drawn(seed):
        torch.manual_seed(seed)
        return epochs(loader("fork", False, as_collate(Mixup(), 4)), 1)
    assert drawn(3) == drawn(3) != drawn(4)


@pytest.mark.parametrize("start", STARTS)
def test_a_generator_of_its_own_is_refused_in_a_worker(start):
    with pytest.raises(RuntimeError, match="generator: would repeat itself in every worker and epoch"):
        next(iter(loader(start, False, OwnGenerator(1), batches=1, workers=1)))
    assert OwnGenerator(1)([Same(1)[i] for i in range(4)])[1].shape == (4, 4)  # outside of a worker it draws


@pytest.mark.parametrize("start", STARTS)
def test_the_switch_reaches_workers_that_live_on(start):
    collate = as_collate(Flipped(.5), 4, smoothing=.2)
    loading = loader(start, True, collate, batches=1, workers=1)
    plain = torch.stack([x for x, _ in (Same(1)[i] for i in range(8))])
    assert not any(x.equal(plain) for x, _ in loading)
    collate.mixup_enabled = False
    for x, y in loading:
        assert x.equal(plain)
        torch.testing.assert_close(y, .8 * torch.eye(4).repeat(2, 1) + .05)
    collate.mixup_enabled = True
    assert not any(x.equal(plain) for x, _ in loading)


def test_a_copy_has_a_switch_of_its_own():
    fn = as_mixup_fn(Mixup(), 4)
    twin = pickle.loads(pickle.dumps(fn))
    twin.mixup_enabled = False
    assert fn.mixup_enabled and not twin.mixup_enabled


def test_bytes_are_rounded_and_a_paste_copies_them():
    x, y = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8), torch.arange(64)
    mixed, soft = as_mixup_fn(Mixup(per="batch"), 64)(x, y)
    own = soft[torch.arange(64), torch.arange(64)]
    partner = soft.clone().fill_diagonal_(0).argmax(1)
    lam = own[soft.gt(0).sum(1) == 2][0].item()  # of a sample that did not meet itself
    want = np.rint(lam * x.numpy().astype(np.float64) + (1 - lam) * x[partner].numpy())
    met = soft.gt(0).sum(1) == 2
    assert mixed.dtype == torch.uint8
    assert np.abs(mixed.numpy() - want)[met].max() <= 1  # where float32 falls on the other side of a half
    assert (mixed.numpy() != want)[met].mean() < 1e-2
    pasted, _ = as_mixup_fn(CutMix(), 64)(x, y)
    for i, r, c in ((0, 0, 0), (5, 3, 3), (9, 7, 7)):
        assert any(pasted[i, :, r, c].equal(v[:, r, c]) for v in x)


def test_labels_are_smoothed_as_timm_does():
    timm = pytest.importorskip("timm.data.mixup", reason="timm is not installed (extra speed)")
    x, y = torch.rand(8, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 4, 3, 0])
    for smoothing in (0., .1, .5):
        ours = as_mixup_fn(Flipped(.3), 5, smoothing=smoothing)
        theirs = timm.Mixup(label_smoothing=smoothing, num_classes=5)
        theirs._params_per_batch = lambda: (.3, False)
        for on in (True, False):
            ours.mixup_enabled = on
            if not on: theirs._params_per_batch = lambda: (1., False)
            (a, soft), (b, want) = ours(x, y), theirs(x.clone(), y)
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(soft, want)
            assert on or a.equal(x)


def test_bytes_are_mixed_as_timms_collate_does():
    timm = pytest.importorskip("timm.data.mixup", reason="timm is not installed (extra speed)")
    rng = np.random.default_rng(0)
    samples = [(rng.integers(0, 256, (3, 16, 16), dtype=np.uint8), i % 4) for i in range(8)]
    theirs = timm.FastCollateMixup(label_smoothing=.1, num_classes=4)
    theirs._params_per_batch = lambda: (.3137, False)
    (a, soft), (b, want) = as_collate(Flipped(.3137), 4, smoothing=.1)(samples), theirs(samples)
    assert a.dtype == b.dtype == torch.uint8 and a.equal(b)
    torch.testing.assert_close(soft, want)


class Bytes(Same):
    """As timm's data sets give images to its prefetching loader."""
    transform = None
    def __getitem__(self, i): return np.full((3, 8, 8), 60 * (i % 4), np.uint8), i % 4


def test_in_timms_prefetching_loader():
    pytest.importorskip("timm", reason="timm is not installed (extra speed)")
    from timm.data.loader import PrefetchLoader, fast_collate
    collate = as_collate(Flipped(.25), 4, collate=fast_collate, smoothing=.1)
    loading = DataLoader(Bytes(1), 4, collate_fn=collate, num_workers=1, multiprocessing_context="fork")
    for x, y in PrefetchLoader(loading, mean=(0, 0, 0), std=(1, 1, 1), device=torch.device("cpu")):
        torch.testing.assert_close(x[:, 0, 0, 0] * 255, torch.tensor([135., 105., 75., 45.]))
        torch.testing.assert_close(y[0], torch.tensor([.25, 0., 0., .75]) * .9 + .025)


def test_with_hugging_faces_collator():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    samples = [dict(pixel_values=torch.full((3, 8, 8), float(i)), label=i, image_id=10 + i) for i in range(4)]
    batch = as_collate(Flipped(.25), 4, collate=transformers.default_data_collator)(samples)
    assert batch["image_id"].tolist() == [10, 11, 12, 13] and set(batch) == {"pixel_values", "labels", "image_id"}
    torch.testing.assert_close(batch["labels"], .25 * torch.eye(4) + .75 * torch.eye(4).flip(0))
    torch.testing.assert_close(batch["pixel_values"][:, 0, 0, 0], torch.tensor([2.25, 1.75, 1.25, .75]))
