# Thin by intent: each target is a line or two over the tools it names.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The stamp is newer than these files exactly when the environment is as they say, so that a second run installs nothing.
STAMP := $(VENV)/.installed
# The libraries that docs/integrations.md names, nnU-Net among them, stay out of the course's environment.
PEERS := $(VENV)/peers
export MPLBACKEND := agg

.PHONY: lab test test-all peers site student quiz slides bench audit format clean

lab: $(STAMP)
	$(BIN)/python -m mbls phantom --if-missing
	JUPYTER_CONFIG_DIR=$(CURDIR)/$(VENV)/etc/jupyter $(BIN)/jupyter lab $(LAB_OPTIONS) notebooks/00_start_here.ipynb

test: SELECTED := -m "not slow"
test-all: SELECTED :=
test-all: peers
test test-all: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright mbls
	$(BIN)/python -m pytest $(SELECTED)
	$(BIN)/python -m pytest --doctest-modules mbls --ignore mbls/adapters/nnunet.py
	$(BIN)/python -m mbls phantom
	MBLS_DATA=$(CURDIR)/data/phantom MBLS_PREDICTIONS=$$(mktemp -d)/none.json $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg notebooks

peers: $(PEERS)/.installed
	PYTHONPATH=$(CURDIR)/tests/adapters/without_cuda $(PEERS)/bin/python -m pytest tests/adapters tests/test_integrations.py tests/test_posthoc.py

# The course as a static site, in site/_build/html.
site: $(STAMP)
	$(BIN)/python -m mbls phantom --if-missing
	$(BIN)/python site/build.py

student: $(STAMP)
	$(BIN)/python notebooks/student.py $(STUDENT_OPTIONS)

# The two-hour deck, in build/slides; npm brings reveal.js once.
slides: $(STAMP)
	$(BIN)/python notebooks/slides.py

# The quiz bank in Moodle's format, in build/quiz.gift.
quiz: $(STAMP)
	$(BIN)/python notebooks/quiz.py

bench: $(STAMP)
	$(BIN)/python -m benchmarks

# Known faults of the pinned packages; by hand, since the answer changes from day to day.
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build data/phantom runs site/_build .pytest_cache .ruff_cache .hypothesis

# torch first and pinned: a plain `torch` may bring several gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[course,dev,site]'
	touch $@

$(PEERS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(PEERS)/bin/python -m pip install --quiet -c constraints.txt -e '.[peers]'
	touch $@
