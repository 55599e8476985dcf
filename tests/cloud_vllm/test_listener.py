"""The check of exposure: a gateway without API keys stays on loopback."""

from pathlib import Path

import pytest

from cloud_vllm import listener
from cloud_vllm.settings import Settings
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
