"""Other libraries as oracles, and properties that no notebook shows."""
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import v2

from mix_research import masks
from mix_research.mix import Mix
from mix_research.mixers import MIXERS, FeatureMixer, build

SHAPE = (9, 3, 20, 28)


def neighbour(n): return torch.arange(n).roll(1)  # torchvision's partner: the sample before


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    return torch.rand(SHAPE), torch.arange(9)


@pytest.mark.parametrize("seed", range(20))
def test_mixup_equals_torchvision(batch, seed):
    x, y = batch
    theirs = v2.MixUp(num_classes=9, alpha=.8)
    torch.manual_seed(seed)
    lam = theirs.make_params([x])["lam"]
    torch.manual_seed(seed)
    want_x, want_y = theirs(x, y)
    w, l = masks.linear(torch.full((9,), 1 - lam), SHAPE[2:])
    mix = Mix(neighbour(9), w, l)
    assert torch.allclose(mix.blend(x), want_x, atol=1e-6)
    assert torch.allclose(mix.target(y).soft(9), want_y, atol=1e-6)


@pytest.mark.parametrize("seed", range(50))
def test_cutmix_equals_torchvision(batch, seed):
    x, y = batch
    theirs = v2.CutMix(num_classes=9)
    torch.manual_seed(seed)
    lam, cx, cy = float(theirs._dist.sample(())), torch.randint(SHAPE[3], (1,)), torch.randint(SHAPE[2], (1,))
    torch.manual_seed(seed)
    want_x, want_y = theirs(x, y)
    centre = torch.cat([cy, cx])[None].float()
    w, l = masks.box(torch.tensor([1 - lam]), SHAPE[2:], centre)
    mix = Mix(neighbour(9), w, l.expand(9))
    assert torch.equal(mix.blend(x), want_x)
    assert torch.allclose(mix.target(y).soft(9), want_y, atol=1e-6)


class Recorder(TorchDispatchMode):
    """Every operation that reaches the dispatcher; complains about one that would wait for a device."""
    WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal",
             "aten._unique2", "aten.unique_dim")

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        if name.startswith(self.WAITS) and any(isinstance(a, torch.Tensor) and a.device.type == "meta" for a in args):
            raise AssertionError(f"{name} would wait for the device")
        self.ops.append(name)
        if name.startswith(("aten._standard_gamma", "aten._sample_dirichlet")) and args[0].device.type == "meta":
            return torch.empty_like(args[0])  # one kernel on a GPU; torch has none for the meta device
        return func(*args, **(kwargs or {}))


MIXER_NAMES = [n for n in sorted(MIXERS) if MIXERS[n].__module__.startswith("mix_research.")]


def made(name):
    """A mixer, as a function of a batch: RandoMix with every candidate in it, feature-level mixers at the input of a
    network that does nothing."""
    options = {"per": "sample"} if name == "randomix" else {}
    if not issubclass(MIXERS[name], FeatureMixer): return build(name, **options)
    mixer, nothing = build(name, places=["input"]), torch.nn.Identity()

    def mix(x, y, generator=None):
        with mixer.at(nothing, x, y, generator=generator) as mixing: out = nothing(x)
        return out, mixing.target
    return mix


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_no_loop_over_samples(name):
    """The number of operations does not depend on the batch size."""
    mixer, counts = made(name), []
    for n in (600, 600, 1800):  # the first call fills caches; a small batch may take another way
        torch.manual_seed(0)
        with Recorder() as r: mixer(torch.rand(n, 3, 24, 24), torch.arange(n) % 3)
        counts.append(len(r.ops))
    assert counts[2] <= counts[1] + 2, "a little slack for choices made on the host"


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_nothing_waits_for_the_device(name):
    """On the meta device there are no values: whatever asks for one fails."""
    x, y = torch.empty(16, 3, 24, 24, device="meta"), torch.empty(16, dtype=torch.long, device="meta")
    mixer = made(name)
    with Recorder():
        mixed, target = mixer(x, y)
        loss = target.loss(F.cross_entropy, torch.empty(16, 10, device="meta"))
    assert mixed.shape == x.shape and mixed.device.type == "meta" and loss.device.type == "meta"


@pytest.mark.parametrize("name", MIXER_NAMES)
def test_default_dtype_changes_nothing(name):
    """Some programs set float64 for everything; images, masks and shares stay what they are."""
    mixer, x, y, found = made(name), torch.rand(8, 3, 16, 16, dtype=torch.float32), torch.arange(8) % 3, []
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            torch.manual_seed(0)
            found.append(mixer(x, y))
        finally: torch.set_default_dtype(torch.float32)
    (a, s), (b, t) = found
    assert a.equal(b) and s.lam.equal(t.lam) and s.lam.dtype == a.dtype == torch.float32


@pytest.mark.parametrize("name", ["cutmix", "fmix"])
def test_constants_of_many_lengths_do_not_pile_up(name):
    """Sound of another length with each batch: what is remembered for a length goes when others come."""
    mixer = build(name)
    for length in range(20_000, 23_000, 160): mixer.draw(torch.rand(2, 1, length))
    for made in (getattr(f, "made", {}) for f in vars(masks).values()):
        *earlier, last = [sum(t.nbytes for t in (v if isinstance(v, list) else [v])) for v in made.values()] or [0]
        assert sum(earlier) <= masks.REMEMBERED


def test_importing_mixers_imports_nothing_slow():
    import subprocess, sys
    code = "import mix_research.mixers, sys; sys.exit(bool({'fastai', 'pandas', 'torch._dynamo'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
