# `make serve` and `make test` need only python3 (3.11 or newer) and make; everything else lands in $(VENV).
VENV ?= .venv
PYTHON ?= python3
PY := $(VENV)/bin/python
JS := app/pages/static/js

.PHONY: serve test test-fast test-smoke conformance attack coverage check check-js format bench docs proto lock clean
.DELETE_ON_ERROR:

serve: $(VENV)/.ready  ## set up, migrate, load the bundled demo model and serve it with the dashboard
	$(PY) -m edgewise serve $(if $(PORT),--port $(PORT))

test: $(VENV)/.ready  ## run the tests
	$(PY) -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/.ready  ## a selection of every folder, in less than a minute
	$(PY) -m pytest -n 2 --dist worksteal @tests/fast.txt

test-smoke: $(VENV)/.ready  ## a selection of ten seconds, for pre-commit
	$(PY) -m pytest -q @tests/smoke.txt

conformance: $(VENV)/.ready  ## ONNX's own test cases: passed and failed per operator, and in total
	$(PY) -m tests.conformance

attack: $(VENV)/.ready  ## the tests that attack the product, with 200 random graphs, in about ten minutes
	EDGEWISE_TEST_SEEDS=0:200 $(PY) -m pytest -n 2 --dist worksteal @tests/attack.txt

coverage: $(VENV)/.ready  ## the tests with their line coverage, which has to reach [tool.coverage.report] fail_under
	COVERAGE_CORE=$$($(PY) -c "import sys; print('sysmon' if sys.version_info >= (3, 12) else 'ctrace')") \
	    $(PY) -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered

check: $(VENV)/.ready check-js  ## format, lint, types, import order and circles, generated docs
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports
	$(PY) -m tests.circles
	$(PY) -m docs.generate --check

check-js: $(VENV)/.ready  ## format and lint of the pages' JavaScript (.oxfmtrc.json, .oxlintrc.json)
	$(VENV)/bin/oxfmt --check $(JS)
	$(VENV)/bin/oxlint --quiet --deny-warnings $(JS)

format: $(VENV)/.ready
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .
	$(VENV)/bin/oxfmt $(JS)

bench: $(VENV)/.ready  ## speed, beside ONNX Runtime on the same cores (see bench/README.md)
	$(PY) -m bench

proto: $(VENV)/.ready  ## compile app/rpc/inference.proto again
	$(PY) -m docs.descriptor

docs: $(VENV)/.ready  ## write the generated pages again
	$(PY) -m docs.generate

lock:  ## resolve the lock files again from pyproject.toml
	$(PY) -m pip install -q uv
	$(VENV)/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	    --no-annotate --no-strip-extras --extra dev --custom-compile-command "make lock" pyproject.toml -o requirements.lock

$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Edgewise needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(PY) -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
