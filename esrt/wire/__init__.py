"""The feature packet, version 1: features to bytes and back.

`docs/wire-format.md` is normative and this package follows it. `packet` is the frame, `scalar` and
`uses_tables` are the codecs.
"""

from esrt.wire.codec import Codec, Split
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
from esrt.wire.transform_codec import (
    CODEC_TABLES_FILE,
    CodecTables,
    TransformTables,
    read_codec_tables,
)

__all__ = [
    "CODEC_TABLES_FILE",
    "HEADER_BYTES",
    "MAX_PACKET_BYTES",
    "MAX_TOKENS",
    "MAX_VALUES",
    "MAX_WIDTH",
    "MEDIA_TYPE",
    "Codec",
    "CodecTables",
    "Packet",
    "Split",
    "TransformTables",
    "claimed_tokens",
    "decode",
    "encode",
    "payload_size",
    "read_codec_tables",
]
