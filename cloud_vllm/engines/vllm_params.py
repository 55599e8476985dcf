"""What vLLM is asked, ready made: prompts and sampling parameters.

vLLM parses each prompt and checks each request's parameters, the grammar included, as if it came
from outside. These come from `admission` and from the few forms that there are. Written against
vLLM 0.32.0.
"""

from typing import Any

import torch
from vllm.inputs.engine import EmbedsInput, embeds_input
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
)

from cloud_vllm.engines.output_grammar import LONGEST_PATTERN, OutputGrammar
from cloud_vllm.settings import Settings
from esrt.arrays import Float32Array


class CheckedOnce(SamplingParams):  # type: ignore[misc]  # vLLM has no types here
    """Sampling parameters that are used again and again, and checked until they are found right."""

    def verify(self, *arguments: Any) -> None:
        """Check them, unless an earlier check has left its mark."""
        if self.structured_outputs._backend is not None:
            return
        try:
            super().verify(*arguments)
        except Exception:
            self.structured_outputs._backend = None
            raise


def sampling(grammar: OutputGrammar, settings: Settings, *, streamed: bool) -> SamplingParams:
    """Greedy, within the form, with the log-probability of what is chosen."""
    times = settings.max_repetitions
    return CheckedOnce(
        temperature=0.0,
        max_tokens=settings.max_new_tokens,
        logprobs=0,
        detokenize=False,
        # vLLM copies it for each request, which need not be deep: nobody changes what it holds.
        skip_clone=True,
        output_kind=RequestOutputKind.DELTA,
        # How many tokens the scheduler sends together; the first comes at once in any case.
        stream_interval=None if streamed else settings.max_new_tokens,
        structured_outputs=StructuredOutputsParams(structural_tag=grammar.structural_tag()),
        repetition_detection=RepetitionDetectionParams(LONGEST_PATTERN, 1, times)
        if times > 1
        else None,
    )


def prompt(embeddings: Float32Array, grammar: OutputGrammar, dtype: torch.dtype) -> EmbedsInput:
    """A mixed prompt: features as they are, then tags that the engine embeds and scales."""
    ids = list(grammar.prompt)
    tokens, width = embeddings.shape
    rows = torch.zeros(tokens + len(ids), width, dtype=dtype)
    rows[:tokens] = torch.from_numpy(embeddings)
    return embeds_input(
        rows,
        prompt_token_ids=[0] * tokens + ids,
        is_token_ids=[False] * tokens + [True] * len(ids),
    )
