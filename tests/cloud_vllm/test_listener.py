"""The check of exposure: a gateway without API keys stays on loopback."""

import socket
from pathlib import Path

import pytest

from cloud_vllm import listener
from cloud_vllm.settings import Settings
from edge_runtime.address import parse_address
from esrt.errors import RequestError


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_no_keys_are_needed_on_loopback(host: str) -> None:
    listener.check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.2", "localhost.example"])
def test_no_keys_beyond_loopback_must_be_allowed_explicitly(host: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="--allow-anonymous"):
        listener.check_exposure(Settings(host=host))
    listener.check_exposure(Settings(host=host, allow_anonymous=True))
    listener.check_exposure(Settings(host=host, key_file=tmp_path / "keys"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_address_is_one_that_a_client_takes(host: str) -> None:
    settings = Settings(host=host, port=0)
    try:
        bound = listener.listen(settings)
    except RequestError:
        pytest.skip(f"this machine has no {host}")
    with bound:
        url = parse_address(listener.address(bound, settings))
        assert url.host == ("127.0.0.1" if host == "localhost" else host)
        assert url.port == bound.getsockname()[1]
        socket.create_connection((url.host, url.port or 0)).close()


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "nosuch.invalid", "203.0.113.1", "::2"])
def test_a_host_that_cannot_be_used_is_named(host: str) -> None:
    with pytest.raises(RequestError, match="another --host") as caught:
        listener.listen(Settings(host=host, port=0))
    assert (f"[{host}]:0" if ":" in host else f"{host}:0") in caught.value.cause
