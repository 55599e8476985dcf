"""The settings: their reference, their forms, and variables that are none."""

import logging
import re
from pathlib import Path

import pytest

from cloud_vllm import settings_reference
from cloud_vllm.settings import Settings
from cloud_vllm.settings_reader import read_settings, warn_of_unknown_variables
from esrt.bundled import REPOSITORY
from esrt.errors import RequestError

# A value that no setting of the kind accepts, by the form of the settings.
WRONG = {"a whole number": "1.5", "a number": "soon", "true or false": "maybe"}
PACKAGES = ("benchmarks", "cloud_vllm", "edge_runtime", "esrt", "export", "training")


@pytest.fixture(autouse=True)
def _without_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv(settings_reference.variable(field), raising=False)


def read(**values: object) -> Settings:
    return read_settings(values, lambda field: f"--{field}")


def test_the_reference_is_current() -> None:
    written = (REPOSITORY / settings_reference.FILE).read_text("utf-8")
    assert written == settings_reference.markdown(), (
        f"{settings_reference.COMMAND} --markdown > {settings_reference.FILE}"
    )


def test_every_setting_is_in_one_group() -> None:
    grouped = [field for fields in settings_reference.GROUPS.values() for field in fields]
    assert sorted(grouped) == sorted(Settings.model_fields)


@pytest.mark.parametrize("field", Settings.model_fields)
def test_a_default_is_accepted_as_it_is_written(
    field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = getattr(Settings(), field)
    monkeypatch.setenv(settings_reference.variable(field), settings_reference.default(field))
    if field != "checkpoint":
        assert getattr(read(), field) == expected


@pytest.mark.parametrize("field", Settings.model_fields)
def test_a_wrong_value_is_named_with_its_form(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = settings_reference.form(field)
    wrong = next((value for begin, value in WRONG.items() if form.startswith(begin)), "\\wrong")
    if form == "a path":
        return  # any text has this form
    monkeypatch.setenv(settings_reference.variable(field), wrong)
    with pytest.raises(RequestError) as caught:
        read()
    assert (
        caught.value.cause == f"{settings_reference.variable(field)} is {wrong!r}, expected {form}."
    )


def test_several_wrong_settings_take_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESRT_KEY_BURST", "0")
    with pytest.raises(RequestError) as caught:
        read(port=70_000, prot=1)
    for words in (
        "--port is '70000'",
        "--prot is no setting. Did you mean port?",
        "ESRT_KEY_BURST",
    ):
        assert words in caught.value.cause
    assert "\n" not in str(caught.value)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(
        RequestError, match=r"^--tls_key is set without --tls_certificate, but they"
    ):
        read(tls_key="key.pem")
    with pytest.raises(
        RequestError, match=r"^--tls_certificate is set without --tls_key, but they"
    ):
        read(tls_certificate="chain.pem")


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("https://app.example", ("https://app.example",)),
        ("https://a.example, http://localhost:3000/", ("https://a.example", "http://localhost:3000")),
        ('["https://a.example", "capacitor://localhost"]', ("https://a.example", "capacitor://localhost")),
        ("", ()),
    ],
)  # fmt: skip
def test_origins(text: str, origins: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESRT_CORS_ORIGINS", text)
    assert read().cors_origins == origins


@pytest.mark.parametrize("text", ["app.example", "https://a.example/path", "[1]", "[", "https://"])
def test_text_that_is_no_origin(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESRT_CORS_ORIGINS", text)
    with pytest.raises(RequestError, match="separated by commas"):
        read()


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESRT_KEY_FILE", "")
    monkeypatch.setenv("ESRT_PORT", "")
    assert (read().key_file, read().port) == (None, 8080)


def test_unknown_variables(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    links = {
        "ESRT_GATEWAY_SERVICE_HOST": "10.0.0.1",
        "ESRT_GATEWAY_SERVICE_PORT_HTTP": "80",
        "ESRT_GATEWAY_PORT": "tcp://10.0.0.1:80",
        "ESRT_GATEWAY_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    known = {"ESRT_PORT": "80", "esrt_host": "::1", "ESRT_API_KEY": "secret", "OTHER": ""}
    typos = {"ESRT_MAX_CONCURENT": "5", "ESRT_PROT": "1", "ESRT_FOO": "", "ESRT_A_PORT": "80"}
    former = {"ESRT_MAX_WAITNG": "5", "ESRT_FEATURES_S": "9"}
    warn_of_unknown_variables({**links, **known, **typos, **former})
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines[0] == (
        "WARNING",
        "ESRT_A_PORT is no setting and has no effect. Did you mean ESRT_PORT?",
    )
    hints = [line.partition("no effect. ")[2] for _, line in lines[1:6]]
    assert hints == [
        "Did you mean ESRT_PACKET_TTL_S?",
        f"See: {settings_reference.COMMAND}",
        "Did you mean ESRT_MAX_CONCURRENT?",
        "Did you mean ESRT_QUEUE_SIZE?",
        "Did you mean ESRT_PORT?",
    ]
    ((level, services),) = lines[6:]
    assert level == "INFO"
    assert all(name in services for name in links)


def test_no_variable_is_missing_in_the_reference() -> None:
    known = {*map(settings_reference.variable, Settings.model_fields)}
    known |= {*settings_reference.OTHER_VARIABLES, *settings_reference.RENAMED}
    for path in [path for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")]:
        read_variables = re.findall(
            r"\bESRT_[A-Z][A-Z_]*[A-Z]\b", path.read_text("utf-8", "replace")
        )
        assert set(read_variables) <= known, path


def test_a_path_of_a_checkpoint(tmp_path: Path) -> None:
    assert read(checkpoint=tmp_path).checkpoint == tmp_path
