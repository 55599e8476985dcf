"""The corpus by hand: ``python -m training.corpus build`` and ``... samples``."""

import json
from pathlib import Path
from typing import Annotated

import soundfile
import typer

from esrt.command import reported
from esrt.frontend import SAMPLE_RATE
from training.corpus.build import CORPUS, SEED, build, sentences, utterances
from training.corpus.speech import speak
from training.corpus.text import LOCALES

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
SAMPLE_KINDS = ("phrase", "phrase", "places", "phrase", "date")
Out = Annotated[Path, typer.Option(help="Folder to write.")]


@app.command("build")
def build_command(out: Out = CORPUS) -> None:
    """Speak and transform all splits (about five minutes on two cores)."""
    for name in ("test", "validation", "train"):
        build(out, name)


@app.command()
def samples(
    out: Out = Path("models/esrt-nano/samples"),
    count: Annotated[int, typer.Option(help="Clips in each language.")] = 5,
) -> None:
    """Write some test utterances as FLAC, with an index of what is said and its translations."""
    out.mkdir(parents=True, exist_ok=True)
    unused = utterances(sentences("test"), SEED)
    index = []
    for number in range(count * len(LOCALES)):
        clip, code = number // len(LOCALES), list(LOCALES)[number % len(LOCALES)]
        kind = SAMPLE_KINDS[clip % len(SAMPLE_KINDS)]
        sentence, utterance = next(
            pair for pair in unused if pair[0].kind == kind and pair[1].language == code
        )
        unused = [pair for pair in unused if pair[0] is not sentence]
        name = f"{code}-{clip + 1}.flac"
        soundfile.write(out / name, speak(utterance), SAMPLE_RATE, subtype="PCM_16")
        index.append({"file": name, "language": code, "texts": sentence.texts})
    (out / "index.json").write_text(json.dumps(index, ensure_ascii=False, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    with reported():
        app()
