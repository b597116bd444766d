import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]


class WithPapers(build_py):
    """Copies papers/ (protocols, reference numbers, notebooks, records) into the package that is built; a checkout has it once, beside the package."""

    def run(self):
        super().run()
        if self.editable_mode: return
        target = Path(self.build_lib, "mix_research", "papers")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        shutil.copytree("papers", target, ignore=shutil.ignore_patterns(".*", "__pycache__"))


setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], author=cfg["author"], author_email=cfg["author_email"],
    url=cfg["git_url"], license="Apache-2.0", keywords=cfg["keywords"], python_requires=f">={cfg['min_python']}",
    long_description=open("README.md", encoding="utf-8").read(), long_description_content_type="text/markdown",
    packages=find_packages(include=["mix_research*"]), install_requires=cfg["requirements"].split(), cmdclass={"build_py": WithPapers},
    extras_require={key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["mix_research=mix_research._modidx:d"]},
)
