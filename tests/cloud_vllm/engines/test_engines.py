"""The parts of the engines that need no vLLM process."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cloud_vllm.engines import Engine, EngineState, GenerationChunk, create_engine
from cloud_vllm.engines.base import check_width, prompt_ids
from cloud_vllm.engines.detokenizer import Detokenizer
from cloud_vllm.engines.output_grammar import LONGEST_PATTERN, ends_in_repetition
from cloud_vllm.engines.transformers import TransformersEngine
from cloud_vllm.settings import Settings
from esrt.checkpoint import Checkpoint
from esrt.errors import CheckpointError, EngineFailed
from esrt.languages import direction
from tests.tiny_checkpoint import features

PAIR = direction("eng", "deu")


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint.decoder)


@given(data=st.data())
def test_chunks_join_to_the_whole_text(tokenizer: Any, data: st.DataObject) -> None:
    # Any ids, so most byte sequences are no UTF-8 and many characters are cut.
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    cuts = data.draw(st.lists(st.integers(0, len(ids)), max_size=40).map(sorted))
    text, joined = Detokenizer(tokenizer), ""
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        text.feed(ids[start:end])
        if data.draw(st.booleans()):
            joined += text.flush_stable()
    assert joined + text.finish() == tokenizer.decode(ids, skip_special_tokens=False)


@given(text=st.text(max_size=20))
def test_whole_characters_are_not_held_back(tokenizer: Any, text: str) -> None:
    detokenizer, pieces = Detokenizer(tokenizer), []
    for token in tokenizer(text).input_ids:
        detokenizer.feed([token])
        pieces.append(detokenizer.flush_stable())
    assert "".join(pieces) + detokenizer.finish() == text
    if not text.endswith("\ufffd"):
        assert "".join(pieces) == text


def test_a_tokenizer_without_the_tags_is_rejected(tokenizer: Any) -> None:
    assert len(prompt_ids(tokenizer, *PAIR)) == 2

    class Letters:
        def __call__(self, text: str, **_: object) -> Any:
            return tokenizer(text.replace("|", "/"), add_special_tokens=False)

    with pytest.raises(CheckpointError, match="expected 2"):
        prompt_ids(Letters(), *PAIR)
    with pytest.raises(CheckpointError, match="width is 3, expected 4"):
        check_width(3, 4)


@given(
    start=st.lists(st.integers(0, 2), max_size=20),
    pattern=st.lists(st.integers(0, 2), min_size=1, max_size=18),
    times=st.integers(0, 12),
    wanted=st.integers(0, 12),
)
def test_repetitions_are_detected(
    start: list[int], pattern: list[int], times: int, wanted: int
) -> None:
    ids = start + pattern * times
    naive = wanted > 1 and any(
        ids[-wanted * size :] == wanted * ids[-size:]
        for size in range(1, LONGEST_PATTERN + 1)
        if len(ids) >= wanted * size
    )
    assert ends_in_repetition(ids, wanted) == naive


class Running:
    """A started engine and its event loop, for tests that are not coroutines."""

    def __init__(self, engine: Engine, embeddings: np.ndarray) -> None:
        self.engine, self.embeddings = engine, embeddings

    def generate(self) -> Any:
        return self.engine.generate(self.embeddings, *PAIR)

    async def whole(self) -> list[GenerationChunk]:
        return [piece async for piece in self.generate()]


@pytest.fixture
def running(checkpoint: Checkpoint, settings: Settings) -> Iterator[Running]:
    with torch.inference_mode():
        embeddings = checkpoint.projector()(torch.from_numpy(features(5, 9))).numpy()
    earlier = set(threading.enumerate())
    yield Running(create_engine(checkpoint, settings), embeddings)
    later = set(threading.enumerate()) - earlier
    assert not [thread.name for thread in later if thread.name.startswith("decoder")]


def test_closing_the_generator_stops_the_decoding(running: Running) -> None:
    async def scenario() -> None:
        await running.engine.start()
        expected = await running.whole()
        async with aclosing(running.generate()) as pieces:
            assert await anext(pieces) == expected[0]
        # The one worker is free again, and the abandoned answer left nothing behind.
        assert await running.whole() == expected
        await running.engine.close()

    asyncio.run(scenario())


async def _drain(pieces: AsyncGenerator[GenerationChunk, None]) -> None:
    async for piece in pieces:
        assert piece.finish is None


def test_concurrent_requests_are_all_answered(running: Running) -> None:
    async def scenario() -> None:
        await running.engine.start()
        first, *others = await asyncio.gather(*(running.whole() for _ in range(4)))
        assert first[-1].finish == "stop"
        assert others == [first] * 3
        await running.engine.close()

    asyncio.run(scenario())


def test_closing_the_engine_aborts_the_answer(running: Running) -> None:
    async def scenario() -> None:
        await running.engine.start()
        async with aclosing(running.generate()) as pieces:
            await anext(pieces)
            begin = time.monotonic()
            await running.engine.close()
            assert time.monotonic() - begin < 5
            with pytest.raises(EngineFailed):
                await _drain(pieces)
        assert running.engine.state is EngineState.CLOSED

    asyncio.run(scenario())


def test_an_error_of_the_library_becomes_an_engine_error(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        engine = running.engine
        assert isinstance(engine, TransformersEngine)
        await engine.start()
        with monkeypatch.context() as patch:
            patch.setattr(engine._decoder, "generate", lambda **_: 1 / 0)
            with pytest.raises(EngineFailed):
                await running.whole()
        assert (await running.whole())[-1].finish == "stop"
        await engine.close()

    asyncio.run(scenario())


def test_a_damaged_decoder_is_reported(
    checkpoint: Checkpoint, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    empty = Checkpoint(tmp_path_factory.mktemp("empty"), checkpoint.config, checkpoint.fingerprint)
    engine = create_engine(empty, settings)

    async def scenario() -> None:
        with pytest.raises(EngineFailed, match="could not be loaded"):
            await engine.start()
        assert engine.state is EngineState.FAILED
        await engine.close()

    asyncio.run(scenario())
