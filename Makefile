# make reproduce: everything from nothing to tables and figures.   make test: everything that must hold.
# make release: the finished runs of a profile as one file, which make reproduce FROM=FILE checks and uses.
# make plan: what make reproduce would do.   make tables: the published tables again, from runs/published.
PYTHON ?= python3
BIN = .venv/bin
export PYTHONWARNINGS ?= ignore

.PHONY: reproduce release plan tables rehearse test arithmetic lab install readme site notebooks clean

# make reproduce PROFILE=small TABLES="pixdepth.N1 geosets.W1.ours" DATA="nyuv2=/data/nyuv2" CORES=8 OPTIONS="..." (of Snakemake)
PROFILE ?= quick
ROWS = --profile $(PROFILE) $(if $(TABLES),--tables $(TABLES)) $(if $(DATA),--data $(DATA)) $(if $(SEEDS),--seeds $(SEEDS))

reproduce: .venv/installed
	$(BIN)/python -m dense_ssl.experiments.reproduce $(ROWS) $(if $(FROM),--from $(FROM)) $(if $(CORES),--cores $(CORES)) $(OPTIONS)

# dist/dense_ssl-VERSION-PROFILE.tar.gz: runs, encoders with model cards, results, figures, checksums.
release: .venv/installed
	$(BIN)/python -m dense_ssl.experiments.release $(ROWS)

plan: .venv/installed
	$(BIN)/python -m dense_ssl.experiments.plan $(ROWS)

tables: .venv/installed
	$(BIN)/python -m dense_ssl.experiments.tables

# Every row of the papers' tables on miniature data sets: runs/rehearsal/report.json. SAMPLE=1: one row of each kind.
rehearse: .venv/installed
	$(BIN)/python -m dense_ssl.experiments.rehearse $(if $(TABLES),--tables $(TABLES)) $(if $(SAMPLE),--sample) $(if $(CORES),--cores $(CORES)) $(OPTIONS)

test: .venv/installed
	$(BIN)/python tests/run.py

# Whether what computes also holds on another machine: other instructions and threads, inputs shifted in the last digit, other seeds.
arithmetic: .venv/installed
	$(BIN)/python tests/arithmetic.py

lab: .venv/installed
	$(BIN)/jupyter lab --notebook-dir=nbs

# The book, from stored outputs and finished figures, without a network: open _site/index.html.
site: .venv/installed
	test -f figures/demo-click.html || $(BIN)/python -m dense_ssl.viz.clickable figures/demo-click.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict -f site/mkdocs.yml

install: .venv/installed

# Export, clean and execute what was edited, then make README.md from nbs/index.ipynb.
readme: .venv/installed
	$(BIN)/python tests/readme.py --write

.venv/installed: settings.ini setup.py constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'dense_ssl needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	# only its losses, to compare with: what lightly depends on would slow the start of every process by seconds
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps lightly
	touch $@
