"""Generator of the golden packets: a second implementation of docs/wire-format.md, without numpy.

The script follows the document only and shares no code with `esrt.wire`, so the vectors test the
package. `python tests/golden/make_packets.py` writes tests/golden/packets/ again; the output is
always the same.
"""

import json
import struct
import zlib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "packets"
FINGERPRINT = "0123456789abcdef"
SPLITS = {"qformer": 0, "adapter": 1}
CODECS = {"fp16": 0, "int8": 1, "int4": 2}
FP16_STEP = 2.0**-24  # the smallest positive binary16
MAX_PACKET_BYTES = 1 << 20

Rows = list[list[float]]
Vector = dict[str, Any]


def files() -> dict[str, bytes]:
    """Content of every file in the folder, by name."""
    valid, malformed, unencodable = _valid(), _malformed(), _unencodable()
    packets = {vector["file"]: vector.pop("bytes") for vector in valid + malformed}
    index = {"valid": valid, "malformed": malformed, "unencodable": unencodable}
    return {**packets, "index.json": _one_vector_a_line(index).encode()}


# --- The format ---------------------------------------------------------------------------------


def _single(value: float) -> float:
    """The nearest binary32, ties to even."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _half(value: float) -> bytes:
    return struct.pack("<e", value)  # nearest binary16, ties to even


def _from_half(data: bytes) -> float:
    return float(struct.unpack("<e", data)[0])


def _fp16(rows: Rows) -> tuple[bytes, Rows]:
    """Payload and decoded rows."""
    halves = [[_half(value) for value in row] for row in rows]
    payload = b"".join(half for row in halves for half in row)
    return payload, [[_from_half(half) for half in row] for row in halves]


def _int8(rows: Rows) -> tuple[bytes, Rows]:
    """Payload and decoded rows."""
    return _int8_payload(*_in_steps(rows, 127))


def _int4(rows: Rows) -> tuple[bytes, Rows]:
    """Payload and decoded rows."""
    return _int4_payload(*_in_steps(rows, 7))


def _in_steps(rows: Rows, largest: int) -> tuple[list[bytes], list[list[int]]]:
    """Scale of each token, and the token's values in steps of the scale."""
    scales = [_half(_single(max(abs(value) for value in row) / largest)) for row in rows]
    quantized = [
        [_quantize(value, _from_half(scale), largest) for value in row]
        for row, scale in zip(rows, scales, strict=True)
    ]
    return scales, quantized


def _quantize(value: float, scale: float, largest: int) -> int:
    if scale == 0.0:
        return 0
    # round() takes ties to even
    return max(-largest, min(largest, round(_single(value / scale))))


def _int8_payload(scales: list[bytes], quantized: list[list[int]]) -> tuple[bytes, Rows]:
    payload = b"".join(scales) + b"".join(struct.pack(f"<{len(q)}b", *q) for q in quantized)
    return payload, _from_steps(scales, quantized)


def _int4_payload(
    scales: list[bytes], quantized: list[list[int]], padding: int = 0
) -> tuple[bytes, Rows]:
    values = [q % 16 for row in quantized for q in row]
    if len(values) % 2:
        values.append(padding)
    pairs = bytes(low + 16 * high for low, high in zip(values[::2], values[1::2], strict=True))
    return b"".join(scales) + pairs, _from_steps(scales, quantized)


def _from_steps(scales: list[bytes], quantized: list[list[int]]) -> Rows:
    return [
        [q * _from_half(scale) for q in row] for row, scale in zip(quantized, scales, strict=True)
    ]


def _packet(payload: bytes, tokens: int, width: int, **fields: Any) -> bytes:
    """A packet with a correct checksum; `fields` replaces values of the header."""
    header: dict[str, Any] = {
        "magic": b"ESRT",
        "version": 1,
        "split": 0,
        "codec": 0,
        "flags": 0,
        "fingerprint": bytes.fromhex(FINGERPRINT),
        "tokens": tokens,
        "width": width,
        "duration_ms": 1500,
        "payload_bytes": len(payload),
    }
    assert fields.keys() <= header.keys()
    head = struct.pack("<4sBBBB8sHHII", *(header | fields).values())
    return head + struct.pack("<I", zlib.crc32(head + payload)) + payload


# --- Valid packets ------------------------------------------------------------------------------


def _pattern(tokens: int, width: int) -> Rows:
    """Values of both signs and several magnitudes, exact in binary32 but not in binary16."""
    return [
        [_single(((37 * (i * width + j) + 11) % 101 - 50) / 17 * (i + 1)) for j in range(width)]
        for i in range(tokens)
    ]


def _valid() -> list[Vector]:
    vectors = [
        _encoded(f"{codec}-{split}", codec, _pattern(3, 5), split=split)
        for codec in CODECS
        for split in SPLITS
    ]
    vectors += [_encoded(f"{codec}-one-value", codec, [[-1.5]]) for codec in CODECS]
    vectors += [_encoded(f"{codec}-zeros", codec, [[0.0] * 3] * 2) for codec in CODECS]
    vectors += [
        # The worked example of docs/wire-format.md.
        _encoded("int8-example", "int8", [[1.0, -0.5, 0.25], [0.0, 0.0, 0.0]]),
        _encoded("fp16-ties-to-even", "fp16", [[1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11]]),
        _encoded(
            "fp16-extremes",
            "fp16",
            [[65504.0, -65504.0, FP16_STEP, -FP16_STEP / 2, 1.5 * FP16_STEP, 2.0**-140, -0.0]],
        ),
        _encoded("int8-ties-to-even", "int8", [[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]]),
        # 127 x 1.0004 divided by the scale, which is rounded to 1, exceeds 127 and is clipped.
        _encoded("int8-scale-rounded-down", "int8", [[_single(127 * 1.0004), -127.0, 1.0]]),
        _encoded("int8-scale-rounded-up", "int8", [[_single(127 * 1.0006), -127.0, 1.0]]),
        # The smallest scale: the largest value, 1.4 x 127 steps, is clipped to 127 steps.
        _encoded("int8-scale-subnormal", "int8", [[1.4 * 127 * FP16_STEP, 3 * FP16_STEP, 0.0]]),
        _encoded("int8-scale-vanishes", "int8", [[0.4 * 127 * FP16_STEP, -FP16_STEP, 0.0]]),
        _encoded("int8-largest-scale", "int8", [[65504.0 * 127, -65504.0, 1.0]]),
        _encoded("fields-smallest", "int8", [[1.0]], duration_ms=0, fingerprint="0" * 16),
        _encoded("fields-largest", "int8", [[1.0]], duration_ms=2**32 - 1, fingerprint="f" * 16),
        # No encoder writes the next two packets, but a decoder reads them.
        _decoded("int8-minus-128", [_half(0.5)], [[-128, 127]]),
        _decoded("int8-scale-zero-with-values", [_half(0.0)], [[5, 127]]),
        # Both signs in both halves of a byte; in the first packet the last half byte is unused.
        _encoded("int4-odd-count", "int4", [[7.0, -7.0, 1.0]]),
        _encoded("int4-even-count", "int4", [[-7.0, 3.0], [0.5, -3.5]]),
        _encoded("int4-ties-to-even", "int4", [[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]]),
        _encoded("int4-scale-rounded-down", "int4", [[_single(7 * 1.0004), -7.0, 1.0]]),
        _encoded("int4-scale-vanishes", "int4", [[0.4 * 7 * FP16_STEP, -FP16_STEP, 0.0]]),
        _decoded("int4-minus-8", [_half(0.5)], [[-8, 7]]),
    ]
    return vectors


def _encoded(name: str, codec: str, rows: Rows, **fields: Any) -> Vector:
    rows = [[_single(value) for value in row] for row in rows]
    payload, decoded = {"fp16": _fp16, "int8": _int8, "int4": _int4}[codec](rows)
    return _vector(name, codec, rows, payload, decoded, **fields)


def _decoded(name: str, scales: list[bytes], quantized: list[list[int]]) -> Vector:
    codec = name[:4]
    payload, decoded = {"int8": _int8_payload, "int4": _int4_payload}[codec](scales, quantized)
    return _vector(name, codec, None, payload, decoded)


def _vector(
    name: str,
    codec: str,
    rows: Rows | None,
    payload: bytes,
    decoded: Rows,
    *,
    split: str = "qformer",
    duration_ms: int = 1500,
    fingerprint: str = FINGERPRINT,
) -> Vector:
    return {
        "file": f"{name}.bin",
        "split": split,
        "codec": codec,
        "fingerprint": fingerprint,
        "duration_ms": duration_ms,
        "input": rows,
        "decoded": decoded,
        "bytes": _packet(
            payload,
            len(decoded),
            len(decoded[0]),
            split=SPLITS[split],
            codec=CODECS[codec],
            duration_ms=duration_ms,
            fingerprint=bytes.fromhex(fingerprint),
        ),
    }


# --- Malformed packets --------------------------------------------------------------------------


def _malformed() -> list[Vector]:
    rows = _pattern(3, 5)
    half, whole = _fp16(rows)[0], _int8(rows)[0]
    good = _packet(half, 3, 5)
    flipped = bytearray(good)
    flipped[40] ^= 0x10

    def with_half(value: float) -> bytes:
        return half[:14] + _half(value) + half[16:]

    def with_scale(scale: bytes) -> bytes:
        return whole[:2] + scale + whole[4:]

    malformed, too_large, content = (
        ("packet-malformed", 400),
        ("packet-too-large", 413),
        ("packet-content", 422),
    )
    nan, infinity = float("nan"), float("inf")
    return [
        _bad("empty", malformed, b""),
        _bad("header-cut", malformed, good[:31]),
        _bad("payload-cut", malformed, good[:-1]),
        _bad("trailing-byte", malformed, good + b"\0"),
        _bad("magic", malformed, _packet(half, 3, 5, magic=b"TRSE")),
        _bad("version-0", malformed, _packet(half, 3, 5, version=0)),
        _bad("version-2", malformed, _packet(half, 3, 5, version=2)),
        _bad("split-unknown", malformed, _packet(half, 3, 5, split=2)),
        _bad("codec-unknown", malformed, _packet(half, 3, 5, codec=255)),
        _bad("flags-set", malformed, _packet(half, 3, 5, flags=1)),
        _bad("bit-flipped", malformed, bytes(flipped)),
        _bad("payload-length-claim", malformed, _packet(half, 3, 5, payload_bytes=2**32 - 1)),
        _bad("payload-too-short-for-shape", malformed, _packet(half, 4, 5)),
        _bad("payload-too-long-for-shape", malformed, _packet(half, 2, 5)),
        _bad("int8-payload-as-fp16", malformed, _packet(whole, 3, 5)),
        _bad("int8-scale-negative", content, _packet(with_scale(_half(-1.0)), 3, 5, codec=1)),
        _bad("int8-scale-minus-zero", content, _packet(with_scale(_half(-0.0)), 3, 5, codec=1)),
        _bad("int8-scale-nan", content, _packet(with_scale(_half(nan)), 3, 5, codec=1)),
        _bad("int8-scale-infinite", content, _packet(with_scale(_half(infinity)), 3, 5, codec=1)),
        _bad("int8-payload-as-int4", malformed, _packet(whole, 3, 5, codec=2)),
        _bad("int4-scale-negative", content, _packet(_half(-1.0) + b"\1", 1, 2, codec=2)),
        _bad(
            "int4-left-over-half-set",
            content,
            _packet(_int4_payload([_half(1.0)], [[1, 2, 3]], padding=5)[0], 1, 3, codec=2),
        ),
        _bad("fp16-nan", content, _packet(with_half(nan), 3, 5)),
        _bad("fp16-infinite", content, _packet(with_half(-infinity), 3, 5)),
        _bad("no-tokens", content, _packet(b"", 0, 5)),
        _bad("no-width", content, _packet(b"", 3, 0)),
        _bad("no-width-int8", content, _packet(_half(1.0) * 3, 3, 0, codec=1)),
        _bad("tokens-over-limit", too_large, _packet(b"\0" * 4098, 2049, 1)),
        _bad("width-over-limit", too_large, _packet(b"", 1, 8193)),
        _bad("values-over-limit", too_large, _packet(b"", 2048, 513)),
        _bad("largest-shape-claim", too_large, _packet(b"", 65535, 65535)),
        # Too large for the repository: the test appends the zeros.
        _bad("over-size-limit", too_large, good, MAX_PACKET_BYTES + 1 - len(good)),
        _bad("at-size-limit", malformed, good, MAX_PACKET_BYTES - len(good)),
    ]


def _bad(name: str, error: tuple[str, int], data: bytes, zeros: int = 0) -> Vector:
    """A malformed packet: the file's bytes, followed by `append_zeros` zero bytes."""
    return {
        "file": f"bad-{name}.bin",
        "append_zeros": zeros,
        "type": error[0],
        "status": error[1],
        "bytes": data,
    }


def _unencodable() -> list[Vector]:
    """Features that an encoder rejects. Infinities and NaN are missing: JSON cannot hold them."""
    return [
        _refused("fp16-overflow", "fp16", [[1.0, 65504.01]]),
        _refused("fp16-overflow-negative", "fp16", [[-65520.0], [0.0]]),
        _refused("int8-scale-overflow", "int8", [[1.0], [-65505.0 * 127]]),
        _refused("int4-scale-overflow", "int4", [[-65505.0 * 7], [1.0]]),
        _refused("no-tokens", "int8", []),
        _refused("no-width", "fp16", [[], []]),
    ]


def _refused(name: str, codec: str, rows: Rows) -> Vector:
    rows = [[_single(value) for value in row] for row in rows]
    return {"name": name, "codec": codec, "input": rows, "type": "packet-content"}


def _one_vector_a_line(index: dict[str, list[Vector]]) -> str:
    lists = (
        f' "{name}": [\n' + ",\n".join(f"  {json.dumps(v, allow_nan=False)}" for v in vectors)
        for name, vectors in index.items()
    )
    return "{\n" + "\n ],\n".join(lists) + "\n ]\n}\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for stale in FOLDER.glob("*.bin"):
        stale.unlink()
    for file_name, content in files().items():
        (FOLDER / file_name).write_bytes(content)
