"""Runs every attacker on every representation, and keeps the strongest of each."""

from collections.abc import Collection, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.privacy.attackers import Attack, Split, nearness, statistics, tdnn
from benchmarks.privacy.inversion import Inversion, invert
from benchmarks.privacy.representations import Sequences
from benchmarks.privacy.speakers import SpeakerSet, Speech
from benchmarks.privacy.trials import Estimate, accuracy, enrolled, pairs
from esrt.features import SAMPLE_RATE

Sizes = NDArray[np.int64]

# So many utterances of a speaker has the attacker who enrolls.
ENROLLED = 5


@dataclass(frozen=True)
class Budget:
    """Training steps of TDNN and inverter, TDNNs to train, and processes of one thread each."""

    steps: int
    inverter_steps: int
    seeds: int
    processes: int


@dataclass(frozen=True)
class Strength:
    """How well an attacker does: error rates of verification, accuracy of identification."""

    eer: Estimate
    eer_enrolled: Estimate
    top1: Estimate

    def __str__(self) -> str:
        """One line for who watches."""
        return (
            f"equal error rate {self.eer.value:.1f} %, with {ENROLLED} enrolled"
            f" {self.eer_enrolled.value:.1f} %, identified {self.top1.value:.1f} %"
        )

    def json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {field.name: getattr(self, field.name).json() for field in fields(self)}


class EvaluationSplit:
    """Who trains on which utterances, and which are attacked: the same for every attacker."""

    def __init__(self, speakers: SpeakerSet, speech: Speech) -> None:
        known, early = speech.speaker < speakers.known, speech.sentence < speakers.training
        training = np.flatnonzero(known & early)
        self.split = Split(training, speech.speaker[training], np.flatnonzero(~early))
        self.speech = speech
        self.speaker = speech.speaker[self.split.attacked]
        self.sentence = speech.sentence[self.split.attacked]
        self.unseen = self.speaker >= speakers.known

    @property
    def seconds(self) -> float:
        """How long an utterance is, on average."""
        return float(np.mean([len(one) for one in self.speech.audio])) / SAMPLE_RATE

    def strength(self, attack: Attack) -> Strength:
        """What an attack achieves: verification of unseen speakers, identification of known ones.

        Both on sentences that the attacker was not trained on.
        """
        unseen, known = self.unseen, ~self.unseen
        trials = attack.embedding[unseen], self.speaker[unseen], self.sentence[unseen]
        right = attack.predicted_speaker == self.speaker
        return Strength(
            pairs(*trials).equal_error_rate(),
            enrolled(*trials, ENROLLED).equal_error_rate(),
            accuracy(right[known], self.speaker[known]),
        )


def attack_all(
    representations: Mapping[str, Path],
    networks: Collection[str],
    evaluation: EvaluationSplit,
    budget: Budget,
) -> dict[str, dict[str, Strength]]:
    """What each attacker achieves: by representation, then by attacker.

    LDA on statistics is quick and attacks everything; networks are trained on ``networks``.
    """
    found: dict[str, dict[str, Strength]] = {name: {} for name in representations}
    with _pool(budget.processes) as pool:
        waiting = {}
        for name, path in representations.items():
            waiting[pool.submit(_statistics, path, evaluation.split)] = name
            for seed in range(budget.seeds if name in networks else 0):
                waiting[pool.submit(_tdnn, path, evaluation.split, budget.steps, seed)] = name
        for done in track(as_completed(waiting), description="attacking", total=len(waiting)):
            name = waiting[done]
            for attacker, attack in done.result().items():
                found[name][attacker] = evaluation.strength(attack)
                print(f"{name}, {attacker}: {found[name][attacker]}", flush=True)
    return found


def invert_packets(
    packets: Path, mel: Path, guess: Path, evaluation: EvaluationSplit, budget: Budget
) -> Inversion:
    """Train an inverter on packets; its guess of every utterance's log-mel goes to a file."""
    # In a process of its own, because one that has trained must not be forked for the attackers.
    with _pool(1) as pool:
        job = pool.submit(_invert, packets, mel, guess, evaluation.split, budget.inverter_steps)
        return job.result()


def size_attack(sizes: Sizes, evaluation: EvaluationSplit, *, text_known: bool) -> Strength:
    """What duration, tokens and bytes alone give away: no feature is looked at.

    Args:
        sizes: (utterances, 3), these three.
        evaluation: who is attacked.
        text_known: the attacker knows what was said and how long that takes on average, so that
            what is left is how fast the speaker speaks.
    """
    split, sentence, logs = evaluation.split, evaluation.speech.sentence, np.log(sizes)
    if text_known:
        for number in np.unique(sentence):
            logs[sentence == number] -= logs[sentence == number].mean(axis=0)
    return evaluation.strength(nearness(logs[split.training], split.speaker, logs[split.attacked]))


def strongest(attackers: Mapping[str, Strength]) -> dict[str, Any]:
    """The best figure of any attacker, as JSON: value and 95 % interval in percent, and whose."""
    choices = {
        "eer": min(attackers, key=lambda name: attackers[name].eer.value),
        "eer_enrolled": min(attackers, key=lambda name: attackers[name].eer_enrolled.value),
        "top1": max(attackers, key=lambda name: attackers[name].top1.value),
    }
    return {
        key: getattr(attackers[name], key).json() | {"attacker": name}
        for key, name in choices.items()
    }


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, initializer=torch.set_num_threads, initargs=(1,))


def _statistics(path: Path, split: Split) -> dict[str, Attack]:
    return statistics(Sequences.load(path), split)


def _tdnn(path: Path, split: Split, steps: int, seed: int) -> dict[str, Attack]:
    return tdnn(Sequences.load(path), split, steps, seed)


def _invert(packets: Path, mel: Path, guess: Path, split: Split, steps: int) -> Inversion:
    sent, heard = Sequences.load(packets), Sequences.load(mel)
    guessed, inversion = invert(sent, heard, split.training, split.attacked, steps, seed=0)
    guessed.save(guess)
    return inversion
