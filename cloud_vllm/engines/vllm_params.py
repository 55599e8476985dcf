"""Engine arguments, prompts and sampling parameters for vLLM."""

import torch
from vllm import AsyncEngineArgs
from vllm.config import StructuredOutputsConfig
from vllm.inputs import EmbedsInput, embeds_input
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from cloud_vllm.engines.base import PROMPT_TOKENS
from cloud_vllm.engines.output_grammar import LONGEST_PATTERN, OutputGrammar
from cloud_vllm.engines.vllm_executors import OneProcess, SeveralProcesses
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint


def engine_arguments(checkpoint: Checkpoint, settings: Settings) -> AsyncEngineArgs:
    """The arguments of the engine that serves the checkpoint's decoder."""
    return AsyncEngineArgs(
        model=str(checkpoint.decoder),
        dtype=settings.dtype,
        enable_prompt_embeds=True,
        max_model_len=checkpoint.config.max_tokens + PROMPT_TOKENS + settings.max_new_tokens,
        max_num_seqs=settings.max_concurrent,
        kv_cache_memory_bytes=settings.kv_cache_bytes or None,
        enforce_eager=not settings.compile,
        tensor_parallel_size=settings.tensor_parallel,
        # On a CPU vLLM's default is a separate worker process, for which the engine core
        # waits by spinning: that takes one of two cores.
        distributed_executor_backend=OneProcess
        if settings.tensor_parallel == 1
        else SeveralProcesses,
        quantization=settings.quantization,
        # No two utterances share features, and no features may outlive their request.
        enable_prefix_caching=False,
        # The decoder's own generation settings could enable sampling or other stop tokens.
        generation_config="vllm",
        structured_outputs_config=StructuredOutputsConfig(backend="xgrammar"),
        # vLLM's metrics are part of /metrics.
        disable_log_stats=False,
        stream_interval=settings.stream_interval,
        # Progress bars are no log records.
        use_tqdm_on_load=False,
    )


def sampling(grammar: OutputGrammar, settings: Settings, *, streamed: bool) -> SamplingParams:
    """Greedy decoding within the grammar, with the log-probability of each chosen token."""
    repetitions = settings.max_repetitions
    return SamplingParams(
        temperature=0.0,
        max_tokens=settings.max_new_tokens,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        # An answer that is not streamed needs two outputs: the first token and the end.
        stream_interval=None if streamed else settings.max_new_tokens,
        structured_outputs=StructuredOutputsParams(structural_tag=grammar.structural_tag),
        repetition_detection=RepetitionDetectionParams(LONGEST_PATTERN, 1, repetitions)
        if repetitions > 1
        else None,
    )


def prompt(embeddings: Float32Array, grammar: OutputGrammar, dtype: torch.dtype) -> EmbedsInput:
    """A mixed prompt: feature embeddings, then two tags that the decoder embeds and scales."""
    tags = list(grammar.prompt)
    tokens, width = embeddings.shape
    rows = torch.zeros(tokens + len(tags), width, dtype=dtype)
    rows[:tokens] = torch.from_numpy(embeddings)
    return embeds_input(
        rows,
        prompt_token_ids=[0] * tokens + tags,
        is_token_ids=[False] * tokens + [True] * len(tags),
    )
