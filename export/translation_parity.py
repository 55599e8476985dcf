"""Comparison of translations: the decoder's texts from an artifact's features and from torch's."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoTokenizer, Gemma3ForCausalLM
from transformers.utils import logging

from esrt.bundled import SAMPLES
from esrt.checkpoint import Checkpoint
from esrt.languages import direction
from esrt.model import generate_greedy
from esrt.prompt import separator
from esrt.wire import Split
from export import parity
from export.graph_io import Runner
from export.tracing import DeviceGraph

_MAX_NEW_TOKENS = 96


@torch.inference_mode()
def compare(
    run: Runner, graph: DeviceGraph, checkpoint: Checkpoint, lengths: Sequence[int]
) -> dict[str, Any]:
    """Translate the bundled clips from both features, with greedy decoding.

    Returns:
        ``compared``: number of clips; ``equal``: number of equal texts; ``differing``: the file and
        both texts of each other clip. Empty for a checkpoint without a decoder.
    """
    config = graph.model.config
    if not (checkpoint.decoder / "config.json").is_file():
        return {}
    logging.disable_progress_bar()
    decoder = Gemma3ForCausalLM.from_pretrained(
        checkpoint.decoder, dtype=torch.float32, use_safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder, trust_remote_code=False)
    index = json.loads((SAMPLES / "index.json").read_text("utf-8"))
    differing = []
    compared = 0
    for row, mel in zip(index, parity.sample_mels(config, lengths), strict=False):
        targets = [code for code in config.languages if code != row["language"]]
        if row["language"] not in config.languages or not targets:
            continue
        prompt = separator(*direction(row["language"], targets[0]))
        values = mel[None]
        features = [torch.from_numpy(run(values)), graph(torch.from_numpy(values))]
        if graph.split is Split.QFORMER:
            features = [graph.model.mlp(rows) for rows in features]
        embeddings = torch.cat(features)
        counts = torch.full((2,), embeddings.shape[1])
        artifact_text, torch_text = generate_greedy(
            decoder.eval(), tokenizer, embeddings, counts, [prompt, prompt], _MAX_NEW_TOKENS
        )
        compared += 1
        if artifact_text != torch_text:
            differing.append({"file": row["file"], "artifact": artifact_text, "torch": torch_text})
    return {"compared": compared, "equal": compared - len(differing), "differing": differing}
