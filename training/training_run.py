"""Training run by a recipe, resumed from its state file."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import broadcast
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch.utils.data import DataLoader

from esrt.checkpoint import save_checkpoint
from esrt.files import replace_file
from training.corpus.build import NON_SPEECH, OPEN, Corpus
from training.ctc_heads import save_heads
from training.data import Batch, Stream
from training.plots import curves
from training.recipe import Recipe, Stage
from training.scoring import score
from training.state_corpus import StateCorpus
from training.training_model import TrainingModel
from training.translation import translate

STATE_FILE, LOG_FILE = "state.pt", "log.jsonl"
SAVE_EVERY_SECONDS = 300
_SMOOTHING = 0.98


class TrainingRun:
    """Training run, resumed from its state file if there is one."""

    def __init__(self, recipe: Recipe, corpus: Corpus | StateCorpus, folder: Path) -> None:
        self.recipe, self.corpus, self.folder = recipe, corpus, folder
        self.accelerator = Accelerator(
            mixed_precision="no" if recipe.precision == "fp32" else "bf16",
            cpu=not torch.cuda.is_available(),
            # Text-only batches do not use the edge model.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        torch.manual_seed(recipe.seed)
        self.model = TrainingModel(recipe, corpus)
        self.optimizer = torch.optim.AdamW(
            [weight for weight in self.model.parameters() if weight.requires_grad],
            lr=recipe.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.step, self.seconds = 0, 0.0
        if self.state_path.exists():
            state = torch.load(self.state_path, weights_only=True, map_location="cpu")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds = state["step"], state["seconds"]
        self._saved = self.seconds
        self.distributed_model, self.optimizer = self.accelerator.prepare(
            self.model, self.optimizer
        )

    @property
    def state_path(self) -> Path:
        """Path of the state file."""
        return self.folder / STATE_FILE

    @property
    def progress(self) -> float:
        """Share of the budget that is spent."""
        if self.recipe.minutes:
            return self.seconds / 60 / self.recipe.minutes
        return self.step / (self.recipe.steps or 1)

    def save(self) -> None:
        """Save the state in the main process, whole or not at all."""
        if not self.accelerator.is_main_process:
            return
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        with replace_file(self.state_path) as partial:
            torch.save(state, partial)

    def write_checkpoint(self) -> None:
        """Write the checkpoint."""
        save_checkpoint(
            self.folder / "checkpoint",
            self.model.whole_edge(),
            self.model.decoder,
            self.model.tokenizer,
            getattr(torch, self.recipe.stored_as),
        )
        model = self.model
        save_heads(self.folder / "checkpoint", model.letters, model.pieces, model.alphabet)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Run one optimizer step; return the losses."""
        recipe = self.recipe
        warmup = min(1.0, (self.step + 1) / recipe.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * warmup * max(cosine, 0.01)
        losses = self.distributed_model(batch.to(self.accelerator.device))
        self.optimizer.zero_grad()
        self.accelerator.backward(losses["total"])
        self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items() if name != "total"}

    def validate(self, corpus: Corpus | StateCorpus) -> dict[str, float]:
        """Score exact match of transcripts and translations on a split, in percent."""
        model = self.model.eval()
        translated = [e for e in corpus.examples if e.kind not in (OPEN, NON_SPEECH)]
        corpus = replace(corpus, examples=translated)
        scores = score(translate(model.edge, model.decoder, model.tokenizer, corpus, directions=1))
        model.train()
        return {name: scores[name] for name in ("transcript_exact", "exact")}

    def run(self, validation: Corpus | StateCorpus) -> None:
        """Train until the budget is spent, then write the checkpoint and plot the curves."""
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        with Progress(*columns, disable=not self.accelerator.is_main_process) as progress:
            bar = progress.add_task("", total=1.0)
            for stage in self.recipe.stages:
                if self.progress < stage.until:
                    self._run_stage(stage, validation, progress, bar)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.write_checkpoint()
            curves(self.folder / LOG_FILE, self.folder / "training.png")

    def _run_stage(
        self, stage: Stage, validation: Corpus | StateCorpus, progress: Progress, bar: TaskID
    ) -> None:
        seed = hash((self.recipe.seed, self.step, self.accelerator.process_index)) % 2**32
        stream = Stream(self.corpus, self.recipe, stage, self.model.collator, seed)
        loader = iter(DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=8))
        tasks = " ".join(f"{task} {weight:g}" for task, weight in stage.tasks.items())
        mean: dict[str, float] = {}
        began, first = self.seconds, self.step
        while self.progress < stage.until:
            started = time.monotonic()
            losses = self.train_step(next(loader))
            self._add_time(time.monotonic() - started)
            for name, loss in losses.items():
                mean[name] = _SMOOTHING * mean.get(name, loss) + (1 - _SMOOTHING) * loss
            items = (self.step - first) * self.recipe.batch * self.accelerator.num_processes
            rate = items / (self.seconds - began)
            text = " ".join(f"{name} {value:.3f}" for name, value in mean.items())
            progress.update(
                bar,
                completed=self.progress,
                description=f"{tasks}: step {self.step} {text} {rate:.0f}/s",
            )
            if self.seconds - self._saved > SAVE_EVERY_SECONDS or self.progress >= 1:
                self._saved = self.seconds
                self.save()
                if self.accelerator.is_main_process:  # other processes wait at their next step
                    row = {"step": self.step, "seconds": round(self.seconds), "tasks": tasks}
                    self._log({**row, "rate": round(rate, 1), **mean, **self.validate(validation)})

    def _add_time(self, seconds: float) -> None:
        """Add to the training time; all processes use the main process's clock."""
        elapsed = torch.tensor(seconds, device=self.accelerator.device)
        self.seconds += float(broadcast(elapsed)) if self.accelerator.num_processes > 1 else seconds

    def _log(self, row: dict[str, object]) -> None:
        with (self.folder / LOG_FILE).open("a") as log:
            log.write(json.dumps(row) + "\n")
