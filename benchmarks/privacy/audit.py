"""Attacks by every attacker on every representation, and the strongest of them."""

from collections.abc import Collection, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from benchmarks.privacy.attackers import (
    Attack,
    AttackSplit,
    attack_statistics,
    nearest_centroid,
    train_tdnn,
)
from benchmarks.privacy.inversion import Inversion, invert
from benchmarks.privacy.pretrained import attack_pretrained
from benchmarks.privacy.representations import Sequences
from benchmarks.privacy.speakers import SpeakerSet, Speech
from benchmarks.privacy.trials import Estimate, accuracy, enrolled, pairs
from esrt.features import SAMPLE_RATE

Sizes = NDArray[np.int64]

# Utterances of each speaker that an enrolling attacker has.
ENROLLED = 5


@dataclass(frozen=True)
class Budget:
    """Training steps of a TDNN and of the inverter, TDNNs to train, and parallel processes."""

    steps: int
    inverter_steps: int
    seeds: int
    processes: int


@dataclass(frozen=True)
class Strength:
    """Success of an attacker: error rates of verification, accuracy of identification."""

    eer: Estimate
    eer_enrolled: Estimate
    top1: Estimate

    def __str__(self) -> str:
        """One line of text."""
        return (
            f"equal error rate {self.eer.value:.1f} %, with {ENROLLED} enrolled"
            f" {self.eer_enrolled.value:.1f} %, identified {self.top1.value:.1f} %"
        )

    def json(self) -> dict[str, Any]:
        """The estimates as JSON."""
        return {field.name: getattr(self, field.name).json() for field in fields(self)}


class EvaluationSplit:
    """Training and attacked utterances, the same for every attacker."""

    def __init__(self, speakers: SpeakerSet, speech: Speech) -> None:
        known, early = speech.speaker < speakers.known, speech.sentence < speakers.training
        training = np.flatnonzero(known & early)
        self.split = AttackSplit(training, speech.speaker[training], np.flatnonzero(~early))
        self.speech = speech
        self.speaker = speech.speaker[self.split.attacked]
        self.sentence = speech.sentence[self.split.attacked]
        self.unseen = self.speaker >= speakers.known

    @property
    def seconds(self) -> float:
        """Mean duration of an utterance."""
        return float(np.mean([len(audio) for audio in self.speech.audio])) / SAMPLE_RATE

    def strength(self, attack: Attack) -> Strength:
        """Measure an attack: verification of unseen speakers, identification of known speakers.

        Both use sentences that the attacker was not trained on.
        """
        unseen, known = self.unseen, ~self.unseen
        trials = attack.embedding[unseen], self.speaker[unseen], self.sentence[unseen]
        correct = attack.predicted_speaker == self.speaker
        return Strength(
            pairs(*trials).equal_error_rate(),
            enrolled(*trials, ENROLLED).equal_error_rate(),
            accuracy(correct[known], self.speaker[known]),
        )


def attack_all(
    representations: Mapping[str, Path],
    networks: Collection[str],
    log_mels: Collection[str],
    evaluation: EvaluationSplit,
    budget: Budget,
) -> dict[str, dict[str, Strength]]:
    """Run the attackers; return their strengths by representation and attacker.

    LDA on statistics is quick and attacks all representations. Networks are trained on those in
    ``networks`` only. The pretrained encoder attacks those in ``log_mels``.
    """
    strengths: dict[str, dict[str, Strength]] = {name: {} for name in representations}
    with _pool(budget.processes) as pool:
        jobs = {}
        for name, path in representations.items():
            jobs[pool.submit(_statistics, path, evaluation.split)] = name
            if name in log_mels:
                jobs[pool.submit(_pretrained, path, evaluation.split)] = name
            for seed in range(budget.seeds if name in networks else 0):
                jobs[pool.submit(_tdnn, path, evaluation.split, budget.steps, seed)] = name
        for done in track(as_completed(jobs), description="attacking", total=len(jobs)):
            name = jobs[done]
            for attacker, attack in done.result().items():
                strengths[name][attacker] = evaluation.strength(attack)
                print(f"{name}, {attacker}: {strengths[name][attacker]}", flush=True)
    return strengths


def invert_packets(
    packets: Path, mel: Path, out: Path, evaluation: EvaluationSplit, budget: Budget
) -> Inversion:
    """Train an inverter on packets, and write its estimates of all log-mels to a file."""
    # In a separate process, because a process that has trained must not be forked afterwards.
    with _pool(1) as pool:
        job = pool.submit(_invert, packets, mel, out, evaluation.split, budget.inverter_steps)
        return job.result()


def size_attack(sizes: Sizes, evaluation: EvaluationSplit, *, text_known: bool) -> Strength:
    """Attack by duration, tokens and bytes of packets alone, without their features.

    Args:
        sizes: duration, tokens and bytes, (utterances, 3).
        evaluation: training and attacked utterances.
        text_known: the attacker knows each sentence and its mean sizes, so that only the speed of
            the speaker is left.
    """
    split, sentence, logs = evaluation.split, evaluation.speech.sentence, np.log(sizes)
    if text_known:
        for number in np.unique(sentence):
            logs[sentence == number] -= logs[sentence == number].mean(axis=0)
    return evaluation.strength(
        nearest_centroid(logs[split.training], split.speaker, logs[split.attacked])
    )


def strongest(attackers: Mapping[str, Strength]) -> dict[str, Any]:
    """Best figures of all attackers as JSON: value and 95 % interval in percent, and attacker."""
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


def _statistics(path: Path, split: AttackSplit) -> dict[str, Attack]:
    return attack_statistics(Sequences.load(path), split)


def _pretrained(path: Path, split: AttackSplit) -> dict[str, Attack]:
    return attack_pretrained(Sequences.load(path), split)


def _tdnn(path: Path, split: AttackSplit, steps: int, seed: int) -> dict[str, Attack]:
    return train_tdnn(Sequences.load(path), split, steps, seed)


def _invert(packets: Path, mel: Path, out: Path, split: AttackSplit, steps: int) -> Inversion:
    features, log_mels = Sequences.load(packets), Sequences.load(mel)
    estimates, inversion = invert(features, log_mels, split.training, split.attacked, steps, seed=0)
    estimates.save(out)
    return inversion
