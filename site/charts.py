"""Differences between methods as a picture: the paper's as rings, ours as discs."""
from functools import lru_cache
from html import escape

import pandas as pd

from sources import SPECS
from mix_research.study import Study

PRESETS = ("paper", "fast", "short", "smoke")  # from the most faithful
PAPER = '<span class="ring"></span> the paper, one ring per data set and network'
OURS = '<span class="disc"></span> ours, with two standard errors'


def key(*signs): return f'<p class="key">{" &ensp; ".join(signs)}</p>'


def shown(name):
    "The study at the most faithful preset at which two methods can be compared; else the smallest."
    for preset in PRESETS:
        study = Study(name, preset)
        if study.measured().method.nunique() > 1: return study
    return study


STUDIES = {name: shown(name) for name, spec in SPECS.items() if spec.cells}


@lru_cache(maxsize=None)
def differences(s):
    "Row -> the paper's differences to the row `against`, one per column; row -> ours with their standard errors."
    paper, theirs, ours = s.paper(), {}, {}
    for (m, *column), (value, _) in paper.items():
        base = paper.get((s.against, *column))
        if m != s.against and base: theirs.setdefault(m, []).append(value - base[0])
    for r in s.summary().itertuples():
        if r.method != s.against and not pd.isna(r.gain): ours.setdefault(r.method, []).append((r.gain, r.error))
    return theirs, ours


def compared_rows(s):
    "The rows of a study of which there is a difference."
    theirs, ours = differences(s)
    return [m for m in s.spec.rows if m in theirs or m in ours]


# --- the picture

def ticks(low, high):
    "Round numbers between two, seven at most."
    step = next(s for s in (.1, .2, .5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 6)
    first, last = -(-int(low / step * 1e6) // 1_000_000) - 1, int(high / step) + 2
    return [round(k * step, 6) for k in range(first, last) if low <= k * step <= high]


def width_of_bar(error): return 0 if pd.isna(error) else 2 * error


def span(rows, theirs, ours):
    "The least and the largest number to be drawn, with some room."
    bars = [(g, width_of_bar(e)) for m in rows for g, e in ours.get(m, [])]
    values = [0] + [v for m in rows for v in theirs.get(m, [])] + [g + sign * w for g, w in bars for sign in (-1, 1)]
    low, high = min(values), max(values)
    pad = max(.08 * (high - low), .05)
    return low - pad, high + pad


def shortened(text, longest): return text if len(text) <= longest else text[:longest - 1] + "…"


def row(name, y, left, x, theirs, ours):
    "One method: its name, rings above, discs with bars below."
    out = [f'<text class="row" x="{left - 8}" y="{y + 4}">{escape(name)}</text>']
    out += [f'<circle class="theirs" cx="{x(v)}" cy="{y - 3}" r="3.4"/>' for v in theirs]
    for gain, error in ours:
        a, b = x(gain - width_of_bar(error)), x(gain + width_of_bar(error))
        if not pd.isna(error): out.append(f'<line class="ours" x1="{a}" x2="{b}" y1="{y + 4}" y2="{y + 4}"/>')
        out.append(f'<circle class="ours" cx="{x(gain)}" cy="{y + 4}" r="3.4"/>')
    return "".join(out)


def axis(x, low, high, bottom, middle, xlabel):
    "Lines, numbers and name of the axis: what lies under the rows, and what stands below them."
    lines = [f'<line class="grid" x1="{x(t)}" x2="{x(t)}" y1="4" y2="{bottom}"/>'
             f'<text class="tick" x="{x(t)}" y="{bottom + 13}">{t:g}</text>' for t in ticks(low, high)]
    lines.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="4" y2="{bottom}"/>')
    name = f'<text class="tick" x="{middle}" y="{bottom + 29}">{escape(xlabel)}</text>' if xlabel else ""
    return "".join(lines), name


def dots(rows, theirs, ours, labels, width=420, longest=30, line=21, xlabel=""):
    "A row per method: the paper's numbers as rings, one per column, ours as discs with two standard errors."
    low, high = span(rows, theirs, ours)
    names = [shortened(labels(m), longest) for m in rows]
    left, bottom = 18 + 5.6 * max(map(len, names)), 8 + line * len(rows)
    def x(value): return f"{left + (width - left - 10) * (value - low) / (high - low):.1f}"
    under, below = axis(x, low, high, bottom, width / 2, xlabel)
    drawn = [row(name, 8 + line * (i + .5), left, x, theirs.get(m, []), ours.get(m, []))
             for i, (m, name) in enumerate(zip(rows, names))]
    size = f'viewBox="0 0 {width} {bottom + (34 if xlabel else 18)}" style="max-width:{width * 1.4:.0f}px"'
    label = f'role="img" aria-label="differences of {len(rows)} methods"'
    return f'<svg class="dots" {size} {label}>{under}{"".join(drawn)}{below}</svg>'
