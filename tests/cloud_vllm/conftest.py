"""Fixtures of the gateway's tests: the tiny checkpoint, its reference answers, and packets."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoTokenizer, Gemma3ForCausalLM

from cloud_vllm.api.app import create_app
from cloud_vllm.settings import Settings
from esrt import wire
from esrt.checkpoint import Checkpoint
from esrt.languages import direction
from tests.cloud_vllm.helpers import (
    MAX_NEW_TOKENS,
    Expected,
    Packets,
    Reference,
    Scored,
    wait_until_ready,
)
from tests.tiny_checkpoint import features, tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def settings(checkpoint: Checkpoint) -> Settings:
    return Settings(
        checkpoint=checkpoint.folder, engine="transformers", max_new_tokens=MAX_NEW_TOKENS
    )


def loops(ids: list[int]) -> bool:
    """Whether the ids end in ten repetitions of a pattern of up to 16 tokens."""
    return any(ids[-10 * n :] == 10 * ids[-n:] for n in range(1, 17) if len(ids) >= 10 * n)


@pytest.fixture(scope="session")
def scored(checkpoint: Checkpoint) -> Scored:
    """Reference decoding within the grammar, without a cache or a library's generation loop."""
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    projector = checkpoint.projector()
    embed = decoder.get_input_embeddings()

    @torch.inference_mode()
    def answer(packet: bytes, source: str, target: str) -> Expected:
        decoded = wire.decode(packet)
        embeddings = torch.from_numpy(decoded.features)[None]
        if decoded.split == wire.Split.QFORMER:
            embeddings = projector(embeddings)
        tags = tokenizer.convert_tokens_to_ids([one.tag for one in direction(source, target)])
        end, ids = tokenizer.eos_token_id, list[int]()
        chances: dict[str, list[float]] = {"transcript": [], "translation": []}
        while len(ids) < MAX_NEW_TOKENS and end not in ids and not loops(ids):
            rows = torch.cat([embeddings, embed(torch.tensor([[*tags, *ids]]))], dim=1)
            logits = decoder(inputs_embeds=rows).logits[0, -1]
            separated = tags[0] in ids
            if ids and ids[-1] == tags[0]:
                allowed = {tags[1]}
            else:
                allowed = set(range(len(logits))) - set(tokenizer.all_special_ids)
                allowed.add(end if separated else tags[0])
            ruled_out = [token for token in range(len(logits)) if token not in allowed]
            logits[ruled_out] = -torch.inf
            ids.append(int(logits.argmax()))
            if len(allowed) > 1:
                part = "translation" if separated else "transcript"
                chances[part].append(float(logits.log_softmax(-1)[ids[-1]]))
        finish = "stop" if end in ids else "repetition" if loops(ids) else "length"
        text = tokenizer.decode([token for token in ids if token != end])
        means = {part: float(np.mean(one)) if one else None for part, one in chances.items()}
        return text, means, finish

    return answer


@pytest.fixture(scope="session")
def reference(scored: Scored) -> Reference:
    """The text that a packet decodes to, special tokens included."""
    return lambda packet, source, target: scored(packet, source, target)[0]


@pytest.fixture(scope="session")
def packet(checkpoint: Checkpoint) -> Packets:
    """Packets of a sentence: ``packet(sentence, tokens, split=..., codec=...)``."""
    projector = checkpoint.projector()

    def make(sentence: int = 0, tokens: int = 7, split: str = "qformer", **fields: str) -> bytes:
        values = features(sentence, tokens)
        if split == "adapter":
            with torch.inference_mode():
                values = projector(torch.from_numpy(values)).numpy()
        fields = {"fingerprint": checkpoint.fingerprint, "codec": "fp16", **fields}
        return wire.encode(values, split=split, duration_ms=80 * tokens, **fields)

    return make


@pytest.fixture(scope="session")
def client(settings: Settings) -> Iterator[TestClient]:
    """The gateway in this process, its engine loaded."""
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        wait_until_ready(client)
        yield client
