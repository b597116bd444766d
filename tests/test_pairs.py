"""Every data set with every network that the papers train on it: started from the command line, each data set read from
a small tree in its real format."""
import shutil
import subprocess
import sys

import numpy as np
import torch
import yaml
from torchvision import models as torchvision_models

from conftest import ROOT
from mix_research.models import MODELS
from mix_research.record import Record
from test_cli import environ
from test_data import (WRITERS, write_caltech256, write_cifar, write_food101, write_imagenet, write_mini_imagenet,
                       write_oxford_pets, write_svhn)

# artefacts that together have every pair, and the row that is started: each paper's own method
ARTEFACTS = {
    "synermix/figure_5": "synermix_mixup",
    "synermix/figure_9": "synermix_mixup",
    "miamix/table_2": "miamix",
    **{f"lmix/table_{i}": "lmix" for i in range(1, 6)},
    **{f"randomix/table_{i}": "randomix" for i in range(1, 4)},
    "beyond/randomix_on_jpeg": "miamix",
    "beyond/ensemble_on_jpeg": "miamix_equal",
    "miamix/table_6": "miamix_equal",  # the last, since the one before it quotes it
}
PAPERS = {p.parent.name: yaml.safe_load(p.read_text()) for p in ROOT.glob("papers/*/protocol.yaml")}

# of the large data sets' formats as little as their readers accept: every image is a step's worth of a network of two
# hundred layers
SMALL = {
    "cifar10": lambda root, rng: write_cifar(root, rng, 10, 1),
    "cifar100": lambda root, rng: write_cifar(root, rng, 100, 6),
    "svhn": lambda root, rng: write_svhn(root, rng, (8, 4)),
    "caltech256": lambda root, rng: write_caltech256(root, rng, {"001.ak47": 61}),
    "mini_imagenet": lambda root, rng: write_mini_imagenet(root, rng, 3),
    "food101": lambda root, rng: write_food101(root, rng, ("apple_pie",)),
    "oxford_pets": lambda root, rng: write_oxford_pets(root, rng, ("Abyssinian",)),
    "imagenet": lambda root, rng: write_imagenet(root, rng, (2, 1)),
}


def method_of(row):
    """The method that a row of any paper trains with, and SynerMix's mixer between classes."""
    spec = next(p["methods"][row] for p in PAPERS.values() if row in p["methods"])
    return spec.get("method", "baseline"), spec.get("method_args", {}).get("inter")


def pairs(name):
    """Data sets and networks of an artefact."""
    paper, artefact = name.split("/")
    return {tuple(c) for c in PAPERS[paper]["artefacts"][artefact].get("cells", [])}


def test_no_pair_is_left_out():
    every = set().union(*(pairs(f"{paper}/{a}") for paper, p in PAPERS.items() for a in p["artefacts"]))
    every = {c for c in every if c[1] != "small"}  # which no paper trains
    assert every == set().union(*map(pairs, ARTEFACTS))
    assert len(every) >= 30


def write_imagenet_weights(home, names):
    """ImageNet weights of the right form under the right names; their values are random."""
    (home / "hub/checkpoints").mkdir(parents=True)
    for name in names:
        weights = torchvision_models.get_model_weights(name)["IMAGENET1K_V1"]
        path = home / "hub/checkpoints" / weights.url.rsplit("/", 1)[1]
        torch.save(torchvision_models.get_model(name).state_dict(), path)
        assert name in MODELS


def write_protocols(folder):
    """The papers with those artefacts and those rows alone. The smoke preset is one epoch on the paper's own data and
    networks; four images a step for the memory of a laptop, and a learning rate that so few can bear."""
    shutil.copytree(ROOT / "papers", folder, ignore=shutil.ignore_patterns("records"))
    for path in folder.glob("*/protocol.yaml"):
        protocol, kept = yaml.safe_load(path.read_text()), {}
        for artefact, spec in protocol["artefacts"].items():
            row = ARTEFACTS.get(f"{path.parent.name}/{artefact}")
            if row: kept[artefact] = spec | {"rows": [row], "against": row}
        protocol["artefacts"] = kept
        protocol["presets"]["smoke"]["run"] = dict(epochs=1, batch_size=4, lr=0.01, schedule="cosine", milestones=[])
        path.write_text(yaml.safe_dump(protocol, sort_keys=False))


def asked(run):
    """What a paper that has this run says of its data set."""
    trained = run.method, run.method_args.get("inter")
    fits = (a for a, row in ARTEFACTS.items() if (run.dataset, run.model) in pairs(a) and method_of(row) == trained)
    return PAPERS[next(fits).split("/")[0]]["datasets"][run.dataset]


SMALL_TREES = "import sys; from mix_research import cli, readers; readers.PUBLISHED = {}; sys.exit(cli.main())"


def reproduce(project, *argv):
    """What the command prints that trains on small trees."""
    command = [sys.executable, "-c", SMALL_TREES, "reproduce", *argv]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environ())
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_pair_starts(tmp_path, monkeypatch):
    trees = tmp_path / "data"
    trees.mkdir()
    every = {(*c, *method_of(row)) for a, row in ARTEFACTS.items() for c in pairs(a)}
    for name in {d for d, *_ in every}:
        write = SMALL.get(name) or WRITERS[name]
        write(trees, np.random.default_rng(0))
    write_imagenet_weights(tmp_path / "torch", {m for _, m in pairs("synermix/figure_9")})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    write_protocols(tmp_path / "papers")
    which = "--all", "--preset", "smoke", "--seeds", "0"
    out = reproduce(tmp_path, *which, "--data", str(trees), "--no-weights", "--jobs", "1")
    records = [Record.from_json(p.read_text()) for p in (tmp_path / "reproduced/records").glob("*.json")]
    found = {(r.run.dataset, r.run.model, r.run.method, r.run.method_args.get("inter")) for r in records}
    assert found == every, out
    for r in records:
        assert r.status == "ok" and len(r.history) == 1, r.error
        assert 0 <= r.metrics["top1"] <= r.metrics["top5"] <= 1
        for k, v in asked(r.run).items():
            assert k in ("epochs", "batch_size", "lr", "milestones") or getattr(r.run, k) == v, f"the paper's {k}"
        if r.run.dataset == "speech_commands": assert r.evaluations["clean part=valid"]["values"]["top1"] >= 0
    assert not list((tmp_path / "reproduced").rglob("*.pt"))
    assert all((tmp_path / f"reproduced/{a}.ipynb").exists() for a in ARTEFACTS)
