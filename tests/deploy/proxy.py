"""nginx with deploy/nginx.conf on a free port, and raw TLS connections to it."""

import getpass
import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.deploy.helpers import DEPLOY, free_port

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
# Limits of the test, shorter and lower than those of the file.
HEADER_S, READ_S = 2, 2
CONNECTIONS = 6
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@dataclass(frozen=True)
class Proxy:
    """nginx in front of something.

    Attributes:
        port: the port that nginx listens on.
        tls: trusts nginx's certificate.
        folder: nginx's folder, with its logs.
    """

    port: int
    tls: ssl.SSLContext
    folder: Path

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}", verify=self.tls, trust_env=False, timeout=20
        )

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        return self.tls.wrap_socket(plain, server_hostname="127.0.0.1")


def configuration(port: int, upstream: int, certificate: Path) -> str:
    """deploy/nginx.conf with the ports, paths and shorter limits of this test."""
    text = (DEPLOY / "nginx.conf").read_text("utf-8")
    for shipped, replacement in {
        "user www-data;": f"user {getpass.getuser()};",
        "pid /run/nginx.pid;": "pid nginx.pid;",
        "error_log /var/log/nginx/error.log crit;": "error_log error.log crit;",
        "access_log /var/log/nginx/access.log requests;": "access_log access.log requests;",
        "http {\n": "http {\n" + "".join(f"{name}_temp_path {name};\n" for name in TEMPORARY),
        "server 127.0.0.1:8080;": f"server 127.0.0.1:{upstream};",
        "listen 443 ssl;\n        #": f"listen 127.0.0.1:{port} ssl;\n        #",
        "/etc/nginx/tls/": f"{certificate}/",
        "limit_conn addresses 100;": f"limit_conn addresses {CONNECTIONS};",
        "client_header_timeout 10s;": f"client_header_timeout {HEADER_S}s;",
        "proxy_read_timeout 120s;": f"proxy_read_timeout {READ_S}s;",
    }.items():
        assert shipped in text, shipped
        text = text.replace(shipped, replacement)
    return text


@contextmanager
def nginx(folder: Path, upstream: int, certificate: Path) -> Iterator[Proxy]:
    """Run nginx in the foreground, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    file = folder / "nginx.conf"
    file.write_text(configuration(port, upstream, certificate), "utf-8")
    assert NGINX is not None
    command = [NGINX, "-p", str(folder), "-e", str(folder / "start.log"), "-c", str(file)]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"])
    try:
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "start.log").read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
        tls = ssl.create_default_context(cafile=str(certificate / "chain.pem"))
        yield Proxy(port, tls, folder)
    finally:
        process.terminate()
        process.wait(20)


def send_raw(proxy: Proxy, head: bytes, drops: Sequence[bytes] = ()) -> tuple[int, dict[str, Any]]:
    """Send bytes as they are, then more of them slowly; return the status and the problem."""
    received = b""
    with proxy.connect() as connection:
        connection.sendall(head)
        connection.settimeout(0.1)
        remaining = iter(drops)
        end = time.monotonic() + 20
        while b"}" not in received and time.monotonic() < end:
            try:
                received += connection.recv(1 << 16)
            except TimeoutError:
                connection.sendall(next(remaining, b""))
    answer, _, body = received.lower().partition(b"\r\n\r\n")
    assert b"\r\ncontent-type: application/problem+json" in answer, received
    return int(answer.split()[1]), json.loads(body)


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes or resets the connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
