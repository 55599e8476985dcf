# make demo   speech in, translation out, on the bundled model
# make test   all checks and tests
#
# Both set up .venv first: Python 3.11, torch, and the pinned packages of lock.txt.

PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(VENV)/bin/pip --quiet --disable-pip-version-check

CLIP ?= models/esrt-nano/samples/eng-2.flac
FROM ?= eng
TO ?= deu

.PHONY: demo test setup espeak corpus train evaluate export clean

demo: setup
	$(RUN) demo.py "$(CLIP)" --from $(FROM) --to $(TO)

test: setup espeak
	$(RUN) -m pytest

setup: $(VENV)/ready

# torch first and with its own dependencies; the rest exactly as locked, because vllm's metadata
# asks for torchvision and its like, which nothing here needs and whose builds break beside it.
$(VENV)/ready: lock.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) was not found. Install Python 3.11, or name it: make PYTHON=..." >&2; \
	  exit 2; }
	@echo "setting up $(VENV): about three minutes and 4 to 7 GB the first time"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0
	$(PIP) install --no-deps --no-build-isolation -r lock.txt
	touch $@

# Only the tests of the corpus need espeak-ng; without it they are skipped and counted.
espeak:
	@command -v espeak-ng >/dev/null || { [ "$$(id -u)" = 0 ] && \
	  apt-get -qq update && apt-get -qq install --yes espeak-ng >/dev/null; } || \
	  echo "espeak-ng is not installed: the tests that speak are skipped." \
	    "On Debian: sudo apt-get install espeak-ng"

corpus: setup espeak
	$(RUN) -m training.corpus build

train: setup espeak
	$(RUN) -m training.train --out build/nano

evaluate: setup espeak
	$(RUN) -m training.evaluate --json models/esrt-nano/evaluation.json

export: setup
	$(RUN) export/to_onnx.py
	$(RUN) export/to_executorch.py

clean:
	rm -rf build
