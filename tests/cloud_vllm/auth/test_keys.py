"""API keys: the file, the commands, and the authentication of requests."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from cloud_vllm.api.app import create_app
from cloud_vllm.auth import keys
from cloud_vllm.auth.keys import KeyRing, Scope
from cloud_vllm.engines import EngineState, GenerationChunk
from cloud_vllm.settings import Settings
from esrt.bundled import REPOSITORY
from esrt.errors import NotReady, RequestError
from tests.cloud_vllm.helpers import PACKET, URL, Packets, ScriptedEngine, assert_problem

END = GenerationChunk("hello<|eng|><|deu|>hallo", 3, "stop")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def guarded(settings: Settings, file: Path) -> Iterator[TestClient]:
    """A gateway that needs API keys."""
    keys.create(file, "first", Scope.TRANSLATE)
    engine = ScriptedEngine(END)
    engine.state = EngineState.READY
    engine.started.set()
    app = create_app(settings.model_copy(update={"key_file": file}), engine)
    with TestClient(app) as client:
        yield client


def test_the_file_holds_a_hash_and_nothing_of_the_secret(file: Path) -> None:
    key = keys.create(file, "Anna's phone", Scope.TRANSLATE)
    prefix, key_id, secret = key.split("_", 2)
    assert (prefix, len(secret)) == ("esrt", 43)
    text = file.read_text()
    assert secret not in text
    (entry,) = json.loads(text)["keys"]
    assert entry["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert (entry["id"], entry["name"]) == (key_id, "Anna's phone")
    assert file.stat().st_mode & 0o777 == 0o600


def test_only_a_whole_key_is_valid(file: Path) -> None:
    key = keys.create(file, "a", Scope.TRANSLATE)
    other = keys.create(file, "b", Scope.METRICS)
    ring = KeyRing(file)
    entry = ring.find(key)
    assert entry is not None
    assert (entry.name, entry.scope) == ("a", "translate")
    mixed = "_".join([*key.split("_", 2)[:2], other.split("_", 2)[2]])
    wrong = (key[:-1], key + "x", key.upper(), key.split("_", 1)[1], mixed, entry.sha256)
    for guess in ("", "esrt", "esrt__", f"esrt_{entry.id}_", "\udcff", "ü", *wrong):
        assert ring.find(guess) is None, guess


def test_a_key_that_cannot_be_printed_is_revoked(file: Path) -> None:
    command = [sys.executable, "-m", "cloud_vllm", "keys", "create", "--name", "a", "--key-file"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, str(file)], cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert "error: Standard output or a file cannot be used" in done.stderr
    assert not keys.read(file)


def test_changes_take_effect_at_once(file: Path) -> None:
    key = keys.create(file, "a", Scope.TRANSLATE)
    ring = KeyRing(file)
    later = keys.create(file, "b", Scope.TRANSLATE)
    assert ring.find(later)
    keys.revoke(file, key.split("_")[1])
    assert ring.find(key) is None
    assert ring.find(later)


@pytest.mark.parametrize("damage", [None, "", "{}", '{"version": 2, "keys": []}', "[1]"])
def test_a_damaged_file_rejects_every_key(file: Path, damage: str | None) -> None:
    key = keys.create(file, "a", Scope.TRANSLATE)
    ring, good = KeyRing(file), file.read_text()
    file.unlink() if damage is None else file.write_text(damage)
    for _ in range(2):
        with pytest.raises(NotReady):
            ring.find(key)
    with pytest.raises(RequestError):
        KeyRing(file)
    file.write_text(good)
    assert ring.find(key)


def test_concurrent_commands_keep_all_keys(file: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        created = list(pool.map(lambda n: _run(file, "create", "--name", str(n)), range(4)))
    ring = KeyRing(file)
    assert all(ring.find(done.stdout.strip()) for done in created)


def test_ids_are_unique(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["aaaaaaaa", "aaaaaaaa", "bbbbbbbb"])
    monkeypatch.setattr(keys.secrets, "token_hex", lambda size: next(ids))
    both = [keys.create(file, name, Scope.TRANSLATE) for name in ("a", "b")]
    ring = KeyRing(file)
    assert [entry and entry.name for entry in map(ring.find, both)] == ["a", "b"]


def test_the_commands(file: Path) -> None:
    created = _run(file, "create", "--name", "Anna", "--scope", "metrics")
    key = created.stdout.strip()
    assert key.split("_")[1] in created.stderr
    assert "Authorization: Bearer KEY" in created.stderr
    assert key.split("_", 2)[2] not in created.stderr
    (line,) = _run(file, "list").stdout.splitlines()
    key_id, scope, _, name = line.split()
    assert (key_id, scope, name) == (key.split("_")[1], "metrics", "Anna")
    assert key.split("_", 2)[2] not in line
    assert _run(file, "revoke", key_id).returncode == 0
    assert _run(file, "list").stdout == ""
    again = _run(file, "revoke", key_id)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert f"python -m cloud_vllm keys list --key-file {file}" in again.stderr
    assert again.stderr.count("\n") == 1


def test_a_new_key_comes_with_its_use(file: Path) -> None:
    created = _run(file, "create", "--name", "Anna")
    assert "the scope translate" in created.stderr
    assert "export ESRT_API_KEY=KEY" in created.stderr


def test_a_request_needs_a_key(guarded: TestClient, file: Path, packet: Packets) -> None:
    key = keys.create(file, "second", Scope.TRANSLATE)
    wrong: list[dict[str, str]] = [{}, bearer("x"), bearer(key + "x"), {"Authorization": key}]
    for headers in wrong:
        for method, path in [("GET", "/v1/models"), ("GET", "/none"), ("POST", URL)]:
            response = guarded.request(method, path, headers={**PACKET, **headers})
            assert_problem(response, 401, "unauthorized")
            assert response.headers["www-authenticate"] == "Bearer"
    twice = [("Authorization", f"Bearer {key}")] * 2
    assert guarded.get("/v1/models", headers=twice).status_code == 401
    assert guarded.get(f"/v1/models?key={key}").status_code == 401
    assert guarded.get("/v1/models", headers={"authorization": f"bearer {key}"}).status_code == 200
    answer = guarded.post(URL, content=packet(), headers={**PACKET, **bearer(key)})
    assert answer.json()["translation"] == "hallo"
    keys.revoke(file, key.split("_")[1])
    assert guarded.get("/v1/models", headers=bearer(key)).status_code == 401


def test_public_paths(guarded: TestClient) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert guarded.get(path).status_code == 200
    assert guarded.get("/docs").status_code == 401


def test_a_key_has_one_scope(guarded: TestClient, file: Path, packet: Packets) -> None:
    headers = {**PACKET, **bearer(keys.create(file, "prometheus", Scope.METRICS))}
    response = guarded.post(URL, content=packet(), headers=headers)
    assert_problem(response, 403, "forbidden", "metrics", "translate")


def test_an_unreadable_key_file_is_an_error_of_the_server(guarded: TestClient, file: Path) -> None:
    file.unlink()
    response = guarded.get("/v1/models", headers=bearer("esrt_0_0"))
    assert_problem(response, 503, "not-ready")
    assert str(file) not in response.text


def _run(file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cloud_vllm", "keys", *arguments, "--key-file", str(file)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
