"""The README's training loops take the same step whether its images come in one batch or in four."""
import contextlib
import io
import re

import nbformat
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from conftest import ROOT
from mix_research import models, randomix
from mix_research.mixers import Mixup

IMAGES = 64  # of a step, whatever it is made of


def examples():
    """Heading -> blocks of code of the README's training loops, from the notebook it is made of."""
    cells = nbformat.read(ROOT / "nbs/index.ipynb", 4).cells
    text = "\n".join(f"```python\n{c.source}\n```" if c.cell_type == "code" else c.source for c in cells)
    part = text.split("## In your own training loop\n")[1].split("\n## ")[0]
    return {p.split("\n")[0]: re.findall(r"```python\n(.*?)\n```", p, re.S) for p in part.split("\n### ")[1:]}


def neighbours(y, partner_y, generator): return torch.arange(len(y), device=y.device) ^ 1


class Neighbours(Mixup, key=""):
    """A mixer that mixes a sample with the one beside it, always alike, so that batches may be cut anywhere."""
    def __init__(self, *args, **kwargs): super().__init__(pairing=neighbours)
    def share(self, n, x, generator): return torch.full((n,), .3, device=x.device)


class Linear(nn.Module):
    """A model without statistics of the batch."""
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.linear = nn.Linear(256, 10)
    def forward(self, x): return self.linear(x.flatten(1))


class HuggingFace(Linear):
    """As Hugging Face's models, with the loss inside; one that does not take `num_items_in_batch`."""
    def forward(self, pixel_values, labels=None):
        from transformers.modeling_outputs import ImageClassifierOutput
        logits = super().forward(pixel_values)
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


class HuggingFaceWithItems(HuggingFace):
    def forward(self, pixel_values, labels=None, num_items_in_batch=None, **kwargs):
        outputs = super().forward(pixel_values, labels)
        if num_items_in_batch is not None: outputs.loss = outputs.loss * len(labels) / num_items_in_batch
        return outputs


@pytest.fixture
def step(monkeypatch, tmp_path):
    """Runs code; the gradients of its first step, and what it left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(randomix, "RandoMix", Neighbours)
    monkeypatch.setattr(models, "build", Linear)

    def run(code, **names):
        seen = []
        def keep(parameters): seen.append(torch.cat([p.grad.flatten().clone() for p in parameters]))
        def after_step(optimizer, args, kwargs): keep(p for group in optimizer.param_groups for p in group["params"])
        hook = register_optimizer_step_post_hook(after_step)
        names |= {"__name__": "example", "keep": keep}
        torch.manual_seed(0)
        try:
            with contextlib.redirect_stdout(io.StringIO()): exec(code, names)
        finally: hook.remove()
        return seen[0], names
    return run


def edited(code, changes):
    """Code with other words; each must be there."""
    for old, new in changes.items():
        assert old in code, old
        code = code.replace(old, new)
    return code


def same(one, four):
    assert one.norm() > .01
    torch.testing.assert_close(four, one)


def test_plain_pytorch(step):
    start, loop = examples()["Plain PyTorch"]
    start = start.split("for epoch in")[0]
    def accumulating(n):
        return edited(f"{start}\n{loop}", {"batch_size=32": f"batch_size={IMAGES // n}", "n = 4": f"n = {n}"})
    same(step(accumulating(1))[0], step(accumulating(4))[0])


KEEP = """from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
class Keep(Callback):
    order = 99  # after those that would skip the step
    def before_step(self): keep(list(self.model.parameters()))
learn.add_cb(Keep())
if accumulate: learn.add_cb(GradientAccumulation(accumulate))
with learn.no_bar()"""


def test_fastai(step):
    (code,) = examples()["fastai"]
    def accumulating(n):
        return edited(code, {
            "digits.y, 32": f"digits.y, {IMAGES // n}",
            ", pad=1": "",  # draws nothing
            "(20, 1e-2)": "(1, 1e-2)",
            "with learn.no_bar()": KEEP,
        })
    same(step(accumulating(1), accumulate=0)[0], step(accumulating(4), accumulate=IMAGES)[0])


def test_timm(step, monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed (extra speed)")
    monkeypatch.setattr(timm, "create_model", Linear)
    (code,) = examples()["timm"]
    def accumulating(n):
        return edited(code, {
            "batch_size=32": f"batch_size={IMAGES // n}",
            "range(20)": "range(1)",
            "for x, y in loader:": "for i, (x, y) in enumerate(loader):",
            "train_loss_fn(model(x), y)": f"train_loss_fn(model(x), y) / {n}",
            "optimizer.zero_grad()": f"if i % {n} == 0: optimizer.zero_grad()",
            "optimizer.step()": f"if (i + 1) % {n} == 0: optimizer.step()",
        })
    same(step(accumulating(1))[0], step(accumulating(4))[0])


def test_lightning(step):
    pytest.importorskip("lightning", reason="lightning is not installed")
    (code,) = examples()["Lightning"]
    def accumulating(n):
        return edited(code, {
            "batch_size=32": f"batch_size={IMAGES // n}",
            "max_epochs=20,": f"max_epochs=1, accumulate_grad_batches={n}, accelerator='cpu',",
        })
    same(step(accumulating(1))[0], step(accumulating(4))[0])


@pytest.mark.parametrize("model", [HuggingFace, HuggingFaceWithItems])
def test_hugging_face(model, step):
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="accelerate is not installed (extra cluster)")
    (code,) = examples()["Hugging Face Trainer"]
    def accumulating(n):
        return edited(code, {
            "ResNetForImageClassification(config)": "Model()",
            "train_batch_size=32": f"train_batch_size={IMAGES // n}, use_cpu=True, logging_steps=1",
            "num_train_epochs=20": f"max_steps=1, max_grad_norm=0, gradient_accumulation_steps={n}",
        })
    (one, names), (four, again) = step(accumulating(1), Model=model), step(accumulating(4), Model=model)
    same(one, four)
    first, second = (n["trainer"].state.log_history[0]["loss"] for n in (names, again))
    assert float(first) == pytest.approx(float(second), rel=1e-3)
