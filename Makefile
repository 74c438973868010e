# Each target installs what it needs into .venv first.
.PHONY: help demo report plan test lint docs site lock clean
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
BIN = .venv/bin
PYTHON ?= python3
# Which build of PyTorch: cpu (0.2 GB), or another one that uv's --torch-backend knows, such as auto or cu130 (about 3 GB).
TORCH ?= cpu
# Of tests: more than cores, since tests wait for services, and for Snakemake's jobs. Each computes on one thread.
WORKERS = 4

# Snakemake writes the path of Python into shell commands as it is.
ifneq ($(words [$(CURDIR)]$(if $(findstring ',$(CURDIR))$(findstring ",$(CURDIR))$(findstring \,$(CURDIR)), quoted)),1)
$(error The path of this directory has a space, a quote or a backslash, with which Snakemake cannot start jobs: $(CURDIR). Move it)
endif

help:
	@echo "make demo                 bake the demo model, which takes minutes"
	@echo "make plan TARGET=FILE     show what a run would do, why, and how long it takes"
	@echo "make report               write one page for all models that have a report"
	@echo "make test, make lint      the tests; style, types and rules"
	@echo "make docs, make site      pages made from the code; the documentation as a website"

# uv is several times as fast as pip, which is asked where uv reaches no index (it does not read pip's configuration).
install = $(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --requirement $(1) || \
  $(BIN)/python -m pip install --quiet --requirement $(1)

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "axbake needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name one: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || \
	  { echo "$(PYTHON) has no venv: install your system's package for it (Debian, Ubuntu: python3-venv)."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip uv==0.13.9
	@# PyTorch for processors alone is not in the index that pip asks; uv knows where it is.
	$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python --torch-backend $(TORCH) --constraint requirements.lock torch || \
	  { echo "PyTorch's own index cannot be reached ($(TORCH)): pip installs the build in its index, on a PC mostly CUDA's, 3 GB."; \
	    $(BIN)/python -m pip install --quiet --constraint requirements.lock torch; }
	$(call install,requirements.lock)
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

.venv/developer: .venv/installed requirements-dev.lock
	$(call install,requirements-dev.lock)
	touch $@

demo: .venv/installed
	$(BIN)/snakemake --cores $(CORES) results/demo/report.html
	@echo
	@echo "The demo model is baked. Its models are EMULATED: they run on hosts, not on boards."
	@echo "  pictures  results/demo/reference/image.png   what diffusers draws, in float32"
	@echo "            results/demo/simulation/image.png  what the quantised models draw"
	@echo "  models    results/demo/{text_encoder,unet,vae_encoder,vae_decoder}.axmodel"
	@echo "  report    results/demo/report.html             open it in a browser"
	@echo
	@echo "A second demo, a rectified flow of Stable Diffusion 3's structure: .venv/bin/axbake bake demo_flow"
	@echo "Next: give your own checkpoint a row in config/models.tsv (README.md, “Bake your checkpoint”)."

# One page for all models that have a report; a run makes each model's own.
report: .venv/installed
	@$(BIN)/axbake report

# `make plan TARGET=results/demo/unet.axmodel`: show what a run would do, why, and how long it takes.
plan: .venv/installed
	@$(BIN)/axbake plan $(TARGET)

test: .venv/developer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: .venv/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow/Snakefile workflow/rules
	$(BIN)/snakemake --lint

docs: .venv/developer
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_pulsar2.py
	$(BIN)/python docs/make_errors.py

site: .venv/developer
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site
	@echo "The documentation is in build/site/index.html. Its search needs a web server: $(BIN)/mkdocs serve."

lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade pip
	.venv-lock/bin/python -m pip install --quiet .
	(echo "# Made by \`make lock\` from pyproject.toml on Python 3.11."; \
	 .venv-lock/bin/python -m pip freeze --exclude axbake | sed 's/+cpu$$//') > requirements.lock
	.venv-lock/bin/python -m pip install --quiet --constraint requirements.lock --group dev
	(echo "# What tests, style and the site take besides requirements.lock. Made by \`make lock\` from pyproject.toml on Python 3.11."; \
	 .venv-lock/bin/python -m pip freeze --exclude axbake | sed 's/+cpu$$//' | grep --invert-match --line-regexp --fixed-strings --file requirements.lock) \
	 > requirements-dev.lock
	rm -rf .venv-lock

clean:
	rm -rf results logs build .snakemake .axbake
