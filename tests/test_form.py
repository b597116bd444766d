"""The rules of form in CONTRIBUTING, counted."""
import ast
import io
import re
import tokenize

import pytest

from conftest import ROOT

FOLDERS = ("mix_research", "site", "tests")


def sources(folder):
    """The code of a folder, but for what nbdev writes for itself."""
    return [p.read_text() for p in sorted((ROOT / folder).glob("*.py")) if p.name != "_modidx.py"]


def lines_of(texts):
    lines = [line for text in texts for line in text.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("# %%")]


def share(found, lines): return 1000 * found / len(lines)
def semicolons(text): return sum(t.string == ";" for t in tokenize.generate_tokens(io.StringIO(text).readline))


def nested(tree):
    """Conditionals inside conditionals."""
    outer = [n for n in ast.walk(tree) if isinstance(n, ast.IfExp)]
    return sum(isinstance(inner, ast.IfExp) for n in outer for inner in (n.test, n.body, n.orelse))


def bodies(tree):
    """The lines of every function's body, without its documentation."""
    for f in ast.walk(tree):
        if not isinstance(f, ast.FunctionDef): continue
        documented = isinstance(f.body[0], ast.Expr) and isinstance(f.body[0].value, ast.Constant)
        body = f.body[documented:]
        if body: yield f.end_lineno - body[0].lineno + 1, f.name


@pytest.mark.parametrize("folder", FOLDERS)
def test_lines(folder):
    lines = lines_of(sources(folder))
    assert share(sum(len(line) > 120 for line in lines), lines) < 20
    assert not [line for line in lines if len(line) > 160]


@pytest.mark.parametrize("folder", FOLDERS)
def test_statements(folder):
    texts = sources(folder)
    lines, trees = lines_of(texts), list(map(ast.parse, texts))
    assert share(sum(map(semicolons, texts)), lines) < 2
    walruses = sum(isinstance(n, ast.NamedExpr) for tree in trees for n in ast.walk(tree))
    assert share(walruses, lines) < 1
    assert share(sum(map(nested, trees)), lines) < 1


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_function_is_a_page(folder):
    longest = max(body for text in sources(folder) for body in bodies(ast.parse(text)))
    assert longest[0] <= 30, longest


def test_a_cell_holds_one_idea():
    cells = [cell for text in sources("mix_research") for cell in re.split(r"(?m)^# %% \.\..*\n", text)[1:]]
    sizes = sorted(sum(bool(line.strip()) for line in cell.splitlines()) for cell in cells)
    assert sizes[int(.9 * len(sizes))] <= 26
    assert sizes[-1] <= 60
