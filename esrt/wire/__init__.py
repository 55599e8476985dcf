"""The feature packet, version 1: features to bytes and back.

`docs/wire-format.md` is normative and this package follows it. `packet` is the frame, `scalar` and
`learned` are the codecs.
"""

from esrt.wire.codec import Codec, Features, Split
from esrt.wire.learned import STATISTICS_FILE, Rung, Statistics, read_statistics
from esrt.wire.packet import (
    HEADER_BYTES,
    MAX_PACKET_BYTES,
    MAX_TOKENS,
    MAX_VALUES,
    MAX_WIDTH,
    MEDIA_TYPE,
    Packet,
    claimed_tokens,
    decode,
    encode,
    payload_size,
)

__all__ = [
    "HEADER_BYTES",
    "MAX_PACKET_BYTES",
    "MAX_TOKENS",
    "MAX_VALUES",
    "MAX_WIDTH",
    "MEDIA_TYPE",
    "STATISTICS_FILE",
    "Codec",
    "Features",
    "Packet",
    "Rung",
    "Split",
    "Statistics",
    "claimed_tokens",
    "decode",
    "encode",
    "payload_size",
    "read_statistics",
]
