"""Every data set with every network that the papers train on it: started from the command line, each data set read from a small tree in its real format."""
import shutil

import numpy as np
import torch
import yaml
from torchvision import models as torchvision_models

from conftest import ROOT
from mix_research.models import MODELS
from mix_research.record import Record
from test_cli import cli
from test_data import WRITERS, write_caltech256, write_cifar, write_food101, write_imagenet, write_mini_imagenet, write_oxford_pets, write_svhn

# artefacts that together have every pair, and the row that is started: each paper's own method
ARTEFACTS = {"synermix/figure_5": "synermix_mixup", "synermix/figure_9": "synermix_mixup", "miamix/table_2": "miamix", "lmix/table_1": "lmix", "lmix/table_2": "lmix",
             "lmix/table_3": "lmix", "lmix/table_4": "lmix", "lmix/table_5": "lmix", "randomix/table_1": "randomix", "randomix/table_2": "randomix", "randomix/table_3": "randomix",
             "beyond/randomix_on_jpeg": "miamix", "beyond/ensemble_on_jpeg": "miamix_equal", "miamix/table_6": "miamix_equal"}  # the last, since the one before it quotes it
PAPERS = {p.parent.name: yaml.safe_load(p.read_text()) for p in ROOT.glob("papers/*/protocol.yaml")}


PAPERS_METHODS = {m: (spec.get("method", "baseline"), spec.get("method_args", {}).get("inter")) for p in PAPERS.values() for m, spec in p["methods"].items() if m in ARTEFACTS.values()}


def pairs(name):
    paper, artefact = name.split("/")
    return {tuple(c) for c in PAPERS[paper]["artefacts"][artefact].get("cells", [])}


def test_no_pair_is_left_out():
    every = {c for paper, p in PAPERS.items() for a in p["artefacts"] for c in pairs(f"{paper}/{a}") if c[1] != "small"} # no paper trains the small network
    assert every == set().union(*map(pairs, ARTEFACTS)) and len(every) >= 30


# of the large data sets' formats as little as their readers accept: every image is a step's worth of a network of two hundred layers
SMALL = dict(cifar10=lambda root, rng: write_cifar(root, rng, 10, 1), cifar100=lambda root, rng: write_cifar(root, rng, 100, 6), svhn=lambda root, rng: write_svhn(root, rng, (8, 4)),
             caltech256=lambda root, rng: write_caltech256(root, rng, {"001.ak47": 61}), mini_imagenet=lambda root, rng: write_mini_imagenet(root, rng, 3),
             food101=lambda root, rng: write_food101(root, rng, ("apple_pie",)), oxford_pets=lambda root, rng: write_oxford_pets(root, rng, ("Abyssinian",)), imagenet=lambda root, rng: write_imagenet(root, rng, (2, 1)))


def write_imagenet_weights(home, names):
    """ImageNet weights of the right form under the right names; their values are random."""
    (home / "hub/checkpoints").mkdir(parents=True)
    for name in names:
        weights = torchvision_models.get_model_weights(name)["IMAGENET1K_V1"]
        torch.save(torchvision_models.get_model(name).state_dict(), home / "hub/checkpoints" / weights.url.rsplit("/", 1)[1])
        assert name in MODELS


def test_every_pair_starts(tmp_path, monkeypatch):
    trees, every = tmp_path / "data", {(*c, *PAPERS_METHODS[ARTEFACTS[a]]) for a in ARTEFACTS for c in pairs(a)}
    trees.mkdir()
    for name in {d for d, *_ in every}: (SMALL.get(name) or WRITERS[name])(trees, np.random.default_rng(0))
    write_imagenet_weights(tmp_path / "torch", {m for _, m in pairs("synermix/figure_9")})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    shutil.copytree(ROOT / "papers", tmp_path / "papers", ignore=shutil.ignore_patterns("records"))
    for path in tmp_path.glob("papers/*/protocol.yaml"): # those artefacts, that row, and the smoke preset with one epoch on the paper's own data and networks; four images a step for the memory of a laptop, and a learning rate that so few can bear
        protocol, paper = yaml.safe_load(path.read_text()), path.parent.name
        protocol["artefacts"] = {a: spec | {"rows": [ARTEFACTS[f"{paper}/{a}"]], "against": ARTEFACTS[f"{paper}/{a}"]} for a, spec in protocol["artefacts"].items() if f"{paper}/{a}" in ARTEFACTS}
        protocol["presets"]["smoke"]["run"] = dict(epochs=1, batch_size=4, lr=0.01, schedule="cosine", milestones=[])
        path.write_text(yaml.safe_dump(protocol, sort_keys=False))
    out = cli(tmp_path, "reproduce", "--all", "--preset", "smoke", "--seeds", "0", "--data", str(trees), "--no-weights", "--jobs", "1").stdout
    records = [Record.from_json(p.read_text()) for p in (tmp_path / "reproduced/records").glob("*.json")]
    found = {(r.run.dataset, r.run.model, r.run.method, r.run.method_args.get("inter")) for r in records}
    assert found == every, out
    for r in records:
        assert r.status == "ok" and len(r.history) == 1 and 0 <= r.metrics["top1"] <= r.metrics["top5"] <= 1, r.error
        paper = next(a.split("/")[0] for a in ARTEFACTS if (r.run.dataset, r.run.model) in pairs(a) and PAPERS_METHODS[ARTEFACTS[a]] == (r.run.method, r.run.method_args.get("inter")))
        asked = PAPERS[paper]["datasets"][r.run.dataset]
        assert all(getattr(r.run, k) == v for k, v in asked.items() if k not in ("epochs", "batch_size", "lr", "milestones")), "the paper's settings for this data set"
        if r.run.dataset == "speech_commands": assert r.evaluations["clean part=valid"]["values"]["top1"] >= 0
    assert not list((tmp_path / "reproduced").rglob("*.pt")) and all((tmp_path / f"reproduced/{a}.ipynb").exists() for a in ARTEFACTS)
