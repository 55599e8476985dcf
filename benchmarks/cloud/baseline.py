"""What the gateway is compared with: vLLM alone, and transformers one by one, given the same.

vLLM is there twice: as it comes, and as the gateway runs and asks it (`cloud_vllm.engines`).

A process of its own, so that its CPU time is its own: ``python -m benchmarks.cloud.baseline KIND
CHECKPOINT CASES``. It reads a command per line, as JSON, and answers each with a line.
"""

import asyncio
import json
import os
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from types import TracebackType
from typing import Any, Literal, Self

from benchmarks.cloud.cases import Case
from esrt.errors import CheckFailed

Kind = Literal["vllm", "vllm-gathering", "transformers"]
# Generates one answer: how many tokens, and when the first of them had come.
Generate = Callable[[int], Awaitable[tuple[int, float]]]

# So that what a request leaves to be done afterwards is counted to it.
SETTLE_S = 0.004


@dataclass(frozen=True)
class Run:
    """What came of a command; lists have an item for each case, in its order.

    Attributes:
        cpu_s: CPU seconds of the process.
        tokens: in all answers.
        times: when each was asked, had its first token and was whole, on `time.perf_counter`.
        cpu_ms: CPU milliseconds from then to then; of use where they come one at a time.
    """

    cpu_s: float
    tokens: int
    times: list[tuple[float, float, float]]
    cpu_ms: list[float]


class BaselineProcess:
    """The process, seen from outside; a context manager.

    Args:
        kind: which decoder.
        checkpoint: its folder.
        cases: what it will be asked; written to a file in the folder.
        folder: for that file and the log.
        env: the gateway's settings, which are its own as well.
    """

    def __init__(
        self, kind: Kind, checkpoint: Path, cases: Sequence[Case], folder: Path, env: dict[str, str]
    ) -> None:
        file = folder / "cases.json"
        file.write_text(
            json.dumps([[b64encode(c.packet).decode(), c.source, c.target] for c in cases])
        )
        self._places = {case.name: place for place, case in enumerate(cases)}
        with (folder / f"{kind}.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, kind, str(checkpoint), str(file)],
                env={**os.environ, **env},
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

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def run(self, cases: Iterable[Case], at_once: int) -> Run:
        """Generate for each case, so many at once.

        Raises:
            CheckFailed: the process has ended.
        """
        assert self._process.stdin
        assert self._process.stdout
        places = [self._places[case.name] for case in cases]
        print(json.dumps([places, at_once]), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise CheckFailed("The bare decoder ended.", "See its log in build/benchmarks/cloud.")
        return Run(**json.loads(line))


async def _closed(generate: Generate, places: list[int], at_once: int) -> Run:
    found: dict[int, tuple[int, tuple[float, float, float], float]] = {}
    left, cpu = iter(enumerate(places)), process_time()

    async def worker() -> None:
        for order, place in left:
            sent, used = perf_counter(), process_time()
            tokens, first = await generate(place)
            done = perf_counter()
            if at_once == 1:
                await asyncio.sleep(SETTLE_S)
            found[order] = tokens, (sent, first, done), 1e3 * (process_time() - used)

    await asyncio.gather(*(worker() for _ in range(at_once)))
    tokens, times, each_cpu = zip(*(found[order] for order in range(len(places))), strict=True)
    return Run(process_time() - cpu, sum(tokens), list(times), list(each_cpu))


def _embeddings(checkpoint: Any, cases: list[list[str]]) -> list[tuple[Any, Any, Any]]:
    from cloud_vllm.service.preprocessing import PacketPreprocessor
    from cloud_vllm.settings import Settings
    from esrt.languages import direction

    admission = PacketPreprocessor(checkpoint, Settings(checkpoint=checkpoint.folder))
    projected_packet = admission.project_batch([b64decode(packet) for packet, *_ in cases])
    return [
        (one.embeddings, *direction(*codes))  # type: ignore[union-attr]
        for one, (_, *codes) in zip(projected_packet, cases, strict=True)
    ]


async def _vllm(
    checkpoint: Any, prompts: list[tuple[Any, Any, Any]], *, gathering: bool
) -> tuple[Generate, Any]:
    """The engine with the gateway's own arguments, sampling and prompts, and nothing around it.

    With the gateway's scheduler it is asked as the gateway does it; as it comes, as `AsyncLLM` is
    meant to be asked: each prompt is rendered, each request checked. What it gives is not streamed,
    as the gateway's JSON answers are not.
    """
    from vllm.renderers.inputs.preprocess import parse_model_prompt

    from cloud_vllm.engines.vllm import VllmEngine
    from cloud_vllm.settings import Settings

    class Plain(VllmEngine):
        def _scheduler(self, *, ahead: bool) -> None:
            return None

        def _asking(self, embeddings: Any, grammar: Any, *, streamed: bool) -> tuple[Any, Any]:
            made, sampling = super()._asking(embeddings, grammar, streamed=streamed)
            # Without the mark of an earlier check it is checked again.
            sampling.structured_outputs._backend = None
            prompt = {
                "prompt_embeds": made["prompt_embeds"],
                "prompt_token_ids": made["prompt_token_ids"],
                "prompt_is_token_ids": made["is_token_ids"],
            }
            parsed = parse_model_prompt(self._llm.model_config, prompt)
            (rendered,) = self._llm.renderer.render_cmpl([parsed])
            return rendered, sampling

    engine = (VllmEngine if gathering else Plain)(
        checkpoint, Settings(checkpoint=checkpoint.folder)
    )
    await engine.start()
    forms = [engine._grammars.of(source, target) for _, source, target in prompts]
    count = 0

    async def generate(place: int) -> tuple[int, float]:
        nonlocal count
        count += 1
        first, tokens = 0.0, 0
        asked = engine._asking(prompts[place][0], forms[place], streamed=False)
        async for output in engine._llm.generate(*asked, f"bare-{count}"):
            first = first or perf_counter()
            tokens += len(output.outputs[0].token_ids)
        return tokens, first

    return generate, engine.close


async def _transformers(
    checkpoint: Any, prompts: list[tuple[Any, Any, Any]]
) -> tuple[Generate, Any]:
    import torch
    from transformers import AutoTokenizer, Gemma3ForCausalLM

    from cloud_vllm.settings import Settings
    from esrt.model import generate_greedy
    from esrt.prompt import separator

    # All cores, as torch by itself; one of them is left to the gateway only where there is one.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    settings = Settings()
    dtype = getattr(torch, settings.dtype)
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)

    async def generate(place: int) -> tuple[int, float]:
        rows, source, target = prompts[place]
        with torch.inference_mode():
            embeddings = torch.from_numpy(rows)[None].to(dtype)
            (text,) = generate_greedy(
                *(decoder, tokenizer, embeddings, torch.tensor([len(rows)])),
                *([separator(source, target)], settings.max_new_tokens),
            )
        tokens = len(tokenizer(text, add_special_tokens=False).input_ids) + 1
        return tokens, perf_counter()

    async def close() -> None:
        pass

    return generate, close


async def _serve(kind: Kind, folder: Path, file: Path, answers: int) -> None:
    from cloud_vllm import env_defaults

    env_defaults.prepare()
    from esrt.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    prompts = _embeddings(checkpoint, json.loads(file.read_text()))
    if kind == "transformers":
        generate, close = await _transformers(checkpoint, prompts)
    else:
        generate, close = await _vllm(checkpoint, prompts, gathering=kind == "vllm-gathering")
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        places, at_once = json.loads(line)
        run = await _closed(generate, places, at_once)
        os.write(answers, json.dumps(vars(run)).encode() + b"\n")
    await close()


if __name__ == "__main__":
    import uvloop

    # Libraries print; the answers have a descriptor of their own.
    answers_fd = os.dup(1)
    os.dup2(2, 1)
    kind, folder, file = sys.argv[1:]
    # The event loop that the gateway's server takes.
    uvloop.run(_serve(kind, Path(folder), Path(file), answers_fd))  # type: ignore[arg-type]
