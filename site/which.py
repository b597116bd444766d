"""The page "Which method should I use?": every number on it is printed by a paper, measured or recorded."""
from functools import lru_cache

import pandas as pd
import torch

from charts import OURS, STUDIES, dots, key
from mix_research import figures, speed
from mix_research.compare import front
from mix_research.mixers import MIXERS, FeatureMixer, build
from mix_research.study import papers_dir, reference
from mix_research.table import as_markdown, in_markdown
from papers import WARNING
from rooms import SYMBOLS, anchor
from sources import NAMES, html, title_of, write

SYNERMIX = ("synermix_intra", "synermix_mixup", "synermix_manifold")  # rows that are SynerMix over something
TIMED = ("cuda_training_preact_resnet18", "cpu_training_preact_resnet18")  # the first that was measured counts
NETWORK = "features and head of the network; a second forward pass; two images of a class in a batch"


def label(method):
    known = STUDIES["beyond/synermix_over_every_mixer"].protocol.labels
    return known.get(method) or MIXERS[method].__name__


def said(method): return in_markdown(label(method))
def listed(methods): return ", ".join(map(said, methods))


def link(name): return f"[{in_markdown(title_of(name))}](papers/{name}.ipynb)"


def trained():
    "Methods of the library that a protocol may train."
    return [m for m in figures.LOOKS if (m in MIXERS and m != "intraclass") or m in SYNERMIX]


def points(values):
    "Least to largest, in points."
    if not len(values): return ""
    return f"{min(values):+.2f}" + (f" to {max(values):+.2f}" if len(values) > 1 else "")


# --- what the papers print

@lru_cache(maxsize=None)
def printed():
    "Every gain over plain training in top-1 that the four papers print: method, gain, paper, artefact, dataset, model."
    rows = []
    for name, s in STUDIES.items():
        if s.against != "baseline" or s.metrics().get("top1") is None: continue
        paper = s.paper("top1")
        for (method, *column), (value, _) in paper.items():
            base = paper.get(("baseline", *column))
            if method in trained() and base: rows.append((method, value - base[0], name.split("/")[0], name, *column))
    return pd.DataFrame(rows, columns=["method", "gain", "paper", "artefact", "dataset", "model"])


def gains_of(table): return {m: list(v) for m, v in table.groupby("method").gain}


def by_authors():
    "Method -> the gains that its own paper prints; method -> those that others print."
    gains = printed()
    own = gains.method.map(lambda m: m.split("_")[0]) == gains.paper
    return gains_of(gains[own]), gains_of(gains[~own])


def by_gain():
    "Methods, that with the largest median gain first."
    gains = printed()
    return sorted(set(gains.method), key=lambda m: -gains[gains.method == m].gain.median())


def what_is_printed():
    gains, (own, others) = printed(), by_authors()
    discs = {m: [(g, float("nan")) for g in v] for m, v in own.items()}
    signs = key('<span class="ring"></span> printed by another paper',
                '<span class="disc"></span> printed by the method\'s own paper')
    picture = html(signs + dots(by_gain(), others, discs, label, xlabel="top-1 over plain training, points"))
    spread = any(v for name in set(gains.artefact) for v in reference(name)["std"])
    chance = "some with a spread" if spread else "without spread, so that chance cannot be told from gain"
    return f"""
## What the papers print
{picture}
{len(gains)} gains in {gains.artefact.nunique()} tables, over {gains.dataset.nunique()} data sets, {chance}. \
A table counts as often as it has columns, and tables that share runs are all counted. \
SynerMix prints ranges of gains instead of accuracies; they are in its [figures](papers/synermix/index.md).
"""


# --- what training costs

@lru_cache(maxsize=None)
def timings():
    "Measurements of training: file -> what was measured."
    return {k: m for k, m in speed.measured(papers_dir() / "speed").items() if m.what == "training"}


@lru_cache(maxsize=None)
def step_cost():
    "Method -> what a step of training takes, times that of plain training, with PreAct-ResNet-18."
    main = next(k for k in TIMED if k in timings())
    return timings()[main].table.set_index("name").times_baseline.to_dict()


def cost_of(method): return step_cost().get("synermix" if method == "synermix_mixup" else method)


def machine(m):
    threads = f", {m.environment['threads']} threads" if m.environment["device"] == "cpu" else ""
    return f"{m.environment['device_name']}{threads}, {m.date[:10]}"


def printed_cost(paper):
    "Method -> the training cost that a paper prints; of several tables the last."
    costs = {}
    for name in STUDIES:
        if not name.startswith(f"{paper}/"): continue
        lines = reference(name)
        costs |= dict(lines[lines.metric == "training_cost"][["method", "value"]].itertuples(index=False))
    return costs


def cost_table():
    "A row per method; a column per measurement, and one per paper that prints costs."
    def title(k, m): return f"{m.settings['model']} ({'CPU' if k.startswith('cpu') else 'GPU'})"
    table = pd.DataFrame({title(k, m): m.table.set_index("name").times_baseline for k, m in timings().items()})
    table = table.drop(index=["bare loop", "baseline"], errors="ignore").sort_values(table.columns[0])
    for paper in ("randomix", "miamix"): table[f"printed by {NAMES[paper]}"] = pd.Series(printed_cost(paper))
    table.index = [label("synermix_mixup" if m == "synermix" else m) for m in table.index]
    return table.map(lambda v: "" if pd.isna(v) else f"{v:.2f}")


def what_training_costs():
    machines = "; ".join(dict.fromkeys(map(machine, timings().values())))
    gpu = any(k.startswith("cuda") for k in timings())
    note = "" if gpu else "No GPU has been timed yet; there the network is faster and mixing weighs more. "
    return f"""
## What training costs

Times plain training, per step.

{as_markdown(cost_table())}

Measured on {machines}. {note}Details and quartiles: [speed](papers/speed.ipynb). \
Differences of a few per cent are within the noise of these measurements.
"""


# --- what a method needs

def takes(mixer, shape):
    try: mixer.draw(torch.rand(shape), generator=torch.Generator().manual_seed(0))
    except ValueError: return False
    return True


def in_the_network(method): return method in SYNERMIX or issubclass(MIXERS[method], FeatureMixer)


def works(method):
    "Numbers of spatial dimensions that a mixer takes, by trying."
    if in_the_network(method): return "what the network takes"
    shapes = {"1-D": (3, 2, 32), "2-D": (3, 2, 32, 32), "3-D": (3, 2, 16, 16, 16)}
    return ", ".join(name for name, shape in shapes.items() if takes(build(method), shape))


def needs(method):
    "What a mixer asks for beside a batch."
    if in_the_network(method): return NETWORK if method in SYNERMIX else "hooks inside the network"
    mixer, wants = build(method), []
    if mixer.views > 1: wants.append("two views of a batch")
    look = "a look at the images"
    if method == "saliencymix": wants.append(f"{look} (saliency)")
    elif mixer.sees_x: wants.append(look)
    return "; ".join(wants) or "nothing"


def home(method):
    "The target of a method's class in the reference."
    name = "SynerMix" if method in SYNERMIX else MIXERS[method].__name__
    return anchor(SYMBOLS[name][0], name)


def need(method):
    "The row of a method."
    cost, gains = cost_of(method), printed()[printed().method == method]
    by_data = [points(list(gains[gains.dataset == d].gain)) for d in ("cifar10", "cifar100")]
    return f"[{said(method)}](#{home(method)})", works(method), needs(method), f"{cost:.2f}" if cost else "", *by_data


def what_each_needs():
    columns = ["method", "data", "needs", "cost", "CIFAR-10, printed", "CIFAR-100, printed"]
    table = pd.DataFrame(map(need, trained()), columns=columns).to_markdown(index=False, disable_numparse=True)
    return f"""
## What each method needs

{table}

Cost: times plain training, as above. Printed: gain in top-1 over plain training, least to largest of what the papers \
print.
"""


# --- what we measured

def real():
    "Studies with records of more than the digits."
    return {n: s for n, s in STUDIES.items() if s.preset != "smoke" and n != "beyond/every_option"}


def scenario(s, cell, summary):
    "The gains of one data set and network, the largest first."
    gains = {r.method: [(r.gain, r.error)] for r in summary.itertuples() if not pd.isna(r.gain)}
    rows = sorted(gains, key=lambda m: -gains[m][0][0])
    axis = f"{s.label(s.main_metric)} over {s.label(s.against)}, points"
    picture = html(key(OURS) + dots(rows, {}, gains, s.label, xlabel=axis))
    return f"\n{in_markdown(figures.scenario_name(s, cell))}:\n{picture}"


def study(name, s):
    scenarios = s.summary().groupby(["dataset", "model", "how"], sort=False)
    pictures = "".join(scenario(s, cell, summary) for cell, summary in scenarios)
    return f"\n{link(name)}, preset {in_markdown(s.preset)}, {len(s.seeds)} seeds.\n{pictures}"


def ahead(s):
    "Which methods of a study no other beats in cost and in mean, by the records."
    costs, means = s.seconds().groupby("method").ratio.median().dropna(), s.summary().set_index("method")["mean"]
    both = [m for m in costs.index if m in means.index and isinstance(means[m], float)]
    best = front([costs[m] for m in both], [means[m] for m in both])
    names = ", ".join(in_markdown(s.label(m)) for m, first in zip(both, best) if first)
    return f"Of {len(both)} methods under this last protocol, no other is both cheaper and better than {names}"


def what_we_measured():
    protocol = STUDIES["beyond/one_protocol"]
    studies = {**real(), "beyond/one_protocol": protocol}
    return f"""
## What we measured

{WARNING if protocol.preset == "smoke" else ""}{"".join(study(n, s) for n, s in studies.items())}
{ahead(protocol)}, by the records' own timings and means; differences within two standard errors count for nothing.

The comparison that would answer the question is one protocol for {len(protocol.methods)} methods on real data:

```bash
mix-research reproduce beyond/one_protocol --preset short --download
```
"""


# --- in short

def own_records():
    "What our records say, if there are some of more than the digits."
    found = [f"- **Measured here, beyond the digits:** {sentence} ({link(n)}, preset {in_markdown(s.preset)}, "
             f"{len(s.records())} of {len(s.runs)} runs)\n"
             for n, s in real().items() for sentence in s.conclusions("") if sentence.startswith("**")]
    if real(): return "".join(found)
    return ("- **Our own records cannot tell you yet.** Methods were compared here on nothing but the digits of preset "
            "`smoke`, which is no evidence about them.\n")


def to_start_with():
    "The methods that three papers train, their gains, and that none is always safe."
    gains = printed()
    several = [m for m in by_gain() if gains[gains.method == m].paper.nunique() > 2]
    columns = gains.pivot_table(index=["artefact", "dataset", "model"], columns="method", values="gain")
    columns = columns[several].dropna()
    best = columns.idxmax(axis=1).value_counts()
    worst = gains.loc[gains[gains.method.isin(several)].gain.idxmin()]
    medians = ", ".join(f"{columns[m].median():+.2f} ({said(m)})" for m in several)
    firsts = ", ".join(f"{said(m)} is the best of them in {best.get(m, 0)}" for m in several)
    return (f"- **To start with: {listed(several[:-1])} or {said(several[-1])}.** Three of the papers train them all, "
            f"in {len(columns)} columns of their tables; median gains in top-1 over plain training are {medians}, and "
            f"{firsts}. None is always safe: {said(worst.method)} loses {-worst.gain:.2f} points in "
            f"{link(worst.artefact)}.\n")


def for_more():
    "What the papers print for their own methods."
    own, others = by_authors()
    ranges = "; ".join(f"{said(m)} {min(v):+.2f} to {max(v):+.2f}" for m, v in own.items())
    alone = "" if set(own) & set(others) else " No paper trains the method of another."
    return ("- **For more, try the paper methods, on your own data.** Their own papers print gains over plain training "
            f"of {ranges}.{alone} A method does best where its authors chose the setting.\n")


def in_short():
    cheap = [m for m in trained() if cost_of(m) and cost_of(m) < 1.1]
    return f"""
## In short

{own_records()}{to_start_with()}{for_more()}\
- **Cost hardly decides.** With PreAct-ResNet-18 a training step takes less than 1.1 times that of plain training with \
{listed(cheap)}; SynerMix takes {step_cost()['synermix']:.2f} times, since it needs a second pass. The smaller or \
faster the network, the more mixing weighs.
- **Sound, series, volumes:** see the column *data* below; a box, a blob or a plain average works in any number of \
dimensions, a saliency map does not.
"""


def which():
    "Writes the page."
    sections = in_short(), what_is_printed(), what_training_costs(), what_each_needs(), what_we_measured()
    write("which.md", "# Which method should I use?\n" + "".join(sections))
