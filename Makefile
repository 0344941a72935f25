# Every target sets up .venv by itself if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format clean

demo: $(READY)
	$(BIN)/python examples/make_demo_data.py --output data/demo --seed 7 --split test
	$(BIN)/python test_with_gradcam.py --detector_path config/detector/clip_gradcam_demo.yaml \
	  --test_dataset demo --gradcam_enabled --gradcam_output_dir runs/demo --overwrite

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch first and alone: its exact version is the CPU build, which keeps gigabytes of CUDA packages away.
$(READY): requirements.txt requirements-dev.txt constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) data runs .mypy_cache .pytest_cache .ruff_cache
