"""Where the site's sources are written, and what the papers and their artefacts are called on every page."""
import re
from pathlib import Path

from mix_research.study import artefacts

HERE = Path(__file__).parent
ROOT = HERE.parent
WORK = ROOT / "_proc" / "site"  # what Sphinx reads
written = set()  # what this call has written


def write(path, content):
    "Writes a source, text or bytes, when it has changed, so that Sphinx reads only what is new."
    path, content = WORK / path, content if isinstance(content, bytes) else content.encode()
    written.add(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content: path.write_bytes(content)


def forget():
    "Deletes sources that an earlier call wrote and this one did not: of notebooks that are gone."
    for path in WORK.rglob("*"):
        if path.is_file() and path not in written: path.unlink()


def filled(page, **known):
    "A page of this folder, with what stands in double braces filled in."
    text = (HERE / page).read_text()
    for what, value in known.items(): text = text.replace(f"{{{{{what}}}}}", str(value))
    return text


def html(text):
    "HTML on a page, in a fence that nothing in it can close."
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"\n{fence}{{raw}} html\n{text}\n{fence}\n"


def hidden_toc(lines): return "\n```{toctree}\n:hidden:\n\n" + "\n".join(lines) + "\n```\n"


def prose(text):
    "Documentation in place as Markdown: formulas and code stay, stars and brackets are no markup."
    parts = re.split(r"(\$[^$]+\$|`[^`]+`)", (text or "").replace("\n", " "))
    return "".join(p if i % 2 else re.sub(r"([*<\[\]|_])", r"\\\1", p) for i, p in enumerate(parts))


# --- names

NAMES = dict(randomix="RandoMix", miamix="MiAMix", lmix="LMix", synermix="SynerMix", beyond="Beyond the papers")
NAMES |= {p: p for p in dict.fromkeys(a.split("/")[0] for a in artefacts()) if p not in NAMES}
PAPERS = list(NAMES)


def place(name):
    "The place of an artefact in lists: by paper, then table_2 before table_10."
    paper, artefact = name.split("/")
    return PAPERS.index(paper), [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", artefact)]


SPECS = {name: artefacts()[name] for name in sorted(artefacts(), key=place)}


def of_paper(paper): return [name for name in SPECS if name.startswith(f"{paper}/")]


def title_of(name):
    "An artefact as a title: `lmix/table_4` is LMix, table 4."
    paper, artefact = name.split("/")
    artefact = artefact.replace("_", " ")
    return artefact.capitalize() if paper == "beyond" else f"{NAMES[paper]}, {artefact}"


def upper(text):
    "A sentence begins with a capital, unless its first word has one inside, like t-SNE."
    return text[:1].upper() + text[1:] if text.split()[0].islower() else text
