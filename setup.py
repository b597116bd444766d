from configparser import ConfigParser
from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read("settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"], author=cfg["author"], author_email=cfg["author_email"],
    url=cfg["git_url"], license="Apache-2.0", keywords=cfg["keywords"], python_requires=f">={cfg['min_python']}",
    long_description=open("README.md", encoding="utf-8").read(), long_description_content_type="text/markdown",
    packages=find_packages(include=["mix_research*"]), install_requires=cfg["requirements"].split(),
    extras_require={"dev": cfg["dev_requirements"].split(), "site": cfg["site_requirements"].split()},
    entry_points={"console_scripts": cfg["console_scripts"].split(), "nbdev": ["mix_research=mix_research._modidx:d"]},
)
