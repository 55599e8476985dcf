"""Evaluation: translation of a split, and the command that writes the scores."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image
from transformers import AutoTokenizer, Gemma3ForCausalLM

from esrt.checkpoint import Checkpoint
from esrt.model import generate_greedy
from tests.tiny_checkpoint import TINY, features, tiny_checkpoint
from tests.training.helpers import first_examples, save_split
from training.corpus import build
from training.corpus.build import Corpus
from training.corpus.text import Sentence
from training.scored_generation import generate_scored
from training.scoring import Prediction
from training.translation import CONDITIONS, translate

UTTERANCES = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bilingual(corpus: Corpus) -> Corpus:
    """Select utterances in English and German, the languages of the tiny checkpoint."""
    chosen = [
        replace(example, texts={code: example.texts[code] for code in TINY.languages})
        for example in corpus.examples
        if example.language in TINY.languages
    ]
    return replace(corpus, examples=chosen[:UTTERANCES])


def translated(tiny: Checkpoint, corpus: Corpus, **options: Any) -> list[Prediction]:
    decoder = Gemma3ForCausalLM.from_pretrained(tiny.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny.decoder)
    return translate(tiny.edge_model(), decoder, tokenizer, corpus, **options)


def test_every_utterance_is_translated_into_every_other_language(
    tiny: Checkpoint, corpus: Corpus
) -> None:
    """The size of batches changes nothing."""
    some = first_examples(corpus, 2)
    rows = translated(tiny, some, batch=5)
    assert len(rows) == 2 * 11
    for example in some.examples:
        mine = [one for one in rows if one.source == example.language]
        assert {one.target for one in mine} == set(example.texts) - {example.language}
        for one in mine:
            assert (one.reference_transcript, one.variant) == (
                example.texts[one.source],
                example.variant,
            )
            assert one.reference_translation == example.texts[one.target]
    assert translated(tiny, some, batch=100) == rows


def test_target_languages_rotate(tiny: Checkpoint, corpus: Corpus) -> None:
    targets = [one.target for one in translated(tiny, first_examples(corpus, 5), directions=1)]
    assert len(targets) == 5
    assert len(set(targets)) > 2


@pytest.fixture
def run_command(
    bilingual: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    splits: dict[str, list[Sentence]],
) -> Any:
    """Run the module as a program in this process."""
    save_split(bilingual, tmp_path / "corpus", "test")
    monkeypatch.setattr(build, "sentences", lambda name: splits[name])

    def run(*arguments: str | Path) -> None:
        words = ["evaluate", "--corpus", tmp_path / "corpus", *arguments]
        monkeypatch.setattr(sys, "argv", [str(word) for word in words])
        runpy.run_module("training.evaluate", run_name="__main__")

    return run


def test_the_command_writes_scores_and_a_plot(
    run_command: Any, tiny: Checkpoint, tmp_path: Path
) -> None:
    out, picture = tmp_path / "figures" / "test.json", tmp_path / "figures" / "test.png"
    with pytest.raises(SystemExit) as ended:
        run_command("--checkpoint", tiny.folder, "--json", out, "--plot", picture)
    assert not ended.value.code
    found = json.loads(out.read_text("utf-8"))
    assert found["settings"] == {
        "model": "esrt-tiny",
        "fingerprint": tiny.fingerprint,
        "split": "test",
        "utterances": UTTERANCES,
    }
    assert found["overall"]["n"] == UTTERANCES
    assert [(one["src"], one["tgt"]) for one in found["rows"]] == [("deu", "eng"), ("eng", "deu")]
    assert [one["src"] for one in found["sources"]] == ["deu", "eng"]
    assert all("wer" in one for one in found["sources"])
    assert found["conditions"].keys() == CONDITIONS.keys()
    assert all(one["n"] == UTTERANCES for one in found["conditions"].values())
    assert found["languages"] == ["eng", "deu"]
    assert {bar["name"]: bar["holds"] for bar in found["bars"]} == {
        "exact_all": False,
        "chrf_all": False,
        "exact_worst_direction": False,
        "checkpoint_mb": True,
    }
    assert {"machine", "versions", "commit", "beyond_numbers", "consistency"} <= found.keys()
    assert min(image.imread(picture).shape[:2]) > 100


def test_a_missing_checkpoint_is_one_line(
    run_command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command("--checkpoint", tmp_path)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No checkpoint in")
    assert error.count("\n") == 1


def test_contaminated_sentences_come_from_a_file(
    run_command: Any, tiny: Checkpoint, bilingual: Corpus, tmp_path: Path
) -> None:
    out, contaminated = tmp_path / "test.json", tmp_path / "contaminated.txt"
    contaminated.write_text(bilingual.examples[0].texts["eng"] + "\n", "utf-8")
    with pytest.raises(SystemExit):
        run_command("--checkpoint", tiny.folder, "--json", out, "--contaminated", contaminated)
    found = json.loads(out.read_text("utf-8"))
    assert 0 < found["uncontaminated"]["n"] < found["overall"]["n"]


def test_a_contaminated_sentence_outside_the_split_is_an_error(
    run_command: Any,
    tiny: Checkpoint,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    contaminated = tmp_path / "contaminated.txt"
    contaminated.write_text("Nobody said this.\n", "utf-8")
    with pytest.raises(SystemExit) as ended:
        run_command("--checkpoint", tiny.folder, "--contaminated", contaminated)
    assert ended.value.code == 1
    assert "'Nobody said this.', which is not in the split" in capsys.readouterr().err


def test_scored_answers_are_those_of_the_reference(tiny: Checkpoint) -> None:
    """Scores follow from the log-probabilities of a pass over the finished answer."""
    decoder = Gemma3ForCausalLM.from_pretrained(tiny.decoder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny.decoder)
    # Features that the decoder was trained on: the text of other answers has several tokenizations.
    spoken = [torch.from_numpy(features(sentence, 6)) for sentence in (0, 3)]
    with torch.inference_mode():
        embeddings = tiny.projector()(torch.stack(spoken))
    tokens, prompts = torch.tensor([6, 4]), ["<|eng|><|deu|>", "<|deu|><|eng|>"]
    answers = generate_scored(decoder, tokenizer, embeddings, tokens, prompts, 8)
    texts = generate_greedy(decoder, tokenizer, embeddings, tokens, prompts, 8)
    assert [answer.text for answer in answers] == texts
    for row, answer in enumerate(answers):
        prompt = tokenizer(prompts[row], add_special_tokens=False).input_ids
        ids = tokenizer(answer.text, add_special_tokens=False).input_ids
        embedded = decoder.get_input_embeddings()(torch.tensor([prompt + ids]))
        sequence = torch.cat([embeddings[row : row + 1, : int(tokens[row])], embedded], 1)
        with torch.inference_mode():
            logits = decoder(inputs_embeds=sequence).logits[0].log_softmax(-1)
        first = int(tokens[row]) + len(prompt) - 1
        best = logits[first : first + len(ids)].topk(2).values
        assert answer.scores.minimum <= float(best[:, 0].min()) + 1e-3
        assert answer.scores.margin <= float((best[:, 0] - best[:, 1]).min()) + 1e-3
        assert answer.scores.minimum <= answer.scores.mean <= 0
