"""Sphinx settings of the site; `build.py` copies this file beside the sources it writes."""
import re
from configparser import ConfigParser
from pathlib import Path

from latex2mathml.converter import convert

cfg = ConfigParser(delimiters=["="])
root = next(p for p in [Path.cwd(), *Path.cwd().parents] if (p / "settings.ini").exists())
cfg.read(root / "settings.ini", encoding="utf-8")
cfg = cfg["DEFAULT"]
project, author, release, copyright = cfg["title"], cfg["author"], cfg["version"], cfg["copyright"]

extensions = ["myst_nb"]
nb_execution_mode = "off"  # notebooks are shown with the outputs they were committed with
nb_render_markdown_format = "myst"
nb_code_prompt_show, nb_code_prompt_hide = "Code", "Code"
kinds = {"text/html": 0, "image/png": 5, "image/jpeg": 6, "text/markdown": 8}  # of an output, the first wins
nb_mime_priority_overrides = [("html", kind, priority) for kind, priority in kinds.items()]
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "attrs_inline", "attrs_block"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]
exclude_patterns = ["static"]

html_theme = "furo"
html_title = "mix_research"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/favicon.svg"
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_show_search_summary = False  # it would be fetched, which file:// forbids
blue, light_blue = "#0b62a8", "#7cc0f5"


def colors(blue):
    brand = {f"color-brand-{what}": blue for what in ("primary", "content", "visited")}
    return brand | {"ours": blue, "theirs": "#8a8f98"}


html_theme_options = {
    "light_css_variables": colors(blue),
    "dark_css_variables": colors(light_blue),
    "top_of_page_buttons": [],
}
pygments_style, pygments_dark_style = "tango", "github-dark"


def mathml(self, node):
    "Formulas as MathML, which browsers draw themselves: nothing to load, and they can be read aloud and copied."
    from docutils.nodes import SkipNode

    block = node.tagname == "math_block"
    sizes = {"l": r"\left", "r": r"\right"}  # \Bigl, \bigr and the like
    tex = re.sub(r"\\[Bb]ig([lr]?)\b", lambda m: sizes.get(m[1], ""), node.astext())
    tex = re.sub(r"\\operatorname\*?", r"\\mathrm", tex)
    out = convert(tex, display="block" if block else "inline")
    self.body.append(f'<div class="math">{out}</div>' if block else out)
    raise SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(mathml, None), block_renderers=(mathml, None))


html_math_renderer = "mathml"
