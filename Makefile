# Every target works on a fresh checkout: what it needs is installed into .venv first, once.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
README_DIR ?= .
# compiled modules are kept: hundreds of processes would each compile torch and fastai anew
export PYTHONDONTWRITEBYTECODE :=

.PHONY: reproduce test lab lib readme render bench site pins
reproduce: .venv/ready ## train RandoMix's table 1 on the digits and print it
	mix-research reproduce randomix/table_1 --preset smoke

test: .venv/ready ## every notebook and every test
	OMP_NUM_THREADS=1 nbdev_test --n_workers 2 # a thread each: two processes of two threads would wait for each other
	OMP_NUM_THREADS=1 nbdev_test --path mix_research/templates # the notebook that a new method begins as
	OMP_NUM_THREADS=1 pytest -q -rs -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

lab: .venv/ready ## JupyterLab
	jupyter lab

lib: .venv/ready ## the library from its notebooks
	nbdev_export
	nbdev_clean
	nbdev_clean --fname mix_research/templates
	nbdev_clean --fname papers

render: lib ## execute all notebooks in place; papers' tables show the committed records
	for f in nbs/*.ipynb nbs/*/*.ipynb papers/*/*.ipynb; do jupyter nbconvert --log-level ERROR --to notebook --execute --inplace $$f || exit 1; done
	nbdev_clean
	nbdev_clean --fname papers

readme: .venv/ready ## README.md from nbs/index.ipynb
	jupyter nbconvert --log-level ERROR --to markdown nbs/index.ipynb --output-dir $(README_DIR) --output README \
	  --NbConvertApp.output_files_dir=nbs/images --TagRemovePreprocessor.enabled=True \
	  --TagRemovePreprocessor.remove_input_tags=hide_input --TagRemovePreprocessor.remove_cell_tags=hide_cell

bench: .venv/ready ## what mixing and training cost on this machine
	mix-research bench

site: .venv/ready ## the notebooks, the records and the reference as pages in _docs/
	OMP_NUM_THREADS=1 python site/build.py

pins: .venv/bin/uv ## constraints.txt for what settings.ini asks; ARGS=--upgrade renews every version
	$(BIN)/uv pip compile -q --universal --python-version 3.10 --all-extras --generate-hashes --no-annotate \
	  --build-constraints constraints.txt --custom-compile-command "make pins" $(ARGS) setup.py -o constraints.txt

# Only what constraints.txt has the hash of: pip installs uv, uv the rest, then the checkout, which may fetch nothing.
.venv/bin/uv: constraints.txt
	$(PYTHON) -m venv .venv
	sed -n '/^uv==/,/[^\\]$$/p' constraints.txt | \
	  $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes --only-binary :all: -r /dev/stdin
	touch -c $@

.venv/ready: .venv/bin/uv constraints.txt settings.ini setup.py pyproject.toml
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes --no-build -r constraints.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --no-index --no-build-isolation -e ".[dev,cluster,log,speed,site]"
	touch $@
