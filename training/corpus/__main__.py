"""Corpus commands: ``python -m training.corpus build``, ``clips`` or ``samples``."""

import json
from pathlib import Path
from typing import Annotated

import soundfile
import typer

from esrt import bundled
from esrt.cli import application, run
from esrt.features import SAMPLE_RATE
from training.corpus.build import CORPUS, SPLITS, build, utterances
from training.corpus.clips import CLIPS, write_clips, write_samples
from training.corpus.corpus_settings import read_corpus_settings
from training.corpus.domain import NANO
from training.corpus.speech import speak

app = application("Synthesize the corpus, or test phrases.")
Out = Annotated[Path, typer.Option(metavar="FOLDER", help="Output folder.")]


@app.command("build")
def build_command(out: Out = CORPUS) -> None:
    """Synthesize all splits (under ten minutes on two cores)."""
    for name in SPLITS:
        build(out, name)


@app.command("clips")
def clips_command(
    settings: Annotated[
        Path, typer.Argument(metavar="SETTINGS", help="Settings of the corpus, a YAML file.")
    ],
    out: Out = CLIPS,
) -> None:
    """Speak a corpus of many voices; a killed run goes on where it was."""
    write_clips(read_corpus_settings(settings).speech, out)


@app.command()
def samples(
    out: Out = bundled.SAMPLES,
    count: Annotated[int, typer.Option(metavar="COUNT", help="Clips in each language.")] = 2,
    clips: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Take test clips of this corpus of many voices."),
    ] = None,
) -> None:
    """Write test phrases as FLAC, with an index of their texts."""
    if clips:
        write_samples(clips, out, count)
        return
    out.mkdir(parents=True, exist_ok=True)
    phrases = (pair for pair in utterances("test") if pair[0].kind == "phrase")
    index = []
    for clip in range(1, count + 1):
        for number, code in enumerate(NANO.languages):
            sentence, spoken = next(phrases)
            name = f"{code}-{clip}.flac"
            soundfile.write(out / name, speak(spoken[number]), SAMPLE_RATE, subtype="PCM_16")
            index.append({"file": name, "language": code, "texts": sentence.texts})
    (out / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    run(app)
