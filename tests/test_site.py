"""The site: built once, then every page, link, the search and the mixing page in a real browser, without a network."""
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
from urllib.parse import unquote, urlsplit

import pytest
import torch

from conftest import ROOT
from mix_research.study import artefacts

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [m for m in ("sphinx", "furo", "myst_nb", "latex2mathml") if not importlib.util.find_spec(m)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the site needs {', '.join(MISSING)}: make .venv/ready")
DRIVEN = BROWSER and importlib.util.find_spec("playwright")
needs_browser = pytest.mark.skipif(not DRIVEN, reason="needs chromium and playwright")
WINGS = ("mixing", "inputs", "runs", "tables", "app")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "some" / "where"
    done = subprocess.run([sys.executable, "site/build.py", str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return out


@pytest.fixture(scope="session")
def pages(site):
    from bs4 import BeautifulSoup

    found = {p: BeautifulSoup(p.read_text(), "html.parser") for p in sorted(site.rglob("*.html"))}
    return {p: soup for p, soup in found.items() if not soup.find("meta", {"http-equiv": "refresh"})}


@pytest.fixture(scope="session")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser):
    "A page of the width of a telephone, that remembers what went wrong."
    context = browser.new_context(viewport={"width": 400, "height": 800}, offline=True)
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.errors = []
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    def asked(request):
        if not request.url.startswith(("file:", "data:", "blob:")): page.errors.append(f"asked for {request.url}")
    page.on("request", asked)
    yield page
    context.close()


def leads_nowhere(link, page, site, ids):
    """A link within the site is relative, so that any folder will do, and leads to a file and a place in it."""
    to = urlsplit(link)
    target = page if not to.path else (page.parent / unquote(to.path)).resolve()
    inside = not to.scheme and not link.startswith("/") and target.is_file() and site in target.parents
    return not inside or bool(to.fragment and target in ids and unquote(to.fragment) not in ids[target])


def test_links_resolve(site, pages):
    ids = {p: {e["id"] for e in soup.find_all(id=True)} for p, soup in pages.items()}
    broken = []
    for page, soup in pages.items():
        for e in soup.find_all(["a", "link", "script", "img", "source", "iframe", "form"]):
            link = e.get("href") or e.get("src") or e.get("action")
            if not link or link.startswith("data:"): continue
            if urlsplit(link).scheme and e.name == "a": continue  # the world outside, for readers to follow
            if leads_nowhere(link, page, site, ids): broken.append(f"{page.relative_to(site)}: {link}")
    assert len(pages) > 90 and not broken, broken
    for css in site.rglob("*.css"):
        urls = [u.strip("\"'") for u in re.findall(r"url\(([^)]*)\)", css.read_text())]
        assert not [u for u in urls if "//" in u and not u.startswith("data:")], css


def test_everything_has_its_place(site, pages):
    gallery = pages[site / "papers" / "index.html"]
    cards = {c["href"].removesuffix(".html"): c for c in gallery.select("a.card")}
    assert set(cards) == set(artefacts())
    for card in cards.values(): assert card.select_one(".thumb img, .thumb svg, .thumb .name")
    for path in (site / "api").glob("[!i]*.html"):
        module = importlib.import_module(f"mix_research.{path.stem}")
        shown = {h.get_text().rstrip("¶") for h in pages[path].find_all("h2")}
        assert set(getattr(module, "__all__", [])) <= shown, path
    for page, soup in pages.items():  # but for the notebook that writes notebooks
        if page.stem == "04_starter": continue
        assert not re.search(r"#\| (export|hide)", soup.get_text()), page
    options = " ".join(pages[site / "api" / "cli.html"].get_text(" ").split())
    assert "only these rows" in options and "Annotated" not in options, "options that commands share, with their types"
    passed_on = pages[site / "api" / "mixers.html"].find(id="mixers-gridmix").find("a", class_="reference")
    assert passed_on["href"] == "classic.html#classic-gridmix"
    page = pages[site / "api" / "classic.html"]
    table = " ".join(page.find(id="classic-gridmix").find_next("table").get_text(" ").split())
    assert "cells" in table and "(2, 6)" in table and "fewest and most cells along a side" in table
    assert page.find("math"), "formulas are drawn"


def test_old_addresses_lead_on(site):
    """Notebooks stood in one folder, under other numbers."""
    now = {"02_mixers": "mixers", "12_pictures": "figures", "08_batches": "loaders", "15_train": "train"}
    now["13b_labels"] = "labels"  # which has no module
    for old, module in now.items():
        target = re.search(r'url=([^"]+)"', (site / "nbs" / f"{old}.html").read_text())[1]
        page = (site / "nbs" / target).resolve()
        assert page.is_file() and page.stem.endswith(module) and page.parent.parent == site / "nbs"


def test_library_is_explained_by_wings(site, pages):
    page = pages[site / "nbs" / "index.html"]
    shown = [a["href"] for a in page.select("article dt a.reference")]
    rooms = [p for wing in WINGS for p in sorted((ROOT / "nbs" / wing).glob("*.ipynb"))]
    assert shown == [str(p.relative_to(ROOT / "nbs").with_suffix(".html")) for p in rooms]
    assert all(h.find_next("p").get_text() for h in page.select("article h2"))


@needs_browser
def test_every_page_opens(site, pages, tab):
    wrong = []
    def too_wide(): return tab.evaluate("document.documentElement.scrollWidth - innerWidth")
    for page in pages:
        tab.goto(page.as_uri())
        said = [*tab.errors, *([f"{too_wide()} pixels too wide"] if too_wide() > 0 else [])]
        wrong += [f"{page.relative_to(site)}: {e}" for e in said]
        tab.errors.clear()
    tab.goto((site / "papers" / "index.html").as_uri())
    for wide in (700, 1000, 1300, 1430, 1600, 1840, 2500):
        tab.set_viewport_size({"width": wide, "height": 800})
        if too_wide() > 0: wrong.append(f"at {wide}: {too_wide()} pixels too wide")
    assert not wrong, wrong


@needs_browser
def test_search_finds(site, tab):
    tab.goto((site / "index.html").as_uri())
    tab.evaluate("document.querySelector('.sidebar-search').value = 'MiAMix'")
    tab.evaluate("document.querySelector('form.sidebar-search-container').submit()")
    tab.wait_for_selector("#search-results li a")
    tab.wait_for_function("document.querySelectorAll('#search-results li').length > 10")
    found = tab.eval_on_selector_all("#search-results li a", "links => links.map(a => a.href)")
    for page in ("papers/miamix/", "nbs/mixing/10_miamix"): assert any(page in f for f in found), page
    assert not tab.errors


@needs_browser
def test_light_and_dark(site, browser):
    def brightness(scheme):
        page = browser.new_page(color_scheme=scheme)
        page.goto((site / "which.html").as_uri())
        r, g, b = map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])
        page.close()
        return r + g + b
    assert brightness("light") > 700 and brightness("dark") < 150


def picture(tab, name):
    "What a canvas shows, (3, H, W) in [0, 1]."
    canvas = f"document.getElementById('mix-view-{name}')"
    pixels = "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    size, data = tab.evaluate(f"(c => [c.width, {pixels}])({canvas})")
    return torch.tensor(data).view(size, size, 4)[..., :3].permute(2, 0, 1) / 255


class MixPage:
    "The page on which two images are mixed."
    def __init__(self, tab, site):
        self.tab = tab
        tab.goto((site / "mix.html").as_uri())
        tab.wait_for_selector("#mix[data-drawn]")

    def after(self, act, *given, **kw):
        "Does something, and waits until the page is drawn again."
        before = int(self.tab.get_attribute("#mix", "data-drawn"))
        act(*given, **kw)
        self.tab.wait_for_function("before => +document.getElementById('mix').dataset.drawn > before", arg=before)

    def choose(self, what, label): self.after(self.tab.select_option, f"#mix-{what}", label=label)
    def shows(self, name): return picture(self.tab, name)
    def share(self): return float(re.search(r"\d\.\d+", self.tab.text_content("#mix-label"))[0])


def mixed(name, pair, seed=1, lam=.5):
    "The mix of a pair as the library draws it, at one share."
    from mix_research.mixers import build
    mixer = build(name)
    mixer.share = lambda n, x, generator: torch.full((n,), 1 - lam)
    return mixer.make(torch.tensor([1, 0]), pair, pair, torch.Generator().manual_seed(seed))


@needs_browser
def test_two_images_are_mixed_as_the_library_does(site, tab):
    page = MixPage(tab, site)
    before = page.shows("x")
    tab.focus("#mix-lam")
    page.after(tab.keyboard.press, "ArrowLeft")  # from .6 to .5
    pair = torch.stack([page.shows("a"), page.shows("b")])
    assert (page.shows("x") - before).abs().max() > .1 and tab.text_content("#mix-asked") == "0.5"
    for label in ("FMix", "CutMix", "GridMix", "GMix", "Mixup"):
        page.choose("method", label)
        mix = mixed(label.lower(), pair)
        assert (page.shows("x") - mix.blend(pair)[0]).abs().max() < 2.1 / 255, label  # masks and canvas are bytes
        assert page.share() == pytest.approx(float(mix.lam[0]), abs=6e-4), label
    page.choose("method", "ResizeMix")
    mix = mixed("resizemix", pair)
    assert (page.shows("x") - mix.blend(pair)[0]).abs().mean() < .02  # resized by the browser
    assert page.share() == pytest.approx(float(mix.lam[0]), abs=6e-4)
    before = page.shows("x")
    page.choose("seed", "1")
    assert (page.shows("x") - before).abs().max() > .1
    page.choose("method", "SaliencyMix")
    assert tab.is_disabled("#mix-seed") and not tab.errors
    for control in tab.query_selector_all("#mix select, #mix input"):
        assert control.evaluate("e => e.labels.length") == 1
