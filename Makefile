PYTHON ?= python3
BIN := .venv/bin

.PHONY: smoke test test-slow test-cuda train lint clean

smoke: .venv/run.ok
	$(BIN)/python main.py --recipe recipes/digits.toml

# Most tests wait for processes that they start, so two cores run three tests at a time, each with one thread.
test: .venv/dev.ok
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: .venv/dev.ok
	$(BIN)/python -m pytest -m slow

test-cuda: .venv/dev.ok
	$(BIN)/python -m pytest -m cuda

train: .venv/run.ok
	$(BIN)/python run_complete_training.py

lint: .venv/dev.ok
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/run.ok: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev.ok: requirements-dev.txt requirements-extra.txt .venv/run.ok
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache
