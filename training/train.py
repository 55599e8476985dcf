"""Trains esrt-nano: ``python -m training.train --out DIR --minutes N``.

A curriculum under a budget of time: recognition alone first, then recognition and translation in
one target. Two auxiliary CTC losses give the ear its own teachers: UTF-8 bytes on the encoder's
states, the decoder's tokens on the Q-Former's output. The run can be killed at any moment and
started again with the same command; it loses at most the minutes since its last save.
"""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, PreTrainedTokenizerFast

from esrt.checkpoint import save_checkpoint
from esrt.command import reported
from esrt.config import ModelConfig, named_config
from esrt.model import EdgeModel, join
from training.corpus.build import CORPUS, Corpus, load
from training.data import IGNORE, Batch, batches, make_batch
from training.evaluate import score, translate
from training.tokenizer import train_tokenizer

STATE_FILE = "state.pt"
SAVE_EVERY_SECONDS = 300


@dataclass(frozen=True)
class Recipe:
    """The settings of a run. ``recognition`` is the share of the time spent on stage 1."""

    minutes: float
    recognition: float = 0.3
    batch: int = 16
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    weight_decay: float = 0.01
    clip: float = 1.0
    letter_ctc: float = 0.3
    piece_ctc: float = 0.3
    vocabulary: int = 1200
    seed: int = 17


class Learner(nn.Module):
    """The whole model with its auxiliary heads, which are not kept."""

    def __init__(self, config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.edge = EdgeModel(config)
        self.decoder = Gemma3ForCausalLM(decoder_config(config, tokenizer))
        self.letters = nn.Linear(config.encoder.width, 257)
        self.pieces = nn.Linear(config.q_former.width, len(tokenizer))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The losses of a batch, each a mean in nats."""
        states = self.edge.encoder(batch.mel, batch.frames)
        features = self.edge.q_former(states, batch.frames // 2)
        tokens = batch.frames // self.edge.config.frame_multiple
        text = self.decoder.get_input_embeddings()(batch.text)
        sequence, mask = join(self.edge.mlp(features), tokens, text)
        hidden = self.decoder.model(inputs_embeds=sequence, attention_mask=mask.long())
        written = hidden.last_hidden_state[:, features.shape[1] - 1 : -1]
        counted = batch.labels != IGNORE
        logits = self.decoder.lm_head(written[counted]).float()
        return {
            "text": nn.functional.cross_entropy(logits, batch.labels[counted]),
            "letters": _ctc(
                self.letters(states), batch.letters, batch.frames // 2, batch.letter_counts
            ),
            "pieces": _ctc(self.pieces(features), batch.pieces, tokens, batch.piece_counts),
        }


def _ctc(logits: Tensor, targets: Tensor, lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """CTC per target symbol; rows too short for their target count as zero."""
    return nn.functional.ctc_loss(
        logits.float().log_softmax(-1).transpose(0, 1),
        targets,
        lengths,
        target_lengths,
        zero_infinity=True,
    )


def decoder_config(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> Gemma3TextConfig:
    """A Gemma 3 of four layers over the tokenizer's vocabulary."""
    return Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.decoder_width,
        intermediate_size=3 * config.decoder_width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=512,
        sliding_window=512,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        attn_implementation="sdpa",
    )


def _endless(corpus: Corpus, size: int, random: Random) -> Iterator[tuple[list[Any], list[str]]]:
    while True:
        yield from batches(corpus, size, random)


class Run:
    """A training run whose whole state lives in one file."""

    def __init__(self, recipe: Recipe, corpus: Corpus, folder: Path) -> None:
        self.recipe, self.corpus, self.folder = recipe, corpus, folder
        torch.manual_seed(recipe.seed)
        texts = [text for example in corpus.examples for text in example.texts.values()]
        self.tokenizer = train_tokenizer(texts, recipe.vocabulary)
        self.learner = Learner(named_config("esrt-nano"), self.tokenizer)
        for model in (
            self.learner.edge.encoder,
            self.learner.edge.q_former.qformer,
            self.learner.decoder,
        ):
            model.set_attn_implementation("eager")  # SDPA's backward is slow on a CPU
        self.optimizer = torch.optim.AdamW(
            self.learner.parameters(),
            lr=recipe.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        if self.state_path.exists():
            state = torch.load(self.state_path, weights_only=True)
            self.learner.load_state_dict(state["learner"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]

    @property
    def state_path(self) -> Path:
        """Where the run's state is saved."""
        return self.folder / STATE_FILE

    @property
    def done(self) -> float:
        """The share of the budget that is spent."""
        return self.seconds / 60 / self.recipe.minutes

    def save(self) -> None:
        """Save the state, whole or not at all."""
        temporary = self.state_path.with_suffix(".tmp")
        state = {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, temporary)
        temporary.rename(self.state_path)

    def export(self) -> None:
        """Write the checkpoint."""
        save_checkpoint(
            self.folder / "checkpoint",
            self.learner.edge,
            self.learner.decoder,
            self.tokenizer,
            torch.float16,
        )

    def train_step(self, examples: list[Any], targets: list[str]) -> dict[str, float]:
        """One optimizer step; returns the losses."""
        recipe = self.recipe
        translating = self.done >= recipe.recognition
        batch = make_batch(self.corpus, self.tokenizer, examples, targets, translating)
        warmup = min(1.0, (self.step + 1) / recipe.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.done)))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warmup * max(cosine, 0.01)
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.learner(batch)
        total = (
            losses["text"]
            + recipe.letter_ctc * losses["letters"]
            + recipe.piece_ctc * losses["pieces"]
        )
        self.optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.learner.parameters(), recipe.clip)
        self.optimizer.step()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}

    def validate(self, corpus: Corpus) -> float:
        """Exact translations on a split, in percent."""
        learner = self.learner.eval()
        rows = translate(learner.edge, learner.decoder, self.tokenizer, corpus, directions=1)
        self.learner.train()
        exact: float = score(rows)["exact"]
        return exact

    def run(self, validation: Corpus) -> None:
        """Train until the budget is spent."""
        stream = _endless(self.corpus, self.recipe.batch, Random(self.recipe.seed + self.step))
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        saved, mean = self.seconds, {"text": 0.0, "letters": 0.0, "pieces": 0.0}
        with Progress(*columns) as progress:
            bar = progress.add_task(
                "", total=60 * self.recipe.minutes, completed=round(self.seconds)
            )
            while self.done < 1:
                started = time.monotonic()
                losses = self.train_step(*next(stream))
                self.seconds += time.monotonic() - started
                mean = {k: 0.98 * mean[k] + 0.02 * losses[k] for k in mean}
                text = " ".join(f"{name} {value:.3f}" for name, value in mean.items())
                progress.update(bar, completed=self.seconds, description=f"{self.step} {text}")
                if self.seconds - saved > SAVE_EVERY_SECONDS or self.done >= 1:
                    saved = self.seconds
                    self.save()
                    row = {"step": self.step, "seconds": round(self.seconds), **mean}
                    if self.done >= self.recipe.recognition:
                        row["validation_exact"] = self.validate(validation)
                    with (self.folder / "log.jsonl").open("a") as log:
                        log.write(json.dumps(row) + "\n")
        self.export()


def main(
    out: Annotated[Path, typer.Option(help="Folder of the run; resumed if it exists.")],
    minutes: Annotated[float, typer.Option(help="Budget of training time.")] = 75,
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus.")] = CORPUS,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Train esrt-nano on the synthetic corpus and write OUT/checkpoint."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(Recipe(minutes), load(corpus, "train"), out)
    run.run(load(corpus, "validation"))


if __name__ == "__main__":
    with reported():
        typer.run(main)
