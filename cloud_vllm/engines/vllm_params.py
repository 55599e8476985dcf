"""vLLM prompts and sampling parameters."""

import torch
from vllm.inputs import EmbedsInput, embeds_input
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from cloud_vllm.engines.output_grammar import LONGEST_PATTERN, OutputGrammar
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array


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
