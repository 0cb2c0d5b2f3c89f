# Everything a user or CI runs. The first target that needs the environment makes it (minutes); later ones reuse it.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CHECKPOINT ?= demo
DEVICE ?= $(if $(shell command -v nvidia-smi),gpu,cpu)
# Extras of pyproject.toml: what server and client need, and the rest, which PyTorch is part of.
RUNTIME := embedded-$(DEVICE),onnx,client
EVERYTHING := $(RUNTIME),gateway,test
ARGS ?=
JOBS ?= 2
MINUTES ?= 30
REQUESTS ?= 10000

.PHONY: help setup demo test lint serve up export bench gpu-check load soak fuzz dist release-check deploy-check images-check

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

setup: $(VENV)/.everything ## create .venv with everything in it (other commands install what they need)

$(VENV)/.runtime: pyproject.toml client/pyproject.toml constraints.txt docker/install.sh $(wildcard chattts_serving/engine/cpu/*.[ch])
	PYTHON=$(PYTHON) docker/install.sh $(VENV) $(RUNTIME)
	@touch $@

$(VENV)/.gateway: $(VENV)/.runtime
	PYTHON=$(PYTHON) docker/install.sh $(VENV) $(RUNTIME),gateway
	@touch $@

$(VENV)/.everything: $(VENV)/.runtime
	PYTHON=$(PYTHON) docker/install.sh $(VENV) $(EVERYTHING)
	@touch $@

demo: $(VENV)/.runtime ## speak a sentence through the server over gRPC and HTTP, write demo.wav
	$(RUN) -m chattts_serving.demo $(ARGS)

test: setup ## run every test, two files at a time, one that fails once more and listed (ARGS="-m 'not slow'" for the quick ones)
	$(RUN) -m pytest --numprocesses $(JOBS) --no-loadscope-reorder --reruns 1 $(ARGS)

lint: setup ## check format, style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

serve: $(VENV)/.runtime ## start the server on 127.0.0.1 (ARGS="--http-port 9000"), after make export
	$(RUN) -m chattts_serving.server $(ARGS)

up: $(VENV)/.gateway ## server, OpenAI-compatible API and web page on http://127.0.0.1:8080 (ARGS="--port 9000 --gpus all")
	$(RUN) -m gateway.up $(ARGS)

export: $(VENV)/$(if $(filter demo,$(CHECKPOINT)),.runtime,.everything) ## write the artifacts of CHECKPOINT=hf|demo|synthetic|tiny|DIR into model_repository/
	$(RUN) -m export --checkpoint $(CHECKPOINT) $(ARGS)

bench: setup ## compare with the ChatTTS package in one run (ARGS="--precision bf16")
	$(RUN) -m export --checkpoint synthetic --out build/repositories/synthetic
	$(RUN) -m bench compare --repository build/repositories/synthetic \
		--precision $(if $(filter gpu,$(DEVICE)),bf16 fp16,fp32 int8) $(ARGS)

gpu-check: ## whether the engine is right on this GPU, and where the time goes; needs PyTorch with Triton, no make setup
	$(or $(wildcard $(RUN)),$(PYTHON)) -m bench gpu $(ARGS)

load: CHECKPOINT = synthetic
load: setup ## load test with locust (ARGS="--scenario spike --users 32 --minutes 3", see tests/load)
	$(if $(findstring --url,$(ARGS)),,$(RUN) -m export --checkpoint $(CHECKPOINT) --out build/repositories/$(notdir $(CHECKPOINT)))
	$(RUN) -m tests.load --repository build/repositories/$(notdir $(CHECKPOINT)) $(ARGS)

soak: setup ## mixed load for MINUTES (30) on a server of its own, and whether it held (see tests/soak)
	$(RUN) -m tests.soak --minutes $(MINUTES) $(ARGS)

fuzz: setup ## REQUESTS (10000) random and broken requests over real sockets
	$(RUN) -m tests.fuzz --requests $(REQUESTS) $(ARGS)

dist: setup ## build both distributions of the commit that is checked out into dist/, the same bytes everywhere
	rm -rf dist build/commit
	mkdir -p build/commit
	git archive HEAD | tar -x -C build/commit
	for one in . client; do SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(RUN) -m build --outdir dist build/commit/$$one || exit 1; done

release-check: setup ## build both distributions twice, compare, install them into empty environments and run them
	$(RUN) -m pytest tests/test_distributions.py $(ARGS)

deploy-check: setup ## check images, manifests, rules and balancer (with kubectl, promtool, haproxy where they are)
	$(RUN) -m pytest tests/deploy $(ARGS)

images-check: setup ## build, run and list the cpu and gateway images, install the distributions in a container (as root, with buildah and podman; skipped elsewhere)
	PYTHON=$(RUN) tests/deploy/images_check.sh
