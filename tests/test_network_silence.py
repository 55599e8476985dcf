"""No lookup and no telemetry leaves the device or the gateway."""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest

from esrt.bundled import REPOSITORY, SAMPLES

UNSHARE = ["unshare", "--net"]


def watch(*command: str) -> dict[str, Any]:
    """Run a command in a network namespace and return what `tests.network_watch` printed."""
    done = subprocess.run(
        [*UNSHARE, sys.executable, "-m", "tests.network_watch", *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module", autouse=True)
def namespace() -> None:
    """Skip where a network namespace with a wire cannot be made."""
    if os.geteuid() or not shutil.which("ip") or not shutil.which("unshare"):
        pytest.skip("needs root, ip (Debian: iproute2) and unshare (util-linux)")
    made = subprocess.run(
        [*UNSHARE, "ip", "link", "add", "name", "a", "type", "veth", "peer", "name", "b"],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("the kernel has no virtual wires (veth)")


def test_what_is_sent_is_seen() -> None:
    lookup = "import socket; socket.gethostbyname('example.com')"
    datagram = (
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('198.51.100.9', 9))"
    )
    assert any(":53" in packet for packet in watch(sys.executable, "-c", lookup)["sent"])
    assert watch(sys.executable, "-c", datagram)["sent"] == ["17 198.51.100.9:9"]
    assert watch("true") == {"code": 0, "sent": [], "output": ""}


@pytest.mark.vllm
def test_a_translation_sends_nothing_else() -> None:
    clip = str(SAMPLES / "eng-2.flac")
    found = watch(sys.executable, "demo.py", clip, "--from", "eng", "--to", "deu")
    assert found["code"] == 0, found["output"]
    assert "translation:" in found["output"]
    assert found["sent"] == []
