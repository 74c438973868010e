# Each target installs what it needs into .venv first.
.PHONY: help demo report plan test lint docs site lock clean
CORES ?= $(shell nproc)
BIN = .venv/bin
# Of tests: one more than cores, up to 4, since some tests wait for services.
WORKERS = $(shell expr $(CORES) + 1 '&' $(CORES) '<' 4 '|' 4)

# Snakemake writes the path of Python into shell commands as it is.
ifneq ($(words [$(CURDIR)]$(if $(findstring ',$(CURDIR))$(findstring ",$(CURDIR))$(findstring \,$(CURDIR)), quoted)),1)
$(error The path of this directory has a space, a quote or a backslash, with which Snakemake cannot start jobs: $(CURDIR). Move it)
endif

help:
	@echo "make demo                 bake the demo model, which takes minutes"
	@echo "make plan TARGET=FILE     what a run would do, why, and for how long"
	@echo "make report               one page over all models that have a report"
	@echo "make test, make lint      the tests; style, types and rules"
	@echo "make docs, make site      pages made from the code; the documentation as a site"

.venv/installed: requirements.lock
	python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	touch $@

demo: .venv/installed
	$(BIN)/snakemake --cores $(CORES) results/demo/report.html
	@echo
	@echo "The demo model is baked. Its models are EMULATED: hosts run them, boards cannot."
	@echo "  pictures  results/demo/reference/image.png   what diffusers draws, in float32"
	@echo "            results/demo/simulation/image.png  what the quantised models draw"
	@echo "  models    results/demo/{text_encoder,unet,vae_encoder,vae_decoder}.axmodel"
	@echo "  report    results/demo/report.html             open it in a browser"
	@echo
	@echo "Next: give your own checkpoint a row in config/models.tsv (README.md, «Bake your checkpoint»)."

# The page over all models that have a report; a run makes the models' own.
report: .venv/installed
	@$(BIN)/python -m axbake.pages.overview

# `make plan TARGET=results/demo/unet.axmodel`: what a run would do, why, and for how long.
plan: .venv/installed
	@$(BIN)/python -m axbake.plan $(TARGET)

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow/rules
	$(BIN)/snakemake --lint

docs: .venv/installed
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_pulsar2.py
	$(BIN)/python docs/make_errors.py

site: .venv/installed
	$(BIN)/mkdocs build --strict --quiet --site-dir build/site
	@echo "The documentation is in build/site/index.html. Its search needs a web server: $(BIN)/mkdocs serve."

lock:
	rm -rf .venv-lock
	python3 -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --requirement requirements.in
	(echo "# Made by \`make lock\` from requirements.in on Python 3.11."; \
	 .venv-lock/bin/python -m pip freeze | sed 's/+cpu$$//') > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf results logs build .snakemake .axbake
