"""Transform codecs: golden vectors of a second implementation, error bounds, invalid bytes."""

import dataclasses
import hashlib
import importlib.util
import json
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from esrt import wire
from esrt.arrays import Float32Array
from esrt.errors import CheckpointError, EsrtError, PacketContentError, PacketError
from esrt.wire import Codec, CodecTables, TransformTables, read_codec_tables

GOLDEN = Path(__file__).parents[1] / "golden"
FINGERPRINT = "0123456789abcdef"
FILE = GOLDEN / "learned" / wire.CODEC_TABLES_FILE
CODEC_TABLES = read_codec_tables(FILE, FINGERPRINT)
INDEX = json.loads((GOLDEN / "learned/index.json").read_text())
TRANSFORM_CODECS = [Codec.KLT, Codec.KLT_LOW]

many = settings(max_examples=300, deadline=None)
features_of_width_4 = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 40), st.just(4)),
    elements=st.floats(-20, 20, width=32),
)


def encode(
    features: Float32Array,
    codec: str = "klt",
    codec_tables: CodecTables | None = CODEC_TABLES,
    **fields: Any,
) -> bytes:
    defaults = {"fingerprint": FINGERPRINT, "split": "qformer", "duration_ms": 1500}
    return wire.encode(features, codec=codec, codec_tables=codec_tables, **{**defaults, **fields})


def sealed(payload: bytes, tokens: int, width: int = 4, codec: Codec = Codec.KLT) -> bytes:
    """A packet with any payload and a correct checksum."""
    fields = (b"ESRT", 1, 0, codec.wire_id, 0, bytes.fromhex(FINGERPRINT), tokens, width, 0)
    head = struct.pack("<4sBBBB8sHHII", *fields, len(payload))
    return head + struct.pack("<I", zlib.crc32(head + payload)) + payload


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_learned", GOLDEN / "make_learned.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_golden_files_equal_the_output_of_their_script() -> None:
    for name, content in maker().files().items():
        assert (GOLDEN / "learned" / name).read_bytes() == content


@pytest.mark.parametrize("vector", INDEX["valid"], ids=lambda vector: vector["name"])
def test_golden_packets(vector: dict[str, Any]) -> None:
    packet = bytes.fromhex(vector["packet"])
    assert encode(np.array(vector["input"], np.float32), vector["codec"]) == packet
    decoded = wire.decode(packet, CODEC_TABLES).features
    np.testing.assert_allclose(decoded, vector["decoded"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("vector", INDEX["refused"], ids=lambda vector: vector["name"])
def test_golden_refusals(vector: dict[str, Any]) -> None:
    with pytest.raises(PacketError) as refusal:
        wire.decode(bytes.fromhex(vector["packet"]), CODEC_TABLES)
    assert (refusal.value.type, refusal.value.status) == (vector["type"], vector["status"])


def test_a_missing_entropy_coder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Linux for ARM, where constriction has no build; the other codecs need none."""
    monkeypatch.setitem(sys.modules, "constriction", None)
    features = np.zeros((8, 4), np.float32)
    assert wire.decode(encode(features, "int8")).codec == Codec.INT8
    tables = read_codec_tables(FILE, FINGERPRINT)
    with pytest.raises(EsrtError, match=r"need the package constriction.* codec int8"):
        encode(features, "klt", tables)


# --- What comes back ----------------------------------------------------------------------------


@many
@given(features_of_width_4, st.sampled_from(TRANSFORM_CODECS))
def test_every_integer_is_decoded(features: Float32Array, codec: Codec) -> None:
    tables = CODEC_TABLES.by_codec[codec]
    integers = tables.quantize(features)
    assert (tables.read(tables.write(integers), len(features)) == integers).all()
    decoded = wire.decode(encode(features, codec), CODEC_TABLES).features
    expected = tables.reconstruct(integers.astype(np.float32))
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-4)


def write_all_tables(width: int, block: int, limit: int) -> TransformTables:
    """Tables that write every coefficient, with steps of 1: only rounding and clipping lose."""
    table = np.full(2 * limit + 1, 65536 // (2 * limit + 1), np.int64)
    table[limit] += 65536 - table.sum()
    return TransformTables(
        np.zeros(width, np.float32),
        np.eye(width, dtype=np.float32),
        np.eye(width, dtype=np.float32),
        np.ones((block, width), np.uint8),
        table.astype(np.uint16)[np.newaxis],
    )


@many
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 20), st.just(5)),
        elements=st.floats(-8, 8, width=32),
    ),
    st.integers(1, 9),
)
def test_the_error_is_within_half_a_step(features: Float32Array, block: int) -> None:
    """The transforms are orthonormal, so the errors of features and coefficients are equal."""
    tables = write_all_tables(5, block, limit=30)
    decoded = tables.reconstruct(
        tables.read(tables.write(tables.quantize(features)), len(features))
    )
    error = np.square(decoded - features).sum()
    assert error <= features.size * 0.25 + 1e-3


def test_frequent_integers_take_few_bits() -> None:
    """Each of the most frequent integers takes a fraction of a bit."""
    quiet = np.tile(CODEC_TABLES.by_codec[Codec.KLT].mean, (400, 1))
    assert len(encode(quiet)) < len(encode(quiet, Codec.INT8)) / 2
    loud = quiet + np.random.default_rng(0).normal(size=quiet.shape).astype(np.float32)
    assert len(encode(quiet)) < len(encode(loud))


# --- What is refused ----------------------------------------------------------------------------


def test_a_model_without_codec_tables() -> None:
    features = np.ones((3, 4), np.float32)
    with pytest.raises(PacketContentError, match=r"training\.codec"):
        encode(features, codec_tables=None)
    # The missing tables are reported before an invalid shape.
    for packet in (encode(features), sealed(b"", 0), sealed(b"", 60_000)):
        with pytest.raises(PacketError, match="/v1/models"):
            wire.decode(packet)


def test_features_beyond_the_transform() -> None:
    tables = write_all_tables(4, 8, 1)
    large = dataclasses.replace(tables, analysis=np.full_like(tables.analysis, 2.0))
    with pytest.raises(PacketContentError, match="coefficient"):
        large.quantize(np.full((3, 4), 3e38, np.float32))


@pytest.mark.parametrize("fields", [{"split": "adapter"}, {"width": 5}], ids=str)
def test_other_features_are_refused(fields: dict[str, Any]) -> None:
    features = np.ones((3, fields.pop("width", 4)), np.float32)
    with pytest.raises(PacketContentError, match="int8"):
        encode(features, **fields)


@many
@given(st.binary(max_size=80), st.integers(0, 60), st.sampled_from(TRANSFORM_CODECS), st.booleans())
def test_random_payloads(payload: bytes, tokens: int, codec: Codec, named: bool) -> None:
    body = CODEC_TABLES.identity + payload if named else payload
    try:
        packet = wire.decode(sealed(body, tokens, codec=codec), CODEC_TABLES)
    except PacketError:
        return
    assert packet.features.shape == (tokens, 4)
    assert np.isfinite(packet.features).all()
    # Only an encoder's output is accepted, so no two payloads decode to the same integers.
    integers = CODEC_TABLES.by_codec[codec].read(payload, tokens).astype(np.int32)
    assert CODEC_TABLES.by_codec[codec].write(integers) == payload


@many
@given(features_of_width_4, st.data())
def test_a_changed_word_is_read_or_refused(features: Float32Array, data: st.DataObject) -> None:
    payload = bytearray(encode(features)[wire.HEADER_BYTES :])
    bit = data.draw(st.integers(0, 8 * len(payload) - 1))
    payload[bit // 8] ^= 1 << bit % 8
    try:
        packet = wire.decode(sealed(bytes(payload), len(features)), CODEC_TABLES)
    except PacketError:
        return
    assert np.isfinite(packet.features).all()


@pytest.mark.parametrize("payload_bytes", [4, 1000, 1_000_000])
def test_decode_allocates_at_most_16_mb(payload_bytes: int) -> None:
    tables = write_all_tables(512, 8, limit=30)
    codec_tables = CodecTables(wire.Split.QFORMER, {Codec.KLT: tables}, bytes(4))
    words = np.random.default_rng(0).integers(1, 2**32, payload_bytes // 4, np.uint32)
    packet = sealed(bytes(4) + words[1:].tobytes(), 2048, 512)
    largest = encode(np.ones((2048, 512), np.float32) * 3, codec_tables=codec_tables)
    for one in (packet, largest):
        tracemalloc.start()
        try:
            wire.decode(one, codec_tables)
        except PacketError:
            assert one is packet
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak <= 16_000_000


# --- The file -----------------------------------------------------------------------------------


def test_the_identity_is_of_the_whole_file() -> None:
    assert CODEC_TABLES.identity == hashlib.sha256(FILE.read_bytes()).digest()[:4]
    assert CODEC_TABLES.split == "qformer"
    assert set(CODEC_TABLES.by_codec) == set(TRANSFORM_CODECS)


def test_codec_tables_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"0123456789abcdef.*training\.codec"):
        read_codec_tables(FILE, "f" * 16)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        read_codec_tables(tmp_path / "none.safetensors", FINGERPRINT)


@many
@given(st.data())
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(FILE.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    try:
        codec_tables = read_codec_tables(path, FINGERPRINT)
    except CheckpointError:
        return
    for codec, tables in codec_tables.by_codec.items():
        packet = encode(np.ones((9, tables.width), np.float32), codec, codec_tables)
        assert wire.decode(packet, codec_tables).features.shape == (9, tables.width)


def written(folder: Path, **changes: npt.NDArray[Any]) -> Path:
    from safetensors.numpy import save_file

    tables = dataclasses.asdict(write_all_tables(4, 8, limit=3)) | changes
    path = folder / wire.CODEC_TABLES_FILE
    metadata = {"split": "qformer", "fingerprint": FINGERPRINT}
    save_file({f"klt.{name}": value for name, value in tables.items()}, path, metadata)
    return path


def test_a_written_file_is_read(tmp_path: Path) -> None:
    assert set(read_codec_tables(written(tmp_path), FINGERPRINT).by_codec) == {Codec.KLT}


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": np.zeros(5, np.float32)},
        {"mean": np.zeros((), np.float32)},
        {"mean": np.zeros((4, 4), np.float32)},
        {"frequencies": np.full(3, 21845, np.uint16)},
        {"mean": np.full(4, np.nan, np.float32)},
        {"analysis": np.eye(4, dtype=np.float64)},
        {"synthesis": np.eye(3, 4, dtype=np.float32)},
        {"classes": np.full((8, 4), 2, np.uint8)},
        {"classes": np.ones((0, 4), np.uint8)},
        {"frequencies": np.full((1, 7), 9362, np.uint16)},
        {"frequencies": np.array([[0, 65535, 1]], np.uint16)},
        {"frequencies": np.array([[32768, 32768]], np.uint16)},
        {"frequencies": np.zeros((0, 3), np.uint16)},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_tensors_that_do_not_fit(tmp_path: Path, changes: dict[str, npt.NDArray[Any]]) -> None:
    with pytest.raises(CheckpointError, match="klt"):
        read_codec_tables(written(tmp_path, **changes), FINGERPRINT)
