"""Checks and reads the body of a request."""

import asyncio

from fastapi import Request

from esrt.errors import MediaTypeError, PacketTooLarge, RequestError, UploadTimeout
from esrt.wire import MAX_PACKET_BYTES, MEDIA_TYPE


def check_media_type(request: Request) -> None:
    """Check content type and encoding, before the body is read.

    Raises:
        MediaTypeError: the body is not that of a packet, or is compressed.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise MediaTypeError(
            f"The body's content type is {content_type[:64] or 'not given'}.",
            f"Send a feature packet as {MEDIA_TYPE}; speech is encoded on the device, not here.",
        )
    encoding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding not in ("", "identity"):
        raise MediaTypeError(
            f"The body's content encoding is {encoding[:64]}.",
            "Send the packet without a content encoding: it is compressed already.",
        )


def check_no_body(request: Request) -> None:
    """Check that a request that names stored features has no body.

    Raises:
        RequestError: the headers declare a body.
    """
    headers = request.headers
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        raise RequestError(
            "The request has both a body and the parameter 'features'.",
            "Send the packet or its handle, not both.",
        )


async def read_body(request: Request, seconds: float) -> bytes:
    """Read a body of at most `MAX_PACKET_BYTES`, whatever its declared length.

    Raises:
        PacketTooLarge: the body is longer; the rest is not read.
        UploadTimeout: the body did not arrive in time.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > MAX_PACKET_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > MAX_PACKET_BYTES:
                    raise _too_large()
                body += chunk
    except TimeoutError:
        raise UploadTimeout(
            f"The packet did not arrive within {seconds:g} s.",
            "Send the packet again, over a faster connection.",
        ) from None
    return bytes(body)


def _too_large() -> PacketTooLarge:
    return PacketTooLarge(
        f"The body is longer than {MAX_PACKET_BYTES} bytes.",
        "Send shorter speech or use a smaller codec.",
    )
