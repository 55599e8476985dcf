"""The feature packet: golden vectors, error bounds, and invalid bytes."""

import importlib.util
import json
import re
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from esrt import wire
from esrt.arrays import Float32Array
from esrt.bundled import REPOSITORY
from esrt.errors import PacketContentError, PacketError, PacketTooLarge
from esrt.wire.packet import payload_size

GOLDEN = REPOSITORY / "tests/golden"
INDEX = json.loads((GOLDEN / "packets/index.json").read_text())
FINGERPRINT = "0123456789abcdef"
HEADER = struct.Struct("<4sBBBB8sHHIII")
FIELDS = (
    *("magic", "version", "split", "codec", "flags", "fingerprint"),
    *("tokens", "width", "duration", "payload_bytes", "crc"),
)

# The transform codecs need codec tables; see test_transform_codec.py.
CODECS = [codec for codec in wire.Codec if not codec.uses_tables]

many = settings(max_examples=300, deadline=None)


def make(features: Float32Array, codec: str = "int8", **fields: Any) -> bytes:
    """A packet with default values for the fields that a test does not set."""
    defaults = {"fingerprint": FINGERPRINT, "split": "qformer", "duration_ms": 1500}
    return wire.encode(features, codec=codec, **{**defaults, **fields})


def reseal(packet: bytes, **fields: Any) -> bytes:
    """The packet with some header fields replaced, and a correct checksum."""
    header = dict(zip(FIELDS, HEADER.unpack_from(packet), strict=True)) | fields
    head, payload = HEADER.pack(*header.values())[:28], packet[32:]
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


def decoded_or_refused(data: bytes) -> wire.Packet | None:
    """Decode; assert that the result is a valid packet or a `PacketError`."""
    try:
        packet = wire.decode(data)
    except PacketError as error:
        assert error.cause.endswith(".") and error.remedy.endswith(".")
        assert error.status in (400, 413, 422)
        return None
    assert packet.features.dtype == np.float32
    assert packet.features.ndim == 2 and packet.features.size > 0
    assert np.isfinite(packet.features).all()
    assert re.fullmatch("[0-9a-f]{16}", packet.fingerprint)
    return packet


def ramp(tokens: int = 3, width: int = 5) -> Float32Array:
    return np.linspace(-2, 3, tokens * width, dtype=np.float32).reshape(tokens, width)


# --- Golden vectors -----------------------------------------------------------------------------


def golden_bytes(vector: dict[str, Any]) -> bytes:
    data = (GOLDEN / "packets" / str(vector["file"])).read_bytes()
    return data + bytes(vector.get("append_zeros", 0))


@pytest.mark.parametrize("vector", INDEX["valid"], ids=lambda v: v["file"])
def test_golden_packet_decodes(vector: dict[str, Any]) -> None:
    packet = wire.decode(golden_bytes(vector))
    np.testing.assert_array_equal(packet.features, np.array(vector["decoded"], np.float32))
    for field in ("split", "codec", "fingerprint", "duration_ms"):
        assert getattr(packet, field) == vector[field]


@pytest.mark.parametrize(
    "vector", [v for v in INDEX["valid"] if v["input"] is not None], ids=lambda v: v["file"]
)
def test_golden_packet_encodes(vector: dict[str, Any]) -> None:
    fields = {name: vector[name] for name in ("split", "codec", "fingerprint", "duration_ms")}
    assert wire.encode(np.array(vector["input"], np.float32), **fields) == golden_bytes(vector)


@pytest.mark.parametrize("vector", INDEX["malformed"], ids=lambda v: v["file"])
def test_golden_malformed_packet_is_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(PacketError) as caught:
        wire.decode(golden_bytes(vector))
    assert (caught.value.type, caught.value.status) == (vector["type"], vector["status"])


@pytest.mark.parametrize("vector", INDEX["unencodable"], ids=lambda v: v["name"])
def test_golden_unencodable_features_are_refused(vector: dict[str, Any]) -> None:
    with pytest.raises(PacketError) as caught:
        make(np.array(vector["input"], np.float32), vector["codec"])
    assert caught.value.type == vector["type"]


def test_golden_files_equal_the_output_of_their_script() -> None:
    spec = importlib.util.spec_from_file_location("make_packets", GOLDEN / "make_packets.py")
    assert spec is not None and spec.loader is not None
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    kept = {path.name: path.read_bytes() for path in (GOLDEN / "packets").iterdir()}
    assert generator.files() == kept


def test_document_shows_the_example_packet() -> None:
    document = (REPOSITORY / "docs/wire-format.md").read_text()
    rows = re.findall(r"^    [0-9a-f]{8}  ((?:[0-9a-f]{2} ?)+)", document, re.MULTILINE)
    assert bytes.fromhex("".join(rows)) == (GOLDEN / "packets/int8-example.bin").read_bytes()


# --- Round trips --------------------------------------------------------------------------------

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


def arrays(largest: float) -> st.SearchStrategy[Float32Array]:
    bound = float(np.float32(largest))
    return hnp.arrays(np.float32, shapes, elements=st.floats(-bound, bound, width=32))


@many
@given(arrays(65504))
def test_fp16_round_trip_is_within_half_a_unit(features: Float32Array) -> None:
    decoded = wire.decode(make(features, "fp16")).features.astype(np.float64)
    # Relative 2^-11; below binary16's normal range, half of its smallest step.
    bound = np.maximum(np.abs(features.astype(np.float64)) * 2.0**-11, 2.0**-25)
    assert (np.abs(decoded - features) <= bound).all()


@many
@given(st.one_of(arrays(65504 * 127), arrays(1), arrays(1e-4)))
def test_int8_round_trip_is_within_half_a_step(features: Float32Array) -> None:
    assert_within_half_a_step(features, "int8", 127)


@many
@given(st.one_of(arrays(65504 * 7), arrays(1), arrays(1e-4)))
def test_int4_round_trip_is_within_half_a_step(features: Float32Array) -> None:
    assert_within_half_a_step(features, "int4", 7)


def assert_within_half_a_step(features: Float32Array, codec: str, steps: int) -> None:
    decoded = wire.decode(make(features, codec)).features.astype(np.float64)
    largest = np.abs(features.astype(np.float64)).max(axis=1, keepdims=True)
    step = (largest / np.float32(steps)).astype(np.float16).astype(np.float64)
    # The second bound is for scales below binary16's normal range; 2^-16 is for the division.
    bound = np.maximum(step / 2, steps * 2.0**-25) + step * 2.0**-16
    assert (np.abs(decoded - features) <= bound).all()


@many
@given(
    features=arrays(100),
    fingerprint=st.binary(min_size=8, max_size=8).map(bytes.hex),
    split=st.sampled_from(wire.Split),
    codec=st.sampled_from(CODECS),
    duration_ms=st.integers(0, 2**32 - 1),
)
def test_fields_survive(
    features: Float32Array, fingerprint: str, split: wire.Split, codec: wire.Codec, duration_ms: int
) -> None:
    data = wire.encode(
        features, fingerprint=fingerprint, split=split, codec=codec, duration_ms=duration_ms
    )
    packet = wire.decode(data)
    assert (packet.fingerprint, packet.split, packet.codec) == (fingerprint, split, codec)
    assert packet.duration_ms == duration_ms
    assert packet.features.shape == features.shape
    expected = payload_size(codec, *features.shape)
    assert len(data) == wire.HEADER_BYTES + (expected or 0)
    assert wire.claimed_tokens(data) == len(features)


@pytest.mark.parametrize("codec", CODECS)
def test_decoded_features_encode_to_features_as_near(codec: wire.Codec) -> None:
    once = wire.decode(make(ramp(80, 768), codec)).features
    twice = wire.decode(make(once, codec)).features
    np.testing.assert_allclose(twice, once, atol=3 / 127)


@pytest.mark.parametrize(("codec", "size"), [("fp16", 122_912), ("int8", 61_632), ("int4", 30_912)])
def test_size_of_the_large_models_packet(codec: str, size: int) -> None:
    assert len(make(ramp(80, 768), codec)) == size


def test_zero_token_decodes_to_zeros() -> None:
    features = np.array([[0, 0], [1, -1]], np.float32)
    assert not wire.decode(make(features, "int8")).features[0].any()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("codec", CODECS)
def test_memory_layout_and_float_type_do_not_matter(
    codec: wire.Codec, dtype: npt.DTypeLike, order: Any
) -> None:
    features = ramp().astype(np.float16)  # so that every type holds the same values
    other = np.array(features, dtype=dtype, order=order)
    assert make(other, codec) == make(features.astype(np.float32), codec)


def test_decoded_features_are_writable_and_independent_of_the_packet() -> None:
    data = bytearray(make(ramp(), "fp16"))
    packet = wire.decode(bytes(data))
    packet.features[0, 0] = 7
    assert wire.decode(bytes(data)).features[0, 0] != 7


# --- What encode refuses ------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encode_refuses_values_that_are_not_finite(codec: wire.Codec, bad: float) -> None:
    features = ramp()
    features[1, 2] = bad
    with pytest.raises(PacketContentError, match=r"\[1, 2\]"):
        make(features, codec)


@pytest.mark.parametrize("codec", CODECS)
def test_encode_refuses_float64_beyond_float32(codec: wire.Codec) -> None:
    with pytest.raises(PacketContentError, match="1e\\+39"):
        wire.encode(
            np.array([[1e39]]), fingerprint=FINGERPRINT, split="qformer", codec=codec, duration_ms=0
        )


def test_encode_does_not_overflow_fp16_silently() -> None:
    with pytest.raises(PacketContentError, match="65504"):
        make(np.array([[65505.0]], np.float32), "fp16")


@pytest.mark.parametrize("shape", [(), (5,), (1, 3, 5), (0, 5), (5, 0)])
@pytest.mark.parametrize("codec", CODECS)
def test_encode_refuses_bad_shapes(codec: wire.Codec, shape: tuple[int, ...]) -> None:
    with pytest.raises(PacketContentError):
        make(np.ones(shape, np.float32), codec)


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, object, "U3"])
def test_encode_refuses_types_that_are_not_floats(dtype: Any) -> None:
    with pytest.raises(PacketContentError, match="floating"):
        make(np.ones((2, 3)).astype(dtype))


@pytest.mark.parametrize("shape", [(2049, 1), (1, 8193), (2048, 513)])
def test_encode_refuses_shapes_over_the_limits(shape: tuple[int, int]) -> None:
    with pytest.raises(PacketTooLarge, match=f"{shape[0]} x {shape[1]}"):
        make(np.zeros(shape, np.float32))


def test_encode_refuses_packets_over_the_size_limit() -> None:
    features = np.zeros((1024, 1000), np.float32)
    assert len(make(features, "int8")) <= wire.MAX_PACKET_BYTES
    with pytest.raises(PacketTooLarge, match="2048032"):
        make(features, "fp16")


@pytest.mark.parametrize(
    "fields",
    [
        {"fingerprint": "0123"},
        {"fingerprint": FINGERPRINT.upper()},
        {"fingerprint": FINGERPRINT + "\n"},
        {"split": "encoder"},
        {"codec": "int2"},
        {"duration_ms": -1},
        {"duration_ms": 2**32},
    ],
)
def test_encode_refuses_bad_fields(fields: dict[str, Any]) -> None:
    with pytest.raises(PacketContentError):
        make(ramp(), **fields)


# --- What decode refuses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"magic": b"RIFF"}, "begins with b'RIFF', expected b'ESRT'"),
        ({"version": 2}, "version 2, expected 1"),
        ({"flags": 0x80}, "flags are 0x80, expected 0x00"),
        ({"split": 7}, r"split id is 7, expected one of 0 \(qformer\), 1 \(adapter\)"),
        ({"codec": 9}, r"codec id is 9, expected one of 0 \(fp16\), 1 \(int8\), 2 \(int4\)"),
        ({"payload_bytes": 20}, "has 21 bytes, expected 20 as in the header"),
        ({"tokens": 4}, "has 21 bytes, expected 28 for 4 x 5 in int8"),
        ({"tokens": 0}, "0 x 5"),
        ({"width": 65535}, "3 x 65535, expected at most 2048 tokens"),
    ],
)
def test_errors_name_actual_and_expected_values(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PacketError, match=message):
        wire.decode(reseal(make(ramp()), **fields))


def test_decode_reports_damage_as_damage() -> None:
    packet = bytearray(make(ramp()))
    packet[6] ^= 0x40  # the codec's byte, without a new checksum
    with pytest.raises(PacketError, match="checksum"):
        wire.decode(bytes(packet))


@pytest.mark.parametrize("size", [wire.MAX_PACKET_BYTES + 1, 5 * wire.MAX_PACKET_BYTES])
def test_decode_refuses_more_than_the_size_limit_before_all_else(size: int) -> None:
    with pytest.raises(PacketTooLarge, match=f"{size} bytes, expected at most 1048576"):
        wire.decode(bytes(size))


@many
@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    assert decoded_or_refused(data) is None
    assert 0 <= wire.claimed_tokens(data) < 2**16


valid = st.builds(make, arrays(100), st.sampled_from(CODECS))


@many
@given(valid, st.data())
def test_flipped_bit_is_always_noticed(packet: bytes, data: st.DataObject) -> None:
    bit = data.draw(st.integers(0, 8 * len(packet) - 1))
    damaged = bytearray(packet)
    damaged[bit // 8] ^= 1 << bit % 8
    assert decoded_or_refused(bytes(damaged)) is None


@many
@given(valid, st.data())
def test_truncation_and_extension_are_always_noticed(packet: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(packet) - 1))
    assert decoded_or_refused(packet[:cut]) is None
    assert decoded_or_refused(packet + data.draw(st.binary(min_size=1, max_size=64))) is None


small_or_any = st.one_of(st.integers(0, 8), st.integers(0, 65535))


@many
@given(
    packet=valid,
    fields=st.fixed_dictionaries(
        {},
        optional={
            "version": st.integers(0, 2),
            "split": st.integers(0, 3),
            "codec": st.integers(0, 6),
            "flags": st.integers(0, 1),
            "tokens": small_or_any,
            "width": small_or_any,
            "payload_bytes": st.integers(0, 2**32 - 1),
        },
    ),
)
def test_rewritten_header_with_a_right_checksum(packet: bytes, fields: dict[str, int]) -> None:
    decoded_or_refused(reseal(packet, **fields))


@many
@given(
    tokens=st.integers(0, 6),
    width=st.integers(0, 6),
    codec=st.sampled_from(CODECS),
    data=st.data(),
)
def test_random_payload_with_a_right_header(
    tokens: int, width: int, codec: wire.Codec, data: st.DataObject
) -> None:
    size = payload_size(codec, tokens, width) or 0
    payload = data.draw(st.binary(min_size=size, max_size=size))
    header = make(ramp(), codec)[:32]
    packet = reseal(header + payload, tokens=tokens, width=width, payload_bytes=size)
    decoded = decoded_or_refused(packet)
    if decoded is not None:
        assert decoded.features.shape == (tokens, width)


# --- Memory -------------------------------------------------------------------------------------


def hostile() -> list[bytes]:
    """Packets with large claims in the header and a correct checksum, and the largest packets."""
    small = {codec: make(ramp(), codec) for codec in CODECS}
    claims = [
        {"tokens": 65535, "width": 65535},
        {"tokens": 2048, "width": 512},
        {"tokens": 65535, "width": 1, "payload_bytes": 2**32 - 1},
        {"tokens": 1, "width": 65535},
    ]
    packets = [reseal(small[codec], **claim) for codec in CODECS for claim in claims]
    for packet in small.values():
        padded = packet + bytes(wire.MAX_PACKET_BYTES - len(packet))
        packets.append(reseal(padded, payload_bytes=len(padded) - 32))
    packets += [
        make(np.ones((2048, 509), np.float32), "int8"),
        make(np.ones((127, 8192), np.float32), "int8"),
        make(np.ones((1023, 512), np.float32), "fp16"),
    ]
    return packets


@pytest.mark.parametrize("packet", hostile(), ids=lambda p: f"{len(p)}-{p[16:28].hex()}")
def test_decode_allocates_at_most_16_mb(packet: bytes) -> None:
    tracemalloc.start()
    try:
        decoded_or_refused(packet)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 16_000_000
