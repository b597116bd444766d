"""`target.loss` for losses of every kind: a loop over samples, written here, gives the same, or one line refuses."""
import functools
import math
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from fastai import losses as fastai_losses
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import sigmoid_focal_loss

from mix_research import targets
from mix_research.compiled import Compiled
from mix_research.mixers import MIXERS, FeatureMixer, build
from mix_research.targets import Target

N, K = 6, 4
WEIGHT = torch.tensor([1., 2., 5., .5])
PRIOR = torch.tensor([.4, .3, .2, .1])
ERRORS = (ValueError, TypeError, RuntimeError)
WAYS = ("reduction", "per=", "soft(", "pairs", "y_own", "float", "long")


@pytest.fixture(autouse=True)
def nothing_known():
    """Each test meets every loss for the first time."""
    targets.PLANS.clear()


# Losses as people write them

def focal(p, y, gamma=2., reduction="mean"):
    ce = F.cross_entropy(p, y, reduction="none")
    loss = (1 - (-ce).exp()) ** gamma * ce
    return loss if reduction == "none" else getattr(loss, reduction)()

def required(p, y, reduction): return F.cross_entropy(p, y, reduction=reduction)
def ignores_reduction(p, y, reduction="mean"): return F.cross_entropy(p, y, reduction="sum")

def focal_of_the_mean(p, y):
    ce = F.cross_entropy(p, y)
    return (1 - (-ce).exp()) ** 2 * ce

def focal_of_a_number(p, y):
    ce = F.cross_entropy(p, y)
    return (1 - math.exp(-ce.item())) ** 2 * ce

def focal_without_gradient(p, y):
    ce = F.cross_entropy(p, y, reduction="none")
    with torch.no_grad(): factor = (1 - (-ce.mean()).exp()) ** 2
    return factor * ce.mean()

def flooded_by_if(p, y):
    ce = F.cross_entropy(p, y)
    return 3 - ce if ce < 1.5 else ce

def product(p, y):
    both = torch.zeros(2)
    both[0], both[1] = F.cross_entropy(p, y), 1 - p.softmax(1)[torch.arange(len(y)), y].mean()
    return both.prod()

def focal_by_gather(p, y):
    log = p.log_softmax(1).gather(1, y[:, None])[:, 0]
    return (-WEIGHT[y] * (1 - log.exp()) ** 2 * log).mean()

def masked_mean(p, y, eps=None):
    keep = (y != 255).float()
    loss = F.cross_entropy(p, y.clamp(max=K - 1), reduction="none")
    count = keep.sum().clamp(min=1) if eps is None else keep.sum() + eps
    return (loss * keep).sum() / count

def indexed(p, y):
    keep = y != 255
    return F.cross_entropy(p[keep], y[keep])

def ordinal(p, y):
    levels = (torch.arange(K, device=y.device) < y[:, None]).to(p.dtype)
    return F.binary_cross_entropy_with_logits(p, levels)

def evidential(p, y):
    alpha = F.softplus(p) + 1
    total = alpha.sum(1, keepdim=True)
    return (F.one_hot(y, K) * (total.log() - alpha.log())).sum(1).mean()

def symmetric(p, y):
    wrong = -(p.softmax(1) * F.one_hot(y, K).clamp(min=1e-4).log()).sum(1).mean()
    return F.cross_entropy(p, y) + .5 * wrong

def dice(p, y):
    q, t = p.softmax(1), F.one_hot(y, K).movedim(-1, 1)
    over = [0, *range(2, p.ndim)]
    return 1 - ((2 * (q * t).sum(over) + 1) / ((q + t).sum(over) + 1)).mean()

def triplet(p, y, margin=.3):
    far, same = torch.cdist(p, p), y[:, None] == y[None]
    hardest = (far * same).amax(1) - far.masked_fill(same, 1e4).amin(1)
    return (hardest + margin).relu().mean()

def supervised_contrastive(p, y):
    z = F.normalize(p)
    off = 1 - torch.eye(len(z))
    log = (z @ z.T / .1).masked_fill(off == 0, -1e4).log_softmax(1)
    same = (y[:, None] == y[None]) * off
    return -((log * same).sum(1) / same.sum(1).clamp(min=1)).mean()

def in_batch_negatives(p, y):
    return F.cross_entropy(p @ torch.eye(K)[y].T, torch.arange(len(p)))

def hardest_half(p, y): return F.cross_entropy(p, y, reduction="none").topk(len(y) // 2).values.mean()

def balanced_in_batch(p, y):
    count = F.one_hot(y, K).sum(0)
    return F.cross_entropy(p, y, weight=1. / count.clamp(min=1))

class Wrapped(nn.Module):
    def __init__(self, inner, scale=1.):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, p, y): return self.scale * self.inner(p, y)

class Misnamed(nn.Module):
    """Says that it is a mean, and sums."""
    reduction = "mean"

    def forward(self, p, y): return F.cross_entropy(p, y, reduction="sum")

class Penalised(nn.CrossEntropyLoss):
    def forward(self, p, y): return super().forward(p, y) + .1 * p.square().mean()

class Doubled(nn.CrossEntropyLoss):
    """Has a reduction of its own after that of its base."""
    def forward(self, p, y): return 2 * super().forward(p, y).sum()

class Angular(nn.Module):
    """ArcFace (`angle`) and CosFace: a loss with weights that learn."""
    def __init__(self, angle=True):
        super().__init__()
        self.angle, self.weight = angle, nn.Parameter(torch.linspace(-1, 1, K * K).sin().view(K, K))

    def forward(self, p, y):
        cosine = F.linear(F.normalize(p), F.normalize(self.weight)).clamp(-.999, .999)
        margined = (cosine.acos() + .2).cos() if self.angle else cosine - .2
        return F.cross_entropy(8 * torch.where(F.one_hot(y, K).bool(), margined, cosine), y)

class Centres(Angular):
    def forward(self, p, y): return (p - self.weight[y]).square().sum(1).mean()

class LabelSmoothing(nn.Module):
    def __init__(self, smoothing=.1):
        super().__init__()
        self.smoothing = smoothing

    def forward(self, p, y):
        log = p.log_softmax(-1)
        likelihood = log.gather(-1, y.unsqueeze(1)).squeeze(1)
        return -((1 - self.smoothing) * likelihood + self.smoothing * log.mean(-1)).mean()

class BinaryOfClasses(nn.Module):
    """Binary cross entropy that makes its own one-hot labels of classes."""
    def forward(self, p, y):
        if y.shape != p.shape: y = torch.full_like(p, .05).scatter_(1, y.view(-1, 1).long(), .9)
        return F.binary_cross_entropy_with_logits(p, y)

class WarmUp:
    def __init__(self): self.step = 0

    def __call__(self, p, y):
        self.step += 1
        return min(1., self.step / 5) * F.cross_entropy(p, y)

class RunningMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.ones(()))

    def forward(self, p, y):
        loss = F.cross_entropy(p, y, reduction="none")
        self.mean = .9 * self.mean + .1 * loss.detach().mean()
        return (loss / self.mean).mean()

class Trainer:
    """Its bound methods are made anew whenever they are asked for."""
    def __init__(self): self.history, self.weight = [], WEIGHT.clone()

    def loss(self, p, y): return F.cross_entropy(p, y, self.weight)
    def plain(self, p, y): return F.cross_entropy(p, y)

    def logged(self, p, y):
        loss = F.cross_entropy(p, y)
        self.history.append(loss.item())
        return loss

@torch.jit.script
def scripted(p: torch.Tensor, y: torch.Tensor) -> torch.Tensor: return F.cross_entropy(p, y)

def compiled(f): return torch.compile(f, backend="eager")

class ByHand(torch.autograd.Function):
    """Reduces where autograd does not look, and gives its own gradient."""
    @staticmethod
    def forward(ctx, p, y):
        ctx.save_for_backward(p, y)
        return (p.logsumexp(1) - p.gather(1, y[:, None])[:, 0]).mean()

    @staticmethod
    def backward(ctx, grad):
        p, y = ctx.saved_tensors
        return grad * (p.softmax(1) - torch.eye(K)[y]) / len(y), None

# What one sample, with one label, contributes; nothing here calls the losses above

def nll(p, y): return p.logsumexp(0) - p[y]
def smooth(p, y, s=.1): return (1 - s) * nll(p, y) + s * (p.logsumexp(0) - p.mean())
def weighted(p, y): return WEIGHT[y] * nll(p, y)
def weight(y): return float(WEIGHT[y])
def smooth_weighted(p, y): return .9 * weighted(p, y) + .1 / K * (WEIGHT * (p.logsumexp(0) - p)).sum()
def focal_term(p, y): return (1 - (p - p.logsumexp(0)).exp()[y]) ** 2 * nll(p, y)
def focal_weighted_first(p, y): return (1 - (-weighted(p, y)).exp()) ** 2 * weighted(p, y)
def one(y): return 1.
def hot(y): return torch.eye(K)[y]
def binary(p, t): return (F.softplus(p) - p * t).mean()
def margin(p, y): return sum((1 - p[y] + p[j]).relu() for j in range(K) if j != y) / K
def brier(p, y): return (p.softmax(0) - hot(y)).square().mean()
def evidence(p, y): return ((F.softplus(p) + 1).sum().log() - (F.softplus(p) + 1)[y].log())


def symmetric_term(p, y):
    others = sum(p.softmax(0)[j] for j in range(K) if j != y)
    return nll(p, y) - .5 * math.log(1e-4) * others


def angular_term(angle):
    def term(p, y):
        cosine = F.linear(F.normalize(p, dim=0), F.normalize(Angular().weight.detach()).to(p.dtype)).clamp(-.999, .999)
        moved = (cosine.acos() + .2).cos() if angle else cosine - .2
        return nll(8 * torch.where(hot(y) > 0, moved, cosine), y)
    return term


def but(void, term=nll): return lambda p, y: 0 * p.sum() if y == void else term(p, y)
def kept(void, share=one): return lambda y: 0. if y == void else share(y)
def times(k, term=nll): return lambda p, y: k * term(p, y)
def penalty(p, y): return .1 * p.square().mean()
def plus_penalty(p, y): return nll(p, y) + penalty(p, y)
def count_term(p, y): return p[0].exp() - y * p[0]


# Sample by sample: the sum of terms over the sum of shares

def each(f, y, other, lam):
    return [l * f(i, int(y[i])) + (1 - l) * f(i, int(other[i])) for i, l in enumerate(lam.tolist())]


def none(term, share=None):
    return lambda p, y, other, lam: torch.stack(each(lambda i, label: term(p[i], label), y, other, lam))


def total(term, share=None): return lambda *args: none(term)(*args).sum()


def mean(term, share=one):
    shares = lambda *labels: sum(each(lambda i, label: share(label), *labels))
    return lambda p, *labels: total(term)(p, *labels) / shares(*labels)


OVER = {"mean": mean, "sum": total, "none": none, "parts": lambda term, share: term}
CASES, PARTS = {}, ("tuple", "dict")


def case(name, make, term=nll, share=one, over="mean", void=None, sure=True, dtype=torch.float32, width=K, holds=False):
    """`make` gives a fresh loss; no `term`: not to be taken apart; `sure`: must give a value; `holds`: has a state."""
    assert name not in CASES
    CASES[name] = SimpleNamespace(name=name, make=make, term=term, share=share, over=over, void=void, dtype=dtype,
                                  width=width, holds=holds, sure=sure and term is not None)


def same(f): return lambda: f
def ce(**kwargs): return lambda: functools.partial(F.cross_entropy, **kwargs)
def module(**kwargs): return lambda: nn.CrossEntropyLoss(**kwargs)


case("function", same(F.cross_entropy))
case("function, -100", same(F.cross_entropy), but(-100), kept(-100), void=-100)
case("partial, sum", ce(reduction="sum"), over="sum")
case("partial, none", ce(reduction="none"), over="none")
case("partial, none, -100", ce(reduction="none"), but(-100), over="none", void=-100)
case("partial, smoothing", ce(label_smoothing=.1), smooth)
case("partial, weights", ce(weight=WEIGHT), weighted, weight)
case("partial, weights, sum", ce(weight=WEIGHT, reduction="sum"), weighted, over="sum")
case("partial, weights, none", ce(weight=WEIGHT, reduction="none"), weighted, over="none")
case("partial, 255", ce(ignore_index=255), but(255), kept(255), void=255)
ALL = dict(weight=WEIGHT, ignore_index=255, label_smoothing=.1)
case("partial, all", ce(**ALL), but(255, smooth_weighted), kept(255, weight), void=255)
case("partial of partial", lambda: functools.partial(ce(weight=WEIGHT)(), reduction="mean"), weighted, weight)
case("module", module())
case("module, -100", module(), but(-100), kept(-100), void=-100)
case("module, sum", module(reduction="sum"), over="sum")
case("module, none", module(reduction="none"), over="none")
case("module, weights", module(weight=WEIGHT), weighted, weight)
case("module, weights, -100", module(weight=WEIGHT), but(-100, weighted), kept(-100, weight), void=-100)
case("module, all", module(**ALL), but(255, smooth_weighted), kept(255, weight), void=255)
case("module, smoothing, -100", module(label_smoothing=.1), but(-100, smooth), kept(-100), void=-100)
case("NLLLoss", nn.NLLLoss, lambda p, y: -p[y])
case("NLLLoss, weights", lambda: nn.NLLLoss(WEIGHT), lambda p, y: -WEIGHT[y] * p[y], weight)
case("NLLLoss, 255", lambda: nn.NLLLoss(ignore_index=255), but(255, lambda p, y: -p[y]), kept(255), void=255)
case("MultiMarginLoss", nn.MultiMarginLoss, margin)
case("MultiMarginLoss, weights", lambda: nn.MultiMarginLoss(weight=WEIGHT), lambda p, y: WEIGHT[y] * margin(p, y))
case("bfloat16", module(), dtype=torch.bfloat16)
case("float64", same(F.cross_entropy), dtype=torch.float64)
case("float64, weights", lambda: nn.CrossEntropyLoss(WEIGHT.double()), weighted, weight, dtype=torch.float64)

case("lambda", same(lambda p, y: F.cross_entropy(p, y)))
case("closure, weights", same(lambda p, y: F.cross_entropy(p, y, WEIGHT)), weighted, weight, sure=False)
case("closure, -100", same(lambda p, y: F.cross_entropy(p, y)), but(-100), kept(-100), void=-100, sure=False)
case("closure, 255", same(lambda p, y: F.cross_entropy(p, y, ignore_index=255)), but(255), kept(255), void=255,
     sure=False)
case("closure, sum", same(lambda p, y: F.cross_entropy(p, y, reduction="sum")), over="sum")
case("closure, none", same(lambda p, y: F.cross_entropy(p, y, reduction="none")), over="none")
case("closure, float()", same(lambda p, y: F.cross_entropy(p.float(), y)), dtype=torch.bfloat16)
case("sum by default", same(lambda p, y, reduction="sum": F.cross_entropy(p, y, reduction=reduction)), over="sum")
case("sum, required", lambda: functools.partial(required, reduction="sum"), over="sum")
case("reduction is ignored", same(ignores_reduction), over="sum", sure=False)
case("any keyword", same(lambda p, y, **kwargs: F.cross_entropy(p, y, WEIGHT)), weighted, weight, sure=False)
case("cross entropy * 2", same(lambda p, y: 2 * F.cross_entropy(p, y)), times(2))
case("cross entropy / 3", same(lambda p, y: F.cross_entropy(p, y) / 3), times(1 / 3))
case("with a penalty", same(lambda p, y: F.cross_entropy(p, y) + .1 * p.square().mean()), plus_penalty)
case("two means", same(lambda p, y: F.cross_entropy(p, y, WEIGHT) + F.cross_entropy(p, y)),
     lambda *args: mean(weighted, weight)(*args) + mean(nll)(*args), over="parts", sure=False)
case("log likelihood", same(lambda p, y: -p.log_softmax(1)[torch.arange(len(y)), y].mean()))
case("gathered", same(lambda p, y: -p.log_softmax(1).gather(1, y[:, None]).sum() / len(y)))
case("nll of log_softmax", same(lambda p, y: F.nll_loss(p.log_softmax(1), y)))
case("batchmean", same(lambda p, y: F.kl_div(p.log_softmax(1), F.one_hot(y, K).to(p), reduction="batchmean")))
case("Brier", same(lambda p, y: F.mse_loss(p.softmax(1), F.one_hot(y, K).to(p))), brier)
case("logit-adjusted", same(lambda p, y: F.cross_entropy(p + PRIOR.log(), y)), lambda p, y: nll(p + PRIOR.log(), y))
case("Poisson", same(lambda p, y: F.poisson_nll_loss(p[:, 0], y)), count_term, width=1)
case("ordinal", same(ordinal), lambda p, y: binary(p, torch.tensor([float(k < y) for k in range(K)])))
case("evidential", same(evidential), evidence)
case("symmetric", same(symmetric), symmetric_term)
case("sigmoid_focal_loss", same(lambda p, y: sigmoid_focal_loss(p, F.one_hot(y, K).to(p), reduction="mean")),
     lambda p, y: sigmoid_focal_loss(p, hot(y).to(p)).mean())
case("focal", same(focal), focal_term)
case("focal, sum", lambda: functools.partial(focal, reduction="sum"), focal_term, over="sum")
case("focal by gather", same(focal_by_gather), lambda p, y: WEIGHT[y] * focal_term(p, y))
case("focal of the mean", same(focal_of_the_mean), None)
case("focal of a number", same(focal_of_a_number), None)
case("focal without gradient", same(focal_without_gradient), None)
case("flooded by if", same(flooded_by_if), None)
case("product", same(product), None)
case("mean(0)", same(lambda p, y: F.cross_entropy(p, y, reduction="none").mean(0)))
case("mean(dim=0)", same(lambda p, y: F.cross_entropy(p, y, reduction="none").mean(dim=0)))
case("sum(1).mean(0)", same(lambda p, y: -(F.one_hot(y, K) * p.log_softmax(1)).sum(1).mean(0)))
case("sum(0) / B", same(lambda p, y: F.cross_entropy(p, y, reduction="none").sum(0) / len(y)))
case("masked mean", same(masked_mean), but(255), kept(255), void=255, sure=False)
case("masked mean + eps", same(functools.partial(masked_mean, eps=1e-7)), but(255), kept(255), void=255, sure=False)
case("boolean index", same(indexed), but(255), kept(255), void=255, sure=False)
case("dice", same(dice), None)
case("triplet", same(triplet), None)
case("contrastive", same(supervised_contrastive), None)
case("in-batch negatives", same(in_batch_negatives), None)
case("hardest half", same(hardest_half), None)
case("balanced in the batch", same(balanced_in_batch), None)
case("root of the mean", same(lambda p, y: F.cross_entropy(p, y).sqrt()), None)
case("exp of the mean", same(lambda p, y: F.cross_entropy(p, y).exp()), None)
case("flooded", same(lambda p, y: (F.cross_entropy(p, y) - 2).abs() + 2), None)

case("wrapped module", lambda: Wrapped(nn.CrossEntropyLoss()))
case("wrapped, weights", lambda: Wrapped(nn.CrossEntropyLoss(WEIGHT), 2.), times(2, weighted), weight, sure=False)
case("wrapped, sum", lambda: Wrapped(Wrapped(nn.CrossEntropyLoss(reduction="sum"))), over="sum")
case("misnamed", Misnamed, over="sum", sure=False)
case("penalised", Penalised, plus_penalty, sure=False)
case("penalised, weights", lambda: Penalised(WEIGHT),
     lambda *args: mean(weighted, weight)(*args) + mean(penalty)(*args), over="parts", sure=False)
case("doubled", Doubled, times(2), sure=False)
case("ArcFace", Angular, angular_term(True))
case("CosFace", lambda: Angular(angle=False), angular_term(False))
case("centres", Centres, lambda p, y: (p - Centres().weight.detach()[y]).square().sum())
case("label smoothing", LabelSmoothing, smooth)
case("binary of classes", BinaryOfClasses, lambda p, y: binary(p, .05 + .85 * hot(y)))
case("warm-up", WarmUp, None, holds=True)
case("running mean", RunningMean, None, holds=True)
case("bound method", lambda: Trainer().plain)
case("bound method, weights", lambda: Trainer().loss, weighted, weight, sure=False)
case("logged", lambda: Trainer().logged, sure=False)
case("tuple", same(lambda p, y: (F.cross_entropy(p, y), p.square().mean())),
     lambda *args: (mean(nll)(*args), 10 * mean(penalty)(*args)), over="parts", sure=False)
case("dict", same(lambda p, y: {"mean": F.cross_entropy(p, y, WEIGHT), "all": F.cross_entropy(p, y, reduction="none")}),
     lambda *args: (mean(weighted, weight)(*args), none(nll)(*args)), over="parts", sure=False)
case("gradient by hand", same(lambda p, y: ByHand.apply(p, y)), sure=False)
case("bfloat16, then float()", same(lambda p, y: F.cross_entropy(p, y).float()), dtype=torch.bfloat16, sure=False)
case("scripted", same(scripted), sure=False)
case("scripted, -100", same(scripted), but(-100), kept(-100), void=-100, sure=False)
case("scripted, weights", lambda: torch.jit.script(nn.CrossEntropyLoss(WEIGHT)), weighted, weight, sure=False)
case("compiled", lambda: compiled(lambda p, y: F.cross_entropy(p, y)), sure=False)
case("compiled, weights", lambda: compiled(nn.CrossEntropyLoss(WEIGHT)), weighted, weight, sure=False)
case("fastai", fastai_losses.CrossEntropyLossFlat)
case("fastai, weights", lambda: fastai_losses.CrossEntropyLossFlat(weight=WEIGHT), weighted, weight)
case("fastai, -100", fastai_losses.CrossEntropyLossFlat, but(-100), kept(-100), void=-100)
case("fastai, sum", lambda: fastai_losses.CrossEntropyLossFlat(reduction="sum"), over="sum")
case("fastai, none", lambda: fastai_losses.CrossEntropyLossFlat(reduction="none"), over="none")
case("fastai, smoothing", fastai_losses.LabelSmoothingCrossEntropy, smooth)
case("fastai, smoothing, flat", fastai_losses.LabelSmoothingCrossEntropyFlat, smooth)
case("fastai, focal", fastai_losses.FocalLoss, focal_term)
case("fastai, focal, weights", lambda: fastai_losses.FocalLossFlat(weight=WEIGHT), focal_weighted_first)
case("fastai, dice of the batch", lambda: fastai_losses.DiceLoss(square_in_union=True), None)
case("fastai, dice", fastai_losses.DiceLoss, lambda p, y: 1 - p.softmax(0)[y], sure=False)  # its union is always 2 B

# Labels that are numbers: name -> loss, shape of labels

NUMBERS = {
    "mse": (F.mse_loss, (N, 2)),
    "mse, sum": (nn.MSELoss(reduction="sum"), (N, 3)),
    "l1 of (B,)": (F.l1_loss, (N,)),
    "huber": (nn.HuberLoss(), (N,)),
    "poisson": (nn.PoissonNLLLoss(), (N,)),
    "binary": (nn.BCEWithLogitsLoss(), (N, K)),
    "binary of (B,)": (F.binary_cross_entropy_with_logits, (N,)),
    "binary, none": (nn.BCEWithLogitsLoss(reduction="none"), (N, K)),
    "pos_weight": (nn.BCEWithLogitsLoss(pos_weight=WEIGHT), (N, K)),
    "multi-label margin": (nn.MultiLabelSoftMarginLoss(), (N, K)),
    "focal": (functools.partial(sigmoid_focal_loss, reduction="sum"), (N, K)),
    "soft": (F.cross_entropy, (N, K)),
    "soft, weights": (nn.CrossEntropyLoss(WEIGHT), (N, K)),
    "soft, by hand": (lambda p, y: -(y * p.log_softmax(-1)).sum(-1).mean(), (N, K)),
    "kl": (nn.KLDivLoss(reduction="batchmean"), (N, K)),
    "points": (nn.SmoothL1Loss(), (N, 5, 2)),
    "heatmaps": (F.mse_loss, (N, 2, 4, 3)),
    "cosine": (lambda p, y: -F.cosine_similarity(p, y).mean(), (N, K)),
    "correlation": (lambda p, y: 1 - torch.corrcoef(torch.stack([p, y]))[0, 1], (N,)),
    "two parts": (lambda p, y: (F.mse_loss(p, y), F.l1_loss(p, y)), (N, 2)),
    "fastai, mse": (fastai_losses.MSELossFlat(), (N, 2)),
    "fastai, l1": (fastai_losses.L1LossFlat(), (N,)),
    "fastai, binary": (fastai_losses.BCEWithLogitsLossFlat(), (N, K)),
}

# Dense labels: name -> loss of (B, K, *S) and (B, *S)

DENSE = {
    "function": F.cross_entropy,
    "module": nn.CrossEntropyLoss(),
    "255": nn.CrossEntropyLoss(ignore_index=255),
    "closure, 255": lambda p, y: F.cross_entropy(p, y, WEIGHT, ignore_index=255),
    "none": nn.CrossEntropyLoss(reduction="none"),
    "weights, sum": nn.CrossEntropyLoss(WEIGHT, reduction="sum"),
    "fastai": fastai_losses.CrossEntropyLossFlat(axis=1),
    "with dice": lambda p, y: F.cross_entropy(p, y) + dice(p, y),
}


def leaves(value):
    if isinstance(value, dict): return list(value.values())
    return list(value) if isinstance(value, tuple) else [value]


def check_line(error):
    text = str(error)
    said = f"{type(error).__name__}: {text}"
    assert "\n" not in text and 20 < len(text) <= 300, said
    assert any(way in text for way in WAYS), said


def outcome(f, pred):
    """Values and gradients of what `f` returns, or None after one line that names a way out."""
    try: values = leaves(f(pred))
    except ERRORS as error:
        check_line(error)
        return None
    grads = [torch.autograd.grad(v.sum(), pred, retain_graph=True)[0] for v in values]
    return [v.detach() for v in values], grads


def close(got, want, dtype, exact=False):
    assert len(got[0]) == len(want[0])
    for g, w in zip(got[0] + got[1], want[0] + want[1]):
        assert g.shape == w.shape and (not exact or g.dtype == w.dtype)
        tolerance = {torch.bfloat16: 2e-2, torch.float32: 2e-5, torch.float64: 1e-6}[dtype]  # lam itself is float32
        torch.testing.assert_close(g.double(), w.double(), rtol=tolerance, atol=tolerance, equal_nan=True)


def drawn(c, seed):
    """Predictions, labels (some of them void, never all), partners and shares."""
    g = torch.Generator().manual_seed(seed)
    pred = torch.randn(N, c.width, generator=g).to(c.dtype).requires_grad_()
    y = torch.randint(K, (N,), generator=g)
    if c.void is not None: y[torch.randperm(N, generator=g)[:1 + seed % 3]] = c.void
    return pred, y, torch.randint(N, (N,), generator=g), torch.rand(N, generator=g)


def loop(c, pred, y, other, lam): return OVER[c.over](c.term, c.share)(pred.double(), y, other, lam)


@pytest.fixture(params=CASES.values(), ids=CASES.keys())
def c(request): return request.param


@pytest.mark.parametrize("nothing", ("lam is one", "own partner", "one batch"))
def test_nothing_mixed_is_the_loss_itself(c, nothing):
    """Calls that compare and calls that do not. A loss with a state is compared with another in the same state."""
    f, twin, answered = c.make(), c.make(), 0
    for call in range(9):
        pred, y, index, lam = drawn(c, call)
        if call in (1, 2) and not c.holds:
            outcome(lambda p: Target(y, index, lam).loss(f, p), pred)
            continue
        if nothing == "own partner": index = torch.arange(N)
        else: lam = torch.ones(N)
        target = Target(y, index, lam, per="batch" if nothing == "one batch" else "sample")
        want = outcome(lambda p: twin(p, y), pred)
        got = outcome(lambda p: target.loss(f, p), pred)
        if got is not None: close(got, want, c.dtype, exact=True)
        answered += got is not None
        assert got or not c.sure
        if c.holds and nothing == "one batch": break  # two plain calls a step move its state twice
    assert answered or c.holds or c.name in PARTS, "its first call can see that nothing is mixed"


def test_mixed_is_the_loop(c):
    f = c.make()
    for call in range(5):
        pred, y, index, lam = drawn(c, call)
        got = outcome(lambda p: Target(y, index, lam).loss(f, p), pred)
        assert got or not c.sure
        if got is None: continue
        assert c.term, f"{c.name} has no terms by sample, and yet a value"
        close(got, outcome(lambda p: loop(c, p, y, y[index], lam), pred), c.dtype)


def test_one_lam_for_a_batch_is_two_plain_calls(c):
    f, twin = c.make(), c.make()
    for call in range(5):
        pred, y, index, lam = drawn(c, call)
        target = Target(y, index, lam[:1].expand(N), per="batch")
        got = outcome(lambda p: target.loss(f, p), pred)
        if got is None:
            assert c.name in PARTS
            continue
        own = outcome(lambda p: twin(p, y), pred)
        other = outcome(lambda p: twin(p, y[index]), pred)
        share = lam[0].double()
        want = [[share * a.double() + (1 - share) * b.double() for a, b in zip(*pair)] for pair in zip(own, other)]
        close(got, want, c.dtype)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_mixed_and_the_loss_is_called_once(name):
    f, shape = NUMBERS[name]
    for call in range(4):
        g = torch.Generator().manual_seed(call)
        y, pred = torch.rand(shape, generator=g), torch.randn(shape, generator=g).requires_grad_()
        index, lam, calls = torch.randperm(N, generator=g), torch.rand(N, generator=g), []
        mixed = torch.stack([lam[i] * y[i] + (1 - lam[i]) * y[index[i]] for i in range(N)])
        target = Target(y, index, lam)
        torch.testing.assert_close(target.mixed(), mixed)
        got = outcome(lambda p: target.loss(lambda *args: calls.append(1) or f(*args), p), pred)
        close(got, outcome(lambda p: f(p, mixed), pred), torch.float32, exact=True)
        assert len(calls) == 1
        alone = outcome(lambda p: Target(y, index, torch.ones(N)).loss(f, p), pred)
        close(alone, outcome(lambda p: f(p, y), pred), torch.float32, exact=True)


def dense(size, seed=0):
    """Images whose pixels say which sample they are of, labels with void, predictions."""
    g = torch.Generator().manual_seed(seed)
    x = torch.arange(N).float().view(N, 1, *[1] * len(size)).expand(N, 1, *size).contiguous()
    y = torch.randint(K, (N, *size), generator=g)
    return x, y, torch.randn(N, K, *size, generator=g).requires_grad_(), g


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("method,size", [(m, (9, 12)) for m in ("cutmix", "fmix", "gridmix")] + [("cutmix", (31,))])
def test_dense_labels_follow_their_pixels(name, method, size):
    f, mixer = DENSE[name], build(method)
    for call in range(3):
        x, y, pred, g = dense(size, call)
        if "255" in name: y[torch.rand(y.shape, generator=g) < .2] = 255
        images, target = mixer(x, y, generator=g)
        moved = torch.gather(y, 0, images[:, 0].round().long())
        got = outcome(lambda p: target.loss(f, p), pred)
        close(got, outcome(lambda p: f(p, moved), pred), torch.float32, exact=True)


@pytest.mark.parametrize("mode", ("bilinear", "nearest"))
def test_dense_labels_of_a_resized_partner(mode):
    _, _, pred, g = dense((16, 20))
    coarse = torch.randint(2, (N, 4, 5), generator=g).float()
    y = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images, target = build("resizemix", mode=mode, low=.3)(y[:, None], y.long(), generator=g)
    seen = []
    target.loss(lambda p, labels: seen.append(labels) or F.cross_entropy(p, labels), pred)
    sharp = (images[:, 0] - images[:, 0].round()).abs() < 1e-4
    assert sharp.float().mean() > .6 and seen[0][sharp].equal(images[:, 0].round().long()[sharp])
    assert not seen[0].equal(y.long())


@pytest.mark.parametrize("method", ("mixup", "gmix", "smoothmix"))
def test_dense_labels_under_soft_masks(method):
    """Refused, unless both labels are asked for: then by position, with the mask as weight."""
    x, y, pred, g = dense((9, 12))
    state, mixer = g.get_state(), build(method)
    mix = mixer.draw(x, generator=g)
    _, target = mixer(x, y, generator=g.set_state(state))
    with pytest.raises(ERRORS) as refusal: target.loss(F.cross_entropy, pred)
    check_line(refusal.value)
    assert "pairs" in str(refusal.value)
    w, other = mix.w.expand(N, 1, 9, 12)[:, 0], y[mix.index]
    mixed = lambda f: w * f(y) + (1 - w) * f(other)
    want = mixed(lambda label: F.cross_entropy(pred, label, reduction="none"))
    both = mixed(lambda label: F.cross_entropy(pred, label, WEIGHT, reduction="none"))
    for f, value in ((F.cross_entropy, want.mean()), (nn.CrossEntropyLoss(reduction="none"), want),
                     (functools.partial(F.cross_entropy, reduction="sum"), want.sum()),
                     (nn.CrossEntropyLoss(WEIGHT), both.sum() / mixed(lambda label: WEIGHT[label]).sum())):
        for _ in range(3): torch.testing.assert_close(target.loss(f, pred, pairs=True), value)


# The loss itself

def state_of(f):
    """What it holds, as text, and where its tensors lie."""
    inner = getattr(f, "__self__", f)
    held = {k: v for k, v in getattr(inner, "__dict__", {}).items() if not callable(v)}
    tensors = inner.state_dict() if isinstance(inner, nn.Module) else {}
    return repr(held), repr(tensors), [t.data_ptr() for t in tensors.values()], getattr(f, "reduction", None)


def test_a_loss_is_never_changed(c):
    f = c.make()
    before = state_of(f)
    for call in range(4):
        pred, y, index, lam = drawn(c, call)
        outcome(lambda p: Target(y, index, lam).loss(f, p), pred)
        if not c.holds and c.name != "logged": assert state_of(f) == before


@pytest.mark.parametrize("name", ("module", "wrapped, weights", "fastai", "fastai, focal"))
def test_another_thread_sees_the_loss_as_it_is(name):
    f, together, wrong, done = CASES[name].make(), threading.Barrier(2), [], threading.Event()
    pred, y, index, lam = drawn(CASES[name], 0)
    want, before = f(pred, y).detach(), state_of(f)

    def watch():
        together.wait()
        while not done.is_set():
            got = f(pred, y)
            if got.shape != want.shape or not got.equal(want) or state_of(f) != before: wrong.append(got)

    thread = threading.Thread(target=watch)
    thread.start()
    together.wait()
    try:
        for _ in range(40): Target(y, index, lam).loss(f, pred)
    finally:
        done.set()
        thread.join()
    assert not wrong


@pytest.mark.parametrize("make", (Angular, Centres))
def test_weights_of_a_loss_learn(make):
    """Their gradient is the loss's, at every call, also after a step has changed them."""
    f, c = make(), CASES["ArcFace" if make is Angular else "centres"]
    for call in range(4):
        pred, y, index, lam = drawn(c, call)
        got, = torch.autograd.grad(Target(y, index, lam).loss(f, pred), f.weight)
        own = [lam[i] * f(pred[i:i + 1], y[i:i + 1]) for i in range(N)]
        other = [(1 - lam[i]) * f(pred[i:i + 1], y[index[i:i + 1]]) for i in range(N)]
        torch.testing.assert_close(got, torch.autograd.grad(sum(own + other) / N, f.weight)[0])
        with torch.no_grad(): f.weight.mul_(1.5)


def test_a_loss_that_changes_is_followed():
    """Class weights, reduction and smoothing set anew after the first calls."""
    f = nn.CrossEntropyLoss()
    pred, y, index, lam = drawn(CASES["module"], 0)
    for key, value, term, share, over in (("weight", None, nll, one, "mean"),
                                          ("weight", WEIGHT, weighted, weight, "mean"),
                                          ("reduction", "sum", weighted, one, "sum"), ("weight", None, nll, one, "sum"),
                                          ("label_smoothing", .1, smooth, one, "sum"),
                                          ("reduction", "none", smooth, one, "none")):
        setattr(f, key, value)
        want = loop(SimpleNamespace(term=term, share=share, over=over), pred, y, y[index], lam).float()
        for _ in range(3): torch.testing.assert_close(Target(y, index, lam).loss(f, pred), want)


def of(f): return lambda p, y: f(p, y)
def any_of(kind, p, y): return CASES[kind].make()(p, y)
def by_keyword(p, y, kind): return CASES[kind].make()(p, y)


def by_number(p, y): return CASES[list(CASES)[SETTINGS["number"]]].make()(p, y)


class Switched(nn.Module):
    def forward(self, p, y): return CASES[self.kind].make()(p, y)


def switched(kind, f=Switched()):
    f.kind = kind
    return f


def set_elsewhere(kind):
    SETTINGS["number"] = list(CASES).index(kind)
    return by_number


SETTINGS = {}
ONE_LINE = {"closure": lambda kind: of(CASES[kind].make()), "partial": lambda kind: functools.partial(any_of, kind),
            "keyword": lambda kind: functools.partial(by_keyword, kind=kind), "attribute": switched,
            "elsewhere": set_elsewhere}


@pytest.mark.parametrize("how", ONE_LINE)
@pytest.mark.parametrize("kind", ("closure, weights", "closure, sum", "in-batch negatives", "triplet", "dice",
                                  "exp of the mean", "hardest half"))
def test_one_line_of_code_may_be_several_losses(how, kind):
    """What was seen of a loss says nothing of another one that is made by the same line."""
    for call, name in enumerate(("lambda", "lambda", kind, "lambda", kind, kind, kind, "lambda", kind)):
        c = CASES[name]
        pred, y, index, lam = drawn(c, call)
        f = ONE_LINE[how](name)
        got = outcome(lambda p: Target(y, index, lam).loss(f, p), pred)
        assert c.term or got is None
        if got: close(got, outcome(lambda p: loop(c, p, y, y[index], lam), pred), torch.float32)


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not (c.term or c.holds)])
def test_what_cannot_be_taken_apart_is_refused_at_every_batch(name):
    f = CASES[name].make()
    for seed in range(40):
        pred, y, index, lam = drawn(CASES[name], seed)
        assert outcome(lambda p: Target(y, index, lam).loss(f, p), pred) is None, f"call {seed + 1}"


def test_threads_do_not_see_what_another_one_tries():
    c, numbers = CASES["in-batch negatives"], []
    f = c.make()

    def work(first):
        for seed in range(first, first + 50):
            pred, y, index, lam = drawn(c, seed)
            numbers.append(outcome(lambda p: Target(y, index, lam).loss(f, p), pred))

    threads = [threading.Thread(target=work, args=(1000 * k,)) for k in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert len(numbers) == 200 and not any(numbers)


@pytest.mark.parametrize("per", ("sample", "batch"))
def test_a_loss_that_writes_into_its_arguments(per):
    """Margins are often subtracted in place, and void labels replaced."""
    def f(p, y):
        keep = y != 255
        y[~keep] = 0
        p[torch.arange(N), y] -= .3
        return (F.cross_entropy(p, y, reduction="none") * keep).sum() / N

    moved = lambda p, y: nll(p - .3 * hot(y), y)
    for call in range(4):
        pred, y, index, lam = drawn(CASES["closure, 255"], call)
        if per == "batch": lam = lam[:1].expand(N)
        before, target = y.clone(), Target(y, index, lam, per=per)
        got = outcome(lambda p: target.loss(f, p * 1.), pred)
        assert y.equal(before)
        if got: close(got, outcome(lambda p: mean(but(255, moved))(p, y, y[index], lam), pred), torch.float32)


def test_hooks_of_a_loss_are_called():
    hooked, replaced = nn.CrossEntropyLoss(), nn.CrossEntropyLoss()
    hooked.register_forward_hook(lambda module, args, loss: 2 * loss)
    replaced.forward = lambda p, y: 2 * F.cross_entropy(p, y)
    for f in (hooked, replaced):
        for call in range(4):
            pred, y, index, lam = drawn(CASES["module"], call)
            got = outcome(lambda p: Target(y, index, lam).loss(f, p), pred)
            assert got
            close(got, outcome(lambda p: 2 * loop(CASES["module"], p, y, y[index], lam), pred), torch.float32)


def test_errors_of_a_loss_come_through():
    """What the plain loss says is wrong, not that it cannot be taken apart."""
    pred, y, index, lam = drawn(CASES["module"], 0)
    y[2] = 7
    def misspelt(p, y): return F.cross_entropy(p, labels)
    wrong_weights = Wrapped(nn.CrossEntropyLoss(torch.ones(K + 1)))
    for f, error in ((F.cross_entropy, IndexError), (lambda p, y: F.cross_entropy(p, y), IndexError),
                     (misspelt, NameError), (wrong_weights, RuntimeError), ("mean", TypeError)):
        for _ in range(3):
            with pytest.raises(error) as raised: Target(y, index, lam).loss(f, pred)
            assert "not made of" not in str(raised.value)


@pytest.mark.parametrize("per", ("sample", "batch"))
def test_numbers_beside_the_loss(per):
    pred, y, index, lam = drawn(CASES["module"], 0)
    if per == "batch": lam = lam[:1].expand(N)
    f = lambda p, y: (F.cross_entropy(p, y), (p.argmax(1) == y).float().mean().item())
    for _ in range(3):
        try: loss, hit = Target(y, index, lam, per=per).loss(f, pred)
        except ERRORS as error: check_line(error)
        else:
            torch.testing.assert_close(loss, loop(CASES["module"], pred, y, y[index], lam).float())
            assert hit == pytest.approx(float(Target(y, index, lam).accuracy(pred)), abs=1e-6)


def test_gradients_only_where_the_loss_has_them():
    pred, y, index, lam = drawn(CASES["lambda"], 0)
    for c in (CASES["function"], CASES["lambda"]):
        f, want = c.make(), loop(c, pred, y, y[index], lam).float().detach()
        for _ in range(3):
            assert not Target(y, index, lam).loss(f, pred.detach()).requires_grad
            with torch.no_grad(): assert not Target(y, index, lam).loss(f, pred).requires_grad
            with torch.inference_mode(): value = Target(y, index, lam).loss(f, pred.detach() * 1)
            torch.testing.assert_close(value.clone(), want)


def test_several_predictions():
    """Auxiliary heads, or an object with logits."""
    pred, y, index, lam = drawn(CASES["module"], 0)
    aux = drawn(CASES["module"], 1)[0]
    want = loop(CASES["module"], pred, y, y[index], lam) + .4 * loop(CASES["module"], aux, y, y[index], lam)
    both = lambda first, second, y: F.cross_entropy(first, y) + .4 * F.cross_entropy(second, y)
    for given, f in (((pred, aux), lambda p, y: both(*p, y)),
                     (SimpleNamespace(logits=pred, aux=aux), lambda p, y: both(p.logits, p.aux, y))):
        for _ in range(3): torch.testing.assert_close(Target(y, index, lam).loss(f, given), want.float())


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.void is not None])
def test_void_labels_that_come_late(name):
    """The first batches have none, so that comparing them shows nothing."""
    c = CASES[name]
    f = c.make()
    for call in range(7):
        pred, y, index, lam = drawn(c, call)
        if call < 2: y = torch.arange(N) % K
        got = outcome(lambda p: Target(y, index, lam).loss(f, p), pred)
        assert got or not c.sure
        if got: close(got, outcome(lambda p: loop(c, p, y, y[index], lam), pred), c.dtype)


# Devices and compilers

class Waits(TorchDispatchMode):
    """Counts what would wait for a device."""
    NAMES = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal",
             "aten._unique2", "aten.item")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(self.NAMES): self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def waits(f):
    with Waits() as mode: f()
    return mode.seen


@pytest.fixture
def as_on_a_gpu(monkeypatch): monkeypatch.setattr(targets, "readable", lambda t: False)


def test_a_loss_does_not_wait_for_the_device(c, as_on_a_gpu):
    """But at few of its calls, which compare: the first, the second, the fourth ... of one line of code."""
    f = c.make()
    pred, y, index, lam = drawn(c, 0)
    if c.term is None or waits(lambda: f(pred, y)): return  # it waits by itself, or is refused
    calls = []
    for _ in range(20):
        seen = waits(lambda: calls.append(outcome(lambda p: Target(y, index, lam).loss(f, p), pred)))
        calls[-1] = bool(seen and calls[-1])
    assert sum(calls) <= 5 and sum(calls[-3:]) <= 1, calls


def test_labels_that_are_never_mixed_do_not_wait_either(as_on_a_gpu):
    """As with Cutout, whose shares are always one."""
    f = CASES["lambda"].make()
    pred, y, index, _ = drawn(CASES["lambda"], 0)
    assert sum(bool(waits(lambda: Target(y, index, torch.ones(N)).loss(f, pred))) for _ in range(20)) <= 5


def test_what_has_no_values_shows_nothing():
    """Calls on the meta device, as for counting operations, compare nothing; the next one does."""
    f = lambda p, y: F.cross_entropy(p @ torch.eye(K, device=p.device)[y].T, torch.arange(len(p), device=p.device))
    pred, y, index, lam = drawn(CASES["lambda"], 3)
    for _ in range(2): Target(y, index, lam).to("meta").loss(f, pred.to("meta"))
    assert outcome(lambda p: Target(y, index, lam).loss(f, p), pred) is None


IMAGE_MIXERS = [name for name, mixer in sorted(MIXERS.items())
                if mixer.__module__.startswith("mix_research.") and not issubclass(mixer, FeatureMixer)]


@pytest.mark.parametrize("name", IMAGE_MIXERS)
def test_a_whole_step_compiles(name):
    mixer, x, y = build(name), torch.rand(N, 3, 12, 12), torch.arange(N) % K
    torch.compiler.reset()
    try: torch.compile(lambda x, y: mixer(x, y)[0], backend="eager", fullgraph=True)(x, y)
    except Exception: pytest.skip("does not compile alone")
    weights = torch.randn(432, K).mul_(.01).requires_grad_()
    optimizer = torch.optim.SGD([weights], .1)

    @functools.partial(torch.compile, backend="eager", fullgraph=True)
    def forward(x, y):
        images, target = mixer(x, y)
        pred = images.flatten(1) @ weights
        return target.loss(F.cross_entropy, pred), pred, target.y_partner, target.lam

    step = torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        loss, pred, other, lam = forward(x, y)
        torch.testing.assert_close(loss, loop(CASES["function"], pred, y, other, lam).float())
        loss.backward()
        step()


# Labels

@pytest.mark.parametrize("dtype", (torch.int8, torch.int16, torch.int32, torch.uint8))
def test_small_integers_are_classes(dtype):
    pred, y, index, lam = drawn(CASES["module"], 0)
    wide, narrow = Target(y, index, lam), Target(y.to(dtype), index, lam)
    for name in ("function", "lambda", "module, weights", "partial, none", "fastai", "label smoothing"):
        f = CASES[name].make()
        assert narrow.loss(f, pred).equal(wide.loss(f, pred))
    assert narrow.soft(K).equal(wide.soft(K)) and narrow.accuracy(pred).equal(wide.accuracy(pred))
    images, target = build("mixup")(torch.rand(N, 3, 8, 8), y.to(dtype))
    assert target.loss(F.cross_entropy, pred).isfinite()
    images, target = build("cutmix")(torch.rand(N, 3, 8, 8), torch.ones(N, 8, 8, dtype=dtype))
    torch.testing.assert_close(target.loss(F.cross_entropy, torch.zeros(N, K, 8, 8)), torch.tensor(K).log())


NO_LABELS = {"bool": torch.ones(N, dtype=torch.bool), "list": [0] * N, "none": None, "short": torch.zeros(N - 1).long(),
             "scalar": torch.zeros(()).long(), "complex": torch.zeros(N, dtype=torch.complex64), "text": "0" * N}


@pytest.mark.parametrize("y", NO_LABELS.values(), ids=NO_LABELS.keys())
def test_what_are_no_labels(y):
    with pytest.raises(ERRORS) as refusal: build("mixup")(torch.rand(N, 3, 8, 8), y)
    text = str(refusal.value)
    assert "\n" not in text and text.startswith("y: expected") and len(text) <= 300, text


def test_shares_and_partners_of_another_form():
    pred, y, index, lam = drawn(CASES["module"], 0)
    for wrong in ((y, index, .3), (y, index, torch.tensor(.3)), (y, index, lam[:, None]), (y, index[1:], lam),
                  (y, None, lam), (y, index, lam, None, None, "image")):
        with pytest.raises(ERRORS) as refusal: Target(*wrong).loss(F.cross_entropy, pred)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) <= 300, refusal.value


def test_soft_labels():
    pred, y, index, lam = drawn(CASES["module"], 0)
    target = Target(y, index, lam)
    want = torch.zeros(N, K)
    for i in range(N):
        want[i, y[i]] += lam[i]
        want[i, y[index[i]]] += 1 - lam[i]
    torch.testing.assert_close(target.soft(K), want)
    torch.testing.assert_close(F.cross_entropy(pred, target.soft(K)), target.loss(F.cross_entropy, pred))
    smoothed = F.cross_entropy(pred, target.soft(K), label_smoothing=.1)
    torch.testing.assert_close(F.cross_entropy(pred, target.soft(K, smoothing=.1)), smoothed)
    torch.testing.assert_close(target.loss(nn.CrossEntropyLoss(label_smoothing=.1), pred), smoothed)
    numbers = Target(torch.rand(N, K), index, lam)
    torch.testing.assert_close(numbers.soft(K), numbers.mixed())
    for wrong in (lambda: numbers.soft(K + 1), lambda: target.soft(int(y.max())), lambda: target.soft(0),
                  lambda: Target(torch.rand(N), index, lam).soft(K)):
        with pytest.raises(ERRORS) as refusal: wrong()
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) <= 300


def test_accuracy_counts_both_labels_by_share():
    pred, y, index, lam = drawn(CASES["module"], 3)
    best = pred.argmax(1)
    want = sum(float(lam[i] * (best[i] == y[i]) + (1 - lam[i]) * (best[i] == y[index[i]])) for i in range(N)) / N
    assert float(Target(y, index, lam).accuracy(pred)) == pytest.approx(want, abs=1e-6)


def test_partners_of_another_set():
    pred, y, index, lam = drawn(CASES["module"], 0)
    others = torch.randint(K, (N,))
    target = Target(y, index, lam, partner_y=others)
    assert target.y_own.equal(y) and target.y_partner.equal(others[index])
    for name in ("function", "module, weights", "partial, sum", "partial, none", "focal"):
        f, want = CASES[name].make(), loop(CASES[name], pred, y, others[index], lam).float()
        for _ in range(3): torch.testing.assert_close(target.loss(f, pred), want)
    in_place = Target(y, torch.arange(N), lam, partner_y=others).loss(F.cross_entropy, pred)
    torch.testing.assert_close(in_place, loop(CASES["function"], pred, y, others, lam).float())
    zeros, ones = torch.zeros(N, 1, 4, 4), torch.ones(N, 1, 4, 4)
    images, target = build("mixup")(zeros, torch.zeros(N).long(), partner=ones, partner_y=torch.ones(N).long())
    torch.testing.assert_close(target.soft(2)[:, 1], images[:, 0, 0, 0])
    numbers = Target(torch.zeros(N), index, lam, partner_y=torch.arange(N).float())
    torch.testing.assert_close(numbers.mixed(), (1 - lam) * index)
    moved = target.to("meta")
    assert moved.lam.is_meta and moved.y_own.is_meta and moved.y_partner.is_meta and not target.lam.is_meta


def test_impossible_classes_of_a_partner_leave_nothing():
    """Logits of -inf (classes that a task does not have) cost infinitely much, times nothing."""
    pred, y = torch.randn(N, K), torch.arange(N) % 2
    pred[:3, 1:], y[:3] = -torch.inf, 0
    index, lam = torch.arange(N).flip(0), torch.tensor([1., 1, 1, .5, .5, .5])
    for f in (F.cross_entropy, nn.CrossEntropyLoss(WEIGHT), lambda p, y: F.cross_entropy(p, y)):
        for _ in range(4):
            leaf = pred.clone().requires_grad_()
            loss = Target(y, index, lam).loss(f, leaf)
            loss.backward()
            assert loss.isfinite() and leaf.grad.isfinite().all()
            assert Target(y.flip(0), index, torch.ones(N)).loss(f, pred).equal(f(pred, y.flip(0))), "infinite, as it is"


def test_a_batch_drawn_per_batch_says_so():
    for name in ("mixup", "cutmix", "fmix"):
        x, y = torch.rand(N, 3, 8, 8), torch.arange(N) % K
        _, target = build(name, per="batch")(x, y)
        assert target.per == "batch" and target.lam.unique().numel() == 1 and build(name)(x, y)[1].per == "sample"
        pred, lam = torch.randn(N, K), target.lam[0]
        want = lam * triplet(pred, y) + (1 - lam) * triplet(pred, target.y_partner)
        torch.testing.assert_close(target.loss(triplet, pred), want)


def test_a_loss_that_never_does_the_same_is_not_kept_for_ever(monkeypatch):
    """What is known of a loss is bounded, whatever it calls."""
    monkeypatch.setattr(targets, "KINDS", 5)
    steps = [0]

    def f(p, y):
        steps[0] += 1
        for _ in range(steps[0] // 3): p = p + 0.
        return F.cross_entropy(p, y)

    for call in range(40):
        pred, y, index, lam = drawn(CASES["lambda"], call)
        outcome(lambda p: Target(y, index, lam).loss(f, p), pred)
    assert len(targets.PLANS[f.__code__]) == 5


def test_compiled_mixers_say_that_there_is_one_share():
    x, y = torch.rand(N, 3, 8, 8), torch.arange(N) % K
    for per in ("sample", "batch"): assert Compiled(build("mixup", per=per))(x, y)[1].per == per
