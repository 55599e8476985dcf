"""Baselines without HTTP on the same prompts: vLLM's engine, and transformers without batching.

Each baseline runs in its own process, so that its CPU time can be measured separately:
``python -m benchmarks.cloud.baseline KIND CHECKPOINT CASES``. The process reads commands from
standard input, a line of JSON each, and writes a line of JSON for each.
"""

import asyncio
import dataclasses
import gc
import json
import os
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from types import TracebackType
from typing import Any, Literal, Self, get_args

from benchmarks.cloud.cases import Case
from benchmarks.cloud.systems import Run
from esrt.cores import usable_cores
from esrt.errors import CheckFailed

Kind = Literal["engine", "transformers"]
# Generates the answer to a case by its index; returns token count and time of the first token.
Generate = Callable[[int], Awaitable[tuple[int, float]]]


class BaselineProcess:
    """A baseline's process; a context manager.

    Args:
        kind: the baseline.
        checkpoint: folder of the checkpoint.
        cases: all cases that will be run; written to a file in ``folder``.
        folder: folder for that file and the log.
    """

    def __init__(self, kind: Kind, checkpoint: Path, cases: Sequence[Case], folder: Path) -> None:
        file = folder / "cases.json"
        packets = [{**vars(case), "packet": b64encode(case.packet).decode()} for case in cases]
        file.write_text(json.dumps(packets))
        self._indices = {case.name: index for index, case in enumerate(cases)}
        self._log = folder / f"{kind}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, kind, str(checkpoint), str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def run(self, cases: Sequence[Case], at_once: int) -> Run:
        """Generate the answer to each case, with ``at_once`` of them under way.

        Raises:
            CheckFailed: the process has ended.
        """
        assert self._process.stdin
        assert self._process.stdout
        indices = [self._indices[case.name] for case in cases]
        try:
            print(json.dumps([indices, at_once]), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise CheckFailed("A baseline's process ended early.", f"See {self._log}.")
        return Run(**json.loads(line))


async def _closed(generate: Generate, indices: list[int], at_once: int) -> Run:
    results: dict[int, tuple[int, tuple[float, float, float]]] = {}
    left, cpu = iter(enumerate(indices)), process_time()

    async def worker() -> None:
        for order, index in left:
            sent = perf_counter()
            tokens, first = await generate(index)
            results[order] = tokens, (sent, first, perf_counter())

    await asyncio.gather(*(worker() for _ in range(at_once)))
    tokens, times = zip(*(results[order] for order in range(len(indices))), strict=True)
    return Run(process_time() - cpu, sum(tokens), list(times))


async def _engine(checkpoint: Any, cases: list[Case]) -> tuple[Generate, Callable[[], None]]:
    """Load `AsyncLLMEngine` with the gateway's engine arguments, parameters and prompts.

    Answers are not streamed, as the gateway's JSON answers are not.
    """
    import torch
    from vllm import AsyncLLMEngine

    from benchmarks.cloud.prompts import projected
    from cloud_vllm.engines import vllm_params
    from cloud_vllm.engines.output_grammar import GrammarCache
    from cloud_vllm.settings import Settings
    from esrt.languages import direction

    settings = Settings(checkpoint=checkpoint.folder)
    llm = AsyncLLMEngine.from_engine_args(vllm_params.engine_arguments(checkpoint, settings))
    dtype, features = getattr(torch, settings.dtype), projected(checkpoint, cases)
    cache = GrammarCache(llm.get_tokenizer())
    grammars = [cache.get(*direction(case.source, case.target)) for case in cases]
    count = 0

    async def generate(index: int) -> tuple[int, float]:
        nonlocal count
        count += 1
        first, tokens, grammar = 0.0, 0, grammars[index]
        prompt = vllm_params.prompt(features[index], grammar, dtype)
        parameters = vllm_params.sampling(grammar, settings, streamed=False)
        async for output in llm.generate(prompt, parameters, f"baseline-{count}"):
            first = first or perf_counter()
            tokens += len(output.outputs[0].token_ids)
        return tokens, first

    return generate, llm.shutdown


async def _transformers(checkpoint: Any, cases: list[Case]) -> tuple[Generate, Callable[[], None]]:
    """The decoder in transformers, greedy, one answer after another."""
    import torch
    from transformers import AutoTokenizer, Gemma3ForCausalLM

    from benchmarks.cloud.prompts import projected
    from cloud_vllm.settings import Settings
    from esrt.languages import direction
    from esrt.model import generate_greedy
    from esrt.prompt import separator

    # All cores, as torch does by default; the gateway's setting leaves one core to the gateway.
    torch.set_num_threads(usable_cores())
    settings = Settings(checkpoint=checkpoint.folder)
    dtype = getattr(torch, settings.dtype)
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    features = projected(checkpoint, cases)

    async def generate(index: int) -> tuple[int, float]:
        rows, case = features[index], cases[index]
        with torch.inference_mode():
            embeddings = torch.from_numpy(rows)[None].to(dtype)
            (text,) = generate_greedy(
                *(decoder, tokenizer, embeddings, torch.tensor([len(rows)])),
                [separator(*direction(case.source, case.target))],
                settings.max_new_tokens,
            )
        tokens = len(tokenizer(text, add_special_tokens=False).input_ids) + 1
        return tokens, perf_counter()

    return generate, lambda: None


async def _serve(kind: Kind, folder: Path, file: Path, results: int) -> None:
    from esrt.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    cases = [
        Case(**{**fields, "packet": b64decode(fields["packet"])})
        for fields in json.loads(file.read_text())
    ]
    start = _engine if kind == "engine" else _transformers
    generate, close = await start(checkpoint, cases)
    # As in the gateway and in vLLM's server, garbage collections skip the loaded libraries.
    gc.collect()
    gc.freeze()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        indices, at_once = json.loads(line)
        run = await _closed(generate, indices, at_once)
        os.write(results, json.dumps(dataclasses.asdict(run)).encode() + b"\n")
    close()


if __name__ == "__main__":
    import uvloop

    # Libraries print to standard output; results have a descriptor of their own.
    results_fd = os.dup(1)
    os.dup2(2, 1)
    kind, folder, file = sys.argv[1:]
    assert kind in get_args(Kind)
    # The event loop of the gateway's server.
    uvloop.run(_serve(kind, Path(folder), Path(file), results_fd))  # type: ignore[arg-type]
