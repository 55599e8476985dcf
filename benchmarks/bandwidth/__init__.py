"""Bytes of speech in requests, and the loss of quality, by codec."""
