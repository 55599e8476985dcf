"""Prompts for the systems beside the gateway: embeddings, and requests for vLLM's own server."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM

from benchmarks.cloud.cases import Case, http_request
from cloud_vllm.engines.output_grammar import LONGEST_PATTERN, GrammarCache
from cloud_vllm.settings import Settings
from esrt import wire
from esrt.arrays import Float32Array
from esrt.checkpoint import Checkpoint
from esrt.languages import direction

MODEL_NAME = "decoder"


@torch.inference_mode()
def projected(checkpoint: Checkpoint, cases: Sequence[Case]) -> list[Float32Array]:
    """Decode and project the packet of each case: (tokens, decoder width) each."""
    projector, tables = checkpoint.projector(), checkpoint.codec_tables()
    by_packet: dict[bytes, Float32Array] = {}
    for packet in {case.packet for case in cases}:
        features = torch.from_numpy(wire.decode(packet, tables).features)
        by_packet[packet] = projector(features).numpy()
    return [by_packet[case.packet] for case in cases]


def completion_requests(
    checkpoint: Checkpoint, cases: Sequence[Case], settings: Settings, *, stream: bool
) -> Callable[[Case], bytes]:
    """Requests to ``/v1/completions`` of vLLM's OpenAI-compatible server, made in advance.

    Equal to the gateway's requests to its engine: the embeddings of the features, the two tags, the
    greedy decoding, the longest length, the grammar, the repetition limit, the log-probability of
    the chosen tokens, and the number of tokens in a part of a stream. Both servers write a line of
    log for each request.

    Different, because the public API has no other form: the body is JSON with the whole prompt as
    base64 of `torch.save`, not a packet. The tags are embeddings, not token ids. The server
    deserializes the prompt and detokenizes the answer; it does not decode a packet, does not run
    the projector and does not split the answer into transcript and translation.
    """
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder, dtype=torch.float32)
    # This layer scales by the square root of the width, as Gemma does; nothing else may scale.
    embed = decoder.get_input_embeddings()
    grammars, requests = GrammarCache(tokenizer), dict[str, bytes]()
    for case, features in zip(cases, projected(checkpoint, cases), strict=True):
        grammar = grammars.get(*direction(case.source, case.target))
        with torch.inference_mode():
            tags = embed(torch.tensor(grammar.prompt))
            prompt = torch.cat([torch.from_numpy(features), tags])
        file = io.BytesIO()
        torch.save(prompt.to(getattr(torch, settings.dtype)).clone(), file)
        body: dict[str, Any] = {
            "model": MODEL_NAME,
            "prompt_embeds": base64.b64encode(file.getvalue()).decode(),
            "temperature": 0.0,
            "max_tokens": settings.max_new_tokens,
            "logprobs": 0,
            "structured_outputs": {"structural_tag": grammar.structural_tag},
            # The separator between transcript and translation consists of special tokens.
            "skip_special_tokens": False,
            "stream": stream,
        }
        if settings.max_repetitions > 1:
            body["repetition_detection"] = {
                "max_pattern_size": LONGEST_PATTERN,
                "min_pattern_size": 1,
                "min_count": settings.max_repetitions,
            }
        if stream:
            body["stream_options"] = {"include_usage": True}
        requests[case.name] = http_request(
            "/v1/completions", json.dumps(body).encode(), "application/json"
        )
    return lambda case: requests[case.name]
