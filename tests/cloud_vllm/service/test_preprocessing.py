"""From the bytes of a packet to embeddings."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from cloud_vllm.service.preprocessing import PacketPreprocessor, ProjectedPacket
from cloud_vllm.settings import Settings
from esrt import wire
from esrt.checkpoint import Checkpoint
from esrt.errors import PacketContentError, PacketError
from tests.cloud_vllm.helpers import Packets
from tests.tiny_checkpoint import TINY


def test_models_with_a_fixed_number_of_tokens_reject_other_numbers(
    settings: Settings, checkpoint: Checkpoint, packet: Packets
) -> None:
    config = replace(
        TINY, q_former=replace(TINY.q_former, stride=None, queries=8, offset_bias=False)
    )
    preprocessor = PacketPreprocessor(replace(checkpoint, config=config), settings)
    assert asyncio.run(preprocessor.preprocess(packet(0, 8))).embeddings.shape == (8, 64)
    for tokens in (7, 9):
        with pytest.raises(PacketContentError, match="expected exactly 8"):
            asyncio.run(preprocessor.preprocess(packet(0, tokens)))


def test_small_packets_are_projected_on_the_event_loop_and_large_ones_in_a_thread(
    settings: Settings, checkpoint: Checkpoint, packet: Packets, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocessor = PacketPreprocessor(checkpoint, settings)
    threads: list[int] = []

    class Projector(torch.nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            threads.append(threading.get_ident())
            return features

    async def project(*bodies: bytes) -> list[ProjectedPacket | BaseException]:
        threads.clear()
        answers = (preprocessor.preprocess(body) for body in bodies)
        return await asyncio.gather(*answers, return_exceptions=True)

    bodies = packet(0, 3), b"no packet", packet(1, 8)
    alone = [preprocessor.project(body).embeddings for body in (bodies[0], bodies[2])]
    for limit, on_loop in ((10**9, True), (-1, False)):
        monkeypatch.setattr("cloud_vllm.service.preprocessing._INLINE_MULTIPLICATIONS", limit)
        first, refused, second = asyncio.run(project(*bodies))
        assert isinstance(refused, PacketError)
        for result, expected in zip((first, second), alone, strict=True):
            assert isinstance(result, ProjectedPacket)
            np.testing.assert_array_equal(result.embeddings, expected)
        with monkeypatch.context() as patch:
            patch.setattr(preprocessor, "_projector", Projector())
            asyncio.run(project(bodies[0]))
        assert [ident == threading.get_ident() for ident in threads] == [on_loop]


@pytest.mark.parametrize("tokens", [1, 2, 50])
def test_qformer_features_are_projected_as_by_the_model(
    settings: Settings, checkpoint: Checkpoint, packet: Packets, tokens: int
) -> None:
    body = packet(0, tokens)
    with torch.inference_mode():
        expected = checkpoint.projector()(torch.from_numpy(wire.decode(body).features)).numpy()
    found = PacketPreprocessor(checkpoint, settings).project(body).embeddings
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
