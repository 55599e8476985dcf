"""Trains a model by a recipe: ``python -m training.train RECIPE --out DIR``.

A curriculum under a budget: each stage mixes its tasks (`training.recipe.Task`). Two auxiliary CTC
losses give the ear its own teachers: characters on the encoder's states, the decoder's tokens on
the Q-Former's output. The run can be killed at any moment and started again with the same command;
it loses at most the minutes since its last save. On several devices: ``accelerate launch -m
training.train RECIPE --out DIR``.
"""

import json
import math
import os
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from esrt.checkpoint import save_checkpoint
from esrt.cli import exit_on_error
from training.corpus.build import CORPUS, Corpus, load
from training.corpus.pairs import load_pairs
from training.data import Batch, Stream
from training.evaluate import score, translate
from training.plots import curves
from training.recipe import Recipe, Stage, read_recipe
from training.training_model import TrainingModel

STATE_FILE, LOG_FILE = "state.pt", "log.jsonl"
SAVE_EVERY_SECONDS = 300
_SMOOTHING = 0.98


class Run:
    """A training run whose whole state lives in one file."""

    def __init__(self, recipe: Recipe, corpus: Corpus, folder: Path) -> None:
        self.recipe, self.corpus, self.folder = recipe, corpus, folder
        self.accelerator = Accelerator(
            mixed_precision="bf16",
            cpu=not torch.cuda.is_available(),
            # A batch of text alone does not touch the edge.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        torch.manual_seed(recipe.seed)
        self.learner = TrainingModel(recipe, corpus)
        self.optimizer = torch.optim.AdamW(
            [weight for weight in self.learner.parameters() if weight.requires_grad],
            lr=recipe.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        if self.state_path.exists():
            state = torch.load(self.state_path, weights_only=True, map_location="cpu")
            self.learner.load_state_dict(state["learner"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
        self.model, self.optimizer = self.accelerator.prepare(self.learner, self.optimizer)

    @property
    def state_path(self) -> Path:
        """Where the run's state is saved."""
        return self.folder / STATE_FILE

    @property
    def done(self) -> float:
        """The share of the budget that is spent."""
        if self.recipe.minutes:
            return self.seconds / 60 / self.recipe.minutes
        return self.step / (self.recipe.steps or 1)

    def save(self) -> None:
        """Save the state, whole or not at all."""
        if not self.accelerator.is_main_process:
            return
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
            self.learner.tokenizer,
            getattr(torch, self.recipe.stored_as),
        )

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimizer step; returns the losses."""
        recipe = self.recipe
        warmup = min(1.0, (self.step + 1) / recipe.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.done)))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warmup * max(cosine, 0.01)
        losses = self.model(batch.to(self.accelerator.device))
        self.optimizer.zero_grad()
        self.accelerator.backward(losses["total"])
        self.accelerator.clip_grad_norm_(self.learner.parameters(), recipe.clip)
        self.optimizer.step()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items() if name != "total"}

    def validate(self, corpus: Corpus) -> dict[str, float]:
        """Exact transcripts and translations of a split, in percent."""
        learner = self.learner.eval()
        rows = translate(learner.edge, learner.decoder, learner.tokenizer, corpus, directions=1)
        self.learner.train()
        found = score(rows)
        return {name: found[name] for name in ("transcript_exact", "exact")}

    def run(self, validation: Corpus) -> None:
        """Train until the budget is spent; write the checkpoint and draw the curves."""
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        with Progress(*columns, disable=not self.accelerator.is_main_process) as progress:
            bar = progress.add_task("", total=1.0)
            for stage in self.recipe.stages:
                if self.done < stage.until:
                    self._run_stage(stage, validation, progress, bar)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.export()
            curves(self.folder / LOG_FILE, self.folder / "training.png")

    def _run_stage(self, stage: Stage, validation: Corpus, progress: Progress, bar: TaskID) -> None:
        seed = hash((self.recipe.seed, self.step, self.accelerator.process_index)) % 2**32
        stream = Stream(self.corpus, self.recipe, stage, self.learner.collator, seed)
        loader = iter(DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=8))
        tasks = " ".join(f"{task} {weight:g}" for task, weight in stage.tasks.items())
        mean: dict[str, float] = {}
        saved, began, first = self.seconds, self.seconds, self.step
        while self.done < stage.until:
            started = time.monotonic()
            losses = self.train_step(next(loader))
            self._count(time.monotonic() - started)
            for name, loss in losses.items():
                mean[name] = _SMOOTHING * mean.get(name, loss) + (1 - _SMOOTHING) * loss
            items = (self.step - first) * self.recipe.batch * self.accelerator.num_processes
            rate = items / (self.seconds - began)
            text = " ".join(f"{name} {value:.3f}" for name, value in mean.items())
            progress.update(
                bar,
                completed=self.done,
                description=f"{tasks}: step {self.step} {text} {rate:.0f}/s",
            )
            if self.seconds - saved > SAVE_EVERY_SECONDS or self.done >= 1:
                saved = self.seconds
                self.save()
                if self.accelerator.is_main_process:  # the others wait at their next step
                    row = {"step": self.step, "seconds": round(self.seconds), "tasks": tasks}
                    self._log({**row, "rate": round(rate, 1), **mean, **self.validate(validation)})

    def _count(self, seconds: float) -> None:
        """Add to the time that is spent, by the main process's clock."""
        spent = torch.tensor(seconds, device=self.accelerator.device)
        self.seconds += float(broadcast(spent)) if self.accelerator.num_processes > 1 else seconds

    def _log(self, row: dict[str, object]) -> None:
        with (self.folder / LOG_FILE).open("a") as log:
            log.write(json.dumps(row) + "\n")


def main(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as training/recipes/nano.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; resumed if it exists.")],
    corpus: Annotated[Path, typer.Option(help="Folder of the corpus.")] = CORPUS,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = os.cpu_count() or 1,
) -> None:
    """Train by a recipe, and write OUT/checkpoint."""
    torch.set_num_threads(threads)
    settings = read_recipe(recipe)
    out.mkdir(parents=True, exist_ok=True)
    trained = load_pairs(corpus) if settings.speaker_invariance else load(corpus, "train")
    Run(settings, trained, out).run(load(corpus, "validation"))


if __name__ == "__main__":
    with exit_on_error():
        typer.run(main)
