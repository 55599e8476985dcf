"""What vLLM is asked: its own checks of the sampling parameters, and how often they are made."""

from typing import Any

import pytest

from cloud_vllm import env_defaults
from cloud_vllm.engines.output_grammar import GrammarCache
from cloud_vllm.settings import Settings
from esrt.checkpoint import Checkpoint
from esrt.languages import language

pytestmark = pytest.mark.vllm


@pytest.fixture
def made(checkpoint: Checkpoint) -> tuple[Any, tuple[Any, ...]]:
    """Sampling parameters, and what vLLM checks them against."""
    env_defaults.prepare()
    from transformers import AutoTokenizer
    from vllm.config import ModelConfig, StructuredOutputsConfig

    from cloud_vllm.engines import vllm_params

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    grammar = GrammarCache(tokenizer).of(language("eng"), language("deu"))
    model = ModelConfig(str(checkpoint.decoder), dtype="bfloat16")
    against = (model, None, StructuredOutputsConfig(backend="xgrammar"), tokenizer)
    return vllm_params.sampling(grammar, Settings(), streamed=False), against


def test_what_is_right_is_checked_once(
    made: tuple[Any, tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.structured_output import backend_xgrammar

    checks: list[object] = []
    check = backend_xgrammar.validate_xgrammar_grammar
    monkeypatch.setattr(
        backend_xgrammar, "validate_xgrammar_grammar", lambda one: (checks.append(one), check(one))
    )
    sampling, against = made
    for _ in range(3):
        # vLLM checks what it is given, and copies it afterwards.
        sampling.verify(*against)
        sampling.clone()
    assert len(checks) == 1


def test_what_is_wrong_is_refused_each_time(made: tuple[Any, tuple[Any, ...]]) -> None:
    from vllm.exceptions import VLLMValidationError

    sampling, against = made
    sampling.structured_outputs.structural_tag = '{"type": "none"}'
    for _ in range(2):
        with pytest.raises(VLLMValidationError, match="structural tag"):
            sampling.verify(*against)


def test_it_crosses_to_the_engine_as_vllms_own(made: tuple[Any, tuple[Any, ...]]) -> None:
    import msgspec
    from vllm.sampling_params import SamplingParams

    sampling, _ = made
    there = msgspec.msgpack.decode(msgspec.msgpack.encode(sampling), type=SamplingParams)
    for name in ("max_tokens", "stream_interval", "logprobs", "structured_outputs"):
        assert getattr(there, name) == getattr(sampling, name)
