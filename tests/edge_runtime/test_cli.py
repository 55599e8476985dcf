"""The commands in their own process, with exit codes and one-line errors."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from soxr import resample

from esrt import wire
from tests.edge_runtime.helpers import (
    DONE,
    EVENTS,
    FINGERPRINT,
    MISMATCH,
    NOT_READY,
    PROBLEM,
    RATE,
    REPOSITORY,
    WIDTH,
    Gateway,
    ServedRequest,
    describe,
    run,
    speech,
    tiny_graph,
    voice,
    write_wav,
)

PACKET_BYTES = 32 + 13 * (2 + WIDTH)  # header; 13 tokens, each a scale and its values
ENG_DEU = ("--from", "eng", "--to", "deu")


def refused(result: CompletedProcess[str], code: int, *words: str) -> None:
    """Assert the exit code, and one line on stderr with ``error:`` and the words."""
    assert result.returncode == code, result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert all(word in result.stderr for word in words), result.stderr


def test_translate(gateway: Gateway, artifact: Path, utterance: Path) -> None:
    result = run(
        *("translate", utterance, *ENG_DEU, "--server", gateway.url, "--artifact", artifact)
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].split(maxsplit=1) == ["transcript:", DONE["transcript"]]
    assert lines[1].split(maxsplit=1) == ["translation:", DONE["translation"]]
    table = dict(line.split("  ", 1) for line in lines[2:])
    stages = ["find speech", "log-mel", "encode", "pack", "network", "first token", "done"]
    assert list(table) == ["speech", "packet", *stages, "confidence"]
    assert "32,000 bytes" in table["speech"]
    assert table["speech"].endswith("1.00 s of 1.00 s, 16-bit 16 kHz")
    assert f"{PACKET_BYTES} bytes" in table["packet"]
    assert f"{32_000 / PACKET_BYTES:.1f} times smaller" in table["packet"]
    assert all(table[stage].endswith(" ms") for stage in stages[:3])
    assert table["pack"].endswith(" ms  features to packet")
    assert table["network"].endswith(" ms  upload, queue and download")
    assert all(table[stage].endswith(" ms  since sending") for stage in stages[5:])
    assert table["confidence"].split() == ["-0.010", "caution", "below", "-0.04"]
    assert "\x1b" not in result.stdout
    packet = wire.decode(gateway.exchanges[0].body)
    assert packet.fingerprint == FINGERPRINT
    assert packet.duration_ms == 1000


def test_the_api_key_comes_from_the_environment(
    gateway: Gateway, artifact: Path, utterance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESRT_API_KEY", "esrt_0123abcd_secret")
    result = run(
        *("translate", utterance, *ENG_DEU, "--server", gateway.url, "--artifact", artifact)
    )
    assert result.returncode == 0
    assert gateway.exchanges[0].headers["authorization"] == "Bearer esrt_0123abcd_secret"
    assert "secret" not in result.stdout + result.stderr


def test_the_server_and_the_languages_as_a_user_gives_them(
    gateway: Gateway, artifact: Path, utterance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESRT_SERVER", gateway.url)
    result = run(
        "translate", utterance, "--from", "en-GB", "--to", "Deutsch", "--artifact", artifact
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert gateway.exchanges[0].query == {"src": "eng", "tgt": "deu"}


@pytest.mark.parametrize("options", [["--json"], ["--stream"], ["--no-stream"]])
def test_full_standard_output_is_one_line(
    gateway: Gateway, artifact: Path, utterance: Path, options: list[str]
) -> None:
    command = [sys.executable, "-m", "edge_runtime", "translate", str(utterance), *ENG_DEU]
    command += ["--server", gateway.url, "--artifact", str(artifact), *options]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            command, cwd=REPOSITORY, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    refused(result, 2, "No space left on device")


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_translate_json(gateway: Gateway, artifact: Path, utterance: Path, stream: str) -> None:
    result = run(
        *("translate", utterance, *ENG_DEU, "--server", gateway.url, "--artifact", artifact),
        *("--codec", "fp16", stream, "--json"),
    )
    assert (result.returncode, result.stderr) == (0, "")
    answer = json.loads(result.stdout)
    # The names of the HTTP interface, and beside them the measurements of the client.
    assert {name: answer[name] for name in DONE} == DONE
    assert set(answer) - set(DONE) == {"audio", "packet", "client_ms", "warnings"}
    audio = {"recording_seconds": 1.0, "speech_seconds": 1.0, "pcm_bytes": 32_000}
    assert answer["audio"] == audio
    size = len(gateway.exchanges[0].body)
    assert answer["packet"] == {
        "bytes": size,
        "codec": "fp16",
        "tokens": 13,
        "width": WIDTH,
        "times_smaller": 32_000 / size,
    }
    assert set(answer["client_ms"]) == {
        "find_speech",
        "log_mel",
        "encode",
        "pack",
        "network",
        "first_token",
        "done",
    }
    assert (answer["client_ms"]["first_token"] is None) == (stream == "--no-stream")
    assert answer["warnings"] == []


def test_translate_without_streaming(gateway: Gateway, artifact: Path, utterance: Path) -> None:
    result = run(
        *("translate", utterance, *ENG_DEU, "--server", gateway.url, "--artifact", artifact),
        "--no-stream",
    )
    assert result.returncode == 0
    assert result.stdout.splitlines()[1].endswith(DONE["translation"])


def warned(result: CompletedProcess[str], *warnings: str) -> None:
    """Assert exit code 0, one line per warning on stderr, and the warnings in the JSON."""
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [f"warning: {warning}" for warning in warnings]
    assert json.loads(result.stdout)["warnings"] == list(warnings)


CUT = "the answer was cut at the maximum length; send shorter speech."
UNCERTAIN = (
    "the model is uncertain of this answer: its confidence is -0.300, below -0.04. Listen to the"
    " recording, or record again in a quieter place."
)
LOW = {"transcript": -0.3, "translation": -0.01, "threshold": -0.04}
REPEATED = "the answer was cut because the text repeated itself."
EMPTY = "the decoder wrote no translation; the speech may be outside the model's domain."


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
@pytest.mark.parametrize(
    ("changes", "warnings"),
    [
        ({"finish": "length"}, [CUT]),
        ({"finish": "repetition"}, [REPEATED]),
        ({"confidence": LOW}, [UNCERTAIN]),
        ({"confidence": LOW | {"threshold": None}}, []),
        ({"translation": ""}, [EMPTY]),
        ({"translation": " \n"}, [EMPTY]),
        ({"finish": "length", "translation": ""}, [CUT, EMPTY]),
    ],
)
def test_an_incomplete_answer_is_announced(
    gateway: Gateway,
    artifact: Path,
    utterance: Path,
    stream: str,
    changes: dict[str, str],
    warnings: list[str],
) -> None:
    def answer(exchange: ServedRequest) -> None:
        if stream == "--stream":
            exchange.stream([*EVENTS[:2], ("done", DONE | changes)])
        else:
            exchange.send(200, DONE | changes)

    gateway.answer = answer
    command = ("translate", utterance, *ENG_DEU, "--server", gateway.url, "--artifact", artifact)
    warned(run(*command, stream, "--json"), *warnings)
    shown = run(*command, stream)
    assert shown.returncode == 0
    assert shown.stderr.splitlines() == [f"warning: {warning}" for warning in warnings]
    assert "warning" not in shown.stdout


@pytest.mark.parametrize("rate", [4_000, 7_999, 8_000, 16_000])
def test_narrow_band_audio_is_announced(
    gateway: Gateway, artifact: Path, tmp_path: Path, rate: int
) -> None:
    path = write_wav(tmp_path / "call.wav", resample(voice(1.0), RATE, rate), rate)
    warning = (
        f"{path} is sampled at {rate} Hz; below 8000 Hz most translations are wrong."
        " Record at a higher rate."
    )
    warnings = [warning] if rate < 8_000 else []
    options = ("--artifact", artifact, "--json")
    warned(run("encode", path, "--out", tmp_path / "packet", *options), *warnings)
    warned(run("translate", path, *ENG_DEU, "--server", gateway.url, *options), *warnings)


def test_a_warning_about_a_name_that_is_no_text(artifact: Path, tmp_path: Path) -> None:
    path = write_wav(tmp_path / "a.wav", resample(voice(1.0), RATE, 6_000), 6_000)
    path = path.rename(tmp_path / os.fsdecode(b"two\nlines \xff.wav"))
    result = run("encode", path, "--out", tmp_path / "packet", "--artifact", artifact, "--json")
    assert (result.returncode, result.stderr.count("\n")) == (0, 1), result.stderr
    assert "two\nlines \ufffd.wav is sampled" in json.loads(result.stdout)["warnings"][0]


def test_encode(artifact: Path, utterance: Path, tmp_path: Path) -> None:
    out = tmp_path / "packet.bin"
    out.write_bytes(b"an older packet")
    result = run("encode", utterance, "--out", out, "--artifact", artifact)
    assert (result.returncode, result.stderr) == (0, "")
    assert wire.decode(out.read_bytes()).fingerprint == FINGERPRINT
    assert f"{PACKET_BYTES} bytes" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["packet.bin"]


@pytest.mark.parametrize("out", ["missing/packet.bin", ".", "x" * 250, "x" * 300])
def test_encode_cannot_write(artifact: Path, utterance: Path, tmp_path: Path, out: str) -> None:
    refused(run("encode", utterance, "--out", tmp_path / out, "--artifact", artifact), 2, out)
    assert list(tmp_path.iterdir()) == []


def bad_files(folder: Path) -> dict[str, Path]:
    """One file for each reason to reject audio, by words of the error message."""
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("not audio " * 100)
    broken = speech(1.0)
    broken[100] = np.nan
    return {
        "No such file": folder / "gone.wav",
        "directory": folder,
        "is empty": folder / "empty.wav",
        "not audio": folder / "text.wav",
        "no samples": write_wav(folder / "none.wav", speech(0)),
        "silent": write_wav(folder / "silent.wav", 0 * speech(1.0)),
        "not finite": write_wav(folder / "nan.wav", broken, subtype="FLOAT"),
        "at least": write_wav(folder / "short.wav", speech(0.05)),
        "5.0 s of speech": write_wav(folder / "long\nname.wav", voice(5.0)),
        "No voice": write_wav(folder / "tone.wav", speech(1.0)),
    }


@pytest.mark.parametrize("command", ["translate", "encode"])
def test_bad_audio(gateway: Gateway, artifact: Path, tmp_path: Path, command: str) -> None:
    for words, path in bad_files(tmp_path).items():
        options = ("--out", tmp_path / "packet.bin")
        if command == "translate":
            options = (*ENG_DEU, "--server", gateway.url)  # type: ignore[assignment]
        refused(run(command, path, *options, "--artifact", artifact), 2, words)
    assert gateway.exchanges == []


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("eng", "eng", "both 'eng'"),
        ("qqq", "deu", "'qqq'"),
        ("eng", "xxx", "'xxx'"),
        ("eng", "jpn", "Japanese"),
    ],
)
def test_bad_languages(
    artifact: Path, utterance: Path, source: str, target: str, words: str
) -> None:
    result = run(
        *("translate", utterance, "--from", source, "--to", target, "--artifact", artifact)
    )
    refused(result, 2, words)
    if source != target:
        assert result.stderr.endswith("Use one of: eng deu spa.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["translat"],
        ["translate"],
        ["translate", "a.wav", "--from", "eng"],
        ["translate", "a.wav", *ENG_DEU, "--codec", "int2"],
        ["translate", "a.wav", *ENG_DEU, "--threads", "0"],
        ["encode", "a.wav", "--output", "b"],
    ],
    ids=" ".join,
)
def test_bad_usage(arguments: list[str]) -> None:
    refused(run(*arguments), 2, "--help")


def test_help() -> None:
    result = run("translate", "--help")
    assert result.returncode == 0
    assert "--from" in result.stdout


def test_bad_artifacts(utterance: Path, tmp_path: Path) -> None:
    refused(run("translate", utterance, *ENG_DEU, "--artifact", tmp_path / "gone"), 2, "gone")
    tiny_graph(tmp_path / "encoder.onnx")
    describe(tmp_path, kind="coreml")
    refused(run("translate", utterance, *ENG_DEU, "--artifact", tmp_path), 2, "coreml")
    (tmp_path / "encoder.onnx").write_bytes(b"not a graph")
    describe(tmp_path)
    refused(run("translate", utterance, *ENG_DEU, "--artifact", tmp_path), 2, "cannot load")


def test_server_errors(gateway: Gateway, artifact: Path, utterance: Path) -> None:
    def translated(server: str = gateway.url) -> CompletedProcess[str]:
        return run(*("translate", utterance, *ENG_DEU, "--server", server, "--artifact", artifact))

    refused(translated("ftp://127.0.0.1:8080"), 2, "http://")
    refused(translated("http://127.0.0.1:1"), 3, "python -m cloud_vllm")
    gateway.answer = lambda exchange: exchange.send(409, MISMATCH, PROBLEM)
    refused(translated(), 2, FINGERPRINT, "fedcba9876543210")
    gateway.answer = lambda exchange: exchange.send(503, NOT_READY, PROBLEM)
    refused(translated(), 3, "still loading")
    gateway.answer = lambda exchange: exchange.stream(EVENTS[:3], ended=False)
    broken = translated()
    refused(broken, 3, "was interrupted")
    assert broken.stdout.splitlines()[1].endswith("Guten Morgen, ")
    gateway.answer = lambda exchange: exchange.stream([*EVENTS[:1], ("error", NOT_READY)])
    refused(translated(), 3, "still loading")


def test_an_interrupt_ends_quietly(gateway: Gateway, artifact: Path, utterance: Path) -> None:
    waiting = threading.Event()
    release = threading.Event()

    def answer(exchange: ServedRequest) -> None:
        waiting.set()
        release.wait(60)

    gateway.answer = answer
    command = [sys.executable, "-m", "edge_runtime", "translate", str(utterance), *ENG_DEU]
    with subprocess.Popen(
        [*command, "--server", gateway.url, "--artifact", str(artifact)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A background process may ignore SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert waiting.wait(60)
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
        release.set()
    assert process.returncode == 130
    assert b"Traceback" not in complaints


def test_arguments_are_checked_before_the_audio(artifact: Path, tmp_path: Path) -> None:
    command = ("translate", tmp_path / "gone.wav", *ENG_DEU, "--artifact", artifact)
    refused(run(*command, "--server", "ftp://127.0.0.1:8080"), 2, "http://")
    refused(run(*command, "--server", "http://127.0.0.1:1"), 2, "gone.wav")
