import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


def note_commit(folder):
    """Which commit is built, for the records of runs: as git says; in an archive that git made, or an sdist, as it stands there."""
    def git(*args): return subprocess.run(["git", *args], capture_output=True, text=True).stdout.strip()
    if Path(".git").exists() and shutil.which("git"): commit = git("rev-parse", "HEAD") + "+changes" * bool(git("status", "--porcelain", "--", "mix_research", "papers"))
    else: commit = "".join(re.findall(r"[0-9a-f]{40}(?:\+changes)?", Path(".git_archival.txt").read_text()))
    path = Path(folder, ".git_archival.txt")
    path.unlink(missing_ok=True)  # in the tree of an sdist a link to the checkout's own
    path.write_text(f"commit: {commit}\n")


class WithCommit(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        note_commit(base_dir)


class WithPapers(build_py):
    """Copies papers/ (protocols, reference numbers, notebooks, records) and the commit into the package that is built; a checkout has them once, beside the package."""

    def run(self):
        super().run()
        if self.editable_mode: return
        target = Path(self.build_lib, "mix_research", "papers")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        shutil.copytree("papers", target, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        note_commit(target.parent)


setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], author=cfg["author"], author_email=cfg["author_email"],
    url=cfg["git_url"], license="Apache-2.0", keywords=cfg["keywords"], python_requires=f">={cfg['min_python']}",
    long_description=open("README.md", encoding="utf-8").read(), long_description_content_type="text/markdown",
    packages=find_packages(include=["mix_research*"]), package_data={"mix_research": ["*.mplstyle", "templates/*.ipynb"]}, install_requires=cfg["requirements"].split(), cmdclass={"build_py": WithPapers, "sdist": WithCommit},
    extras_require={key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["mix_research=mix_research._modidx:d"]},
)
