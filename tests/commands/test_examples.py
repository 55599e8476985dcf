"""Examples beyond the commands of their README: a long talk, and a gateway with API keys."""

import shlex
from pathlib import Path

import numpy as np
import soundfile

from edge_runtime import Audio, read_audio
from esrt.bundled import SAMPLES
from examples.translate_talk import segments
from tests.commands.conftest import Workspace

RATE = 16_000
CLIPS = ("eng-1", "eng-2")


def write_talk(file: Path, repetitions: int) -> None:
    """The English clips, again and again, with a second of silence after each."""
    pause = np.zeros(RATE, dtype=np.float32)
    clips = [read_audio(SAMPLES / f"{clip}.flac").samples for clip in CLIPS]
    pieces = [part for clip in clips * repetitions for part in (clip, pause)]
    soundfile.write(file, np.concatenate(pieces), RATE)


def test_a_talk_is_cut_at_its_pauses_and_translated_with_a_key(
    workspace: Workspace, tmp_path: Path
) -> None:
    talk = tmp_path / "talk.wav"
    write_talk(talk, 3)
    assert soundfile.info(talk).duration > 12, "longer than one packet"
    server = ".venv/bin/python -m cloud_vllm"
    created = workspace.run(f"{server} keys create --key-file keys.json --name talk")
    gateway = workspace.serve(f"{server} --key-file keys.json")
    workspace.ensure_artifact()
    command = f".venv/bin/python -m examples.translate_talk {shlex.quote(str(talk))}"
    output = workspace.run(command, gateway, ESRT_API_KEY=created.split()[-1])
    transcripts = output.splitlines()[::2]
    assert [line.partition(":")[0] for line in transcripts] == list("012345")
    # The cut moves the speech within its frames, so the longer clip may come out differently.
    for first, second in zip(transcripts[::2], transcripts[1::2], strict=True):
        assert "14 minutes" in first
        assert second.endswith(": Take the tablets for 10 days.")


def test_speech_without_pauses_is_divided_evenly() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, 25 * RATE).astype(np.float32)
    pieces = [piece.seconds for piece in segments(Audio(noise), 12.0)]
    assert len(pieces) == 3
    assert max(pieces) <= 12.0
    assert max(pieces) - min(pieces) < 0.001
    assert abs(sum(pieces) - 25) < 0.001


def test_segments_keep_a_margin_and_leave_silence_out() -> None:
    silence = np.zeros(RATE, dtype=np.float32)
    speech = np.full(RATE, 0.1, dtype=np.float32)
    talk = Audio(np.concatenate([silence, speech, silence, speech]))
    first, second = segments(talk, 12.0)
    assert 1.0 < first.seconds <= 1.2 + 0.04
    assert 1.0 < second.seconds <= 1.1 + 0.02
