# Two commands matter: `make demo` and `make test`. Each sets itself up on a machine that has only Python >= 3.11 and pip.
#   PYTHON=python3.13        the interpreter to build the environment with
#   VENV=.venv               where the environment goes
#   PIP_ARGS="..."           passed to pip (torch and torchvision must come from the same index)
#   ARGS="..."               passed to the command itself, e.g. make demo ARGS="--steps 50"
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
ARGS ?=
BIN := $(VENV)/bin
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

.DELETE_ON_ERROR:
.PHONY: help demo test lab bench pretrain results notebooks colab browser offline slides site

help:
	@sed -n '1,6p' Makefile; echo "targets: demo test lab bench pretrain results notebooks colab browser offline slides site"

# One stamp a set of extras; a changed pyproject.toml installs again.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mixofshow_lite needs Python 3.11 or newer: make PYTHON=python3.13 ...")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e ".[metrics]"
	@touch $@

$(VENV)/.lab: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e ".[metrics,lab]"
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS) -e ".[metrics,lab,browser,test]"
	@touch $@

demo: $(VENV)/.run
	$(BIN)/mixofshow demo $(ARGS)

# Chromium, for the browser tests, is installed if it is missing and this is root on a Debian. Two processes of one thread
# are faster than one of two: tests are mostly small.
test: $(VENV)/.test
	.ci/chromium
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)
	$(if $(NOTEBOOKS),$(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout 300 $(NOTEBOOKS))

# The root is the checkout, so that the notebooks' links to source files open.
lab: $(VENV)/.lab
	$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks $(ARGS)

# Speed and memory as ratios within one run, saved to data/results/bench_*.json: sampling and tuning, each speed trick alone, fusion
# (Stable Diffusion 1.5's layer sizes too; most of an hour on two cores), regions; and what tuning needs there, estimated.
bench: $(VENV)/.run
	$(BIN)/python tests/bench/bench_speed.py
	$(BIN)/python tests/bench/bench_speed.py sd15
	$(BIN)/python tests/bench/bench_tricks.py
	$(BIN)/python tests/bench/bench_tricks.py sd15 --rounds 4
	$(BIN)/python tests/bench/bench_regions.py
	$(BIN)/python tests/bench/bench_regions.py sd15 --steps 3 --repeats 2
	$(BIN)/python tests/bench/bench_memory.py
	$(BIN)/python tests/bench/bench_fusion.py $(ARGS)

pretrain: $(VENV)/.run
	$(BIN)/python -m mixofshow_lite.pocket.train.pretrain all $(ARGS)
	$(BIN)/python -m mixofshow_lite.pocket.train.clip train
	$(BIN)/python -m mixofshow_lite.pocket.train.pretrain checksums

# Measures the shipped base and every study again, and what notebooks need of them; hours on two cores. (The demo's figure is
# `make demo`, speed is `make bench`.) The studies go on where they stopped; what they tune is kept in runs/paper.
results: $(VENV)/.lab
	$(BIN)/python -m mixofshow_lite.pocket.train.bars
	$(BIN)/python -m mixofshow_lite.pocket.train.sheets model
	$(BIN)/python -m mixofshow_lite.paper all $(ARGS)
	$(BIN)/python -m mixofshow_lite.paper ship
	$(BIN)/python -m mixofshow_lite.paper claims --readme README.md
	$(BIN)/python .ci/notebooks.py $(NOTEBOOKS)

# Runs every notebook in place, so that its committed outputs are fresh.
notebooks: $(VENV)/.lab
	$(BIN)/python .ci/notebooks.py $(NOTEBOOKS)

# The notebooks on Colab's versions, installed by their own set-up cell (PYTHON=python3.13 is Colab's).
COLAB_VENV ?= .venv-colab
$(COLAB_VENV)/.made: tests/colab/requirements.txt
	$(PYTHON) -m venv $(COLAB_VENV)
	$(COLAB_VENV)/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r tests/colab/requirements.txt
	@touch $@

colab: $(COLAB_VENV)/.made
	$(COLAB_VENV)/bin/python .ci/colab.py $(ARGS)

# Every notebook in a real JupyterLab in a headless Chromium, widgets used; pictures of the pages in out/lab.
browser: $(VENV)/.test
	.ci/chromium
	$(BIN)/python .ci/lab.py $(ARGS)

# Wheels and notebooks for a room without a network: out/offline.
offline: $(VENV)/.lab
	$(BIN)/python .ci/offline.py --pip "$(PIP_ARGS)"

# The executed notebooks as web pages, with a page of sliders whose pictures are drawn once: out/site.
site: $(VENV)/.lab
	$(BIN)/python .ci/play.py
	$(BIN)/python .ci/pages.py site

# The same as slides: out/slides.
slides: $(VENV)/.lab
	$(BIN)/python .ci/pages.py slides
