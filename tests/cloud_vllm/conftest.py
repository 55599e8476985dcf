"""What the gateway's tests share: the tiny checkpoint, its reference answers, and packets."""

from collections.abc import Iterator

import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoTokenizer, Gemma3ForCausalLM

from cloud_vllm.gateway import create_app
from cloud_vllm.settings import Settings
from esrt import wire
from esrt.checkpoint import Checkpoint
from esrt.languages import direction
from esrt.model import generate_greedy
from esrt.prompt import separator
from tests.cloud_vllm.kit import MAX_NEW_TOKENS, Packets, Reference, wait_until_ready
from tests.tiny import features, tiny_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny")


@pytest.fixture(scope="session")
def settings(checkpoint: Checkpoint) -> Settings:
    return Settings(
        checkpoint=checkpoint.folder, engine="transformers", max_new_tokens=MAX_NEW_TOKENS
    )


@pytest.fixture(scope="session")
def reference(checkpoint: Checkpoint) -> Reference:
    """The text that `generate_greedy` gives for a packet, special tokens included."""
    decoder = Gemma3ForCausalLM.from_pretrained(checkpoint.decoder).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.decoder)
    projector = checkpoint.projector()

    def text(packet: bytes, source: str, target: str) -> str:
        decoded = wire.decode(packet)
        embeddings = torch.from_numpy(decoded.features)[None]
        if decoded.split == wire.Split.QFORMER:
            with torch.inference_mode():
                embeddings = projector(embeddings)
        tokens, prompt = torch.tensor([embeddings.shape[1]]), separator(*direction(source, target))
        return generate_greedy(decoder, tokenizer, embeddings, tokens, [prompt], MAX_NEW_TOKENS)[0]

    return text


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
