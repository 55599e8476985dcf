"""The recipe of a run: one YAML file, checked on reading."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from esrt.errors import EsrtError

Share = Annotated[float, Field(ge=0, le=1)]
Part = Literal["encoder", "q_former", "mlp", "decoder"]


class RecipeError(EsrtError):
    """A recipe file is missing or not understood."""


class Task(StrEnum):
    """What an example asks for, in the terms of the ESRT paper (arXiv 2605.28642).

    ``ASR``: speech to transcript. ``SMT``: transcript, given as text, to translation. ``SRT``:
    speech to transcript and translation, which is what the model is used for.
    """

    ASR = "asr"
    SMT = "smt"
    SRT = "srt"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(_Settings):
    """A stretch of the curriculum: it ends at that share of the budget, and mixes these tasks."""

    until: Annotated[float, Field(gt=0, le=1)]
    tasks: dict[Task, PositiveFloat]


class Balance(_Settings):
    """How unequal languages are evened out.

    ``cap``: at most so many examples of each ordered language pair take part. ``temperature``: a
    language with n examples is drawn in proportion to n^(1/temperature): 1 keeps the data's
    proportions, larger is more even (Arivazhagan et al., arXiv 1907.05019).
    """

    cap: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=1)] = 1.0


class Augmentation(_Settings):
    """How likely each change to an utterance's sound is, and how far the gain goes, in dB."""

    noise: Share = 0.0
    reverberation: Share = 0.0
    narrow_band: Share = 0.0
    gain: Annotated[float, Field(ge=0)] = 0.0


class Recipe(_Settings):
    """The settings of a run; ``training/recipes`` has examples.

    The budget is ``minutes`` of training or ``steps``, one of the two. ``initial`` is a checkpoint
    of the same model whose edge (encoder, Q-Former, projector) to start from. ``encoder`` and
    ``decoder`` name pretrained models to start from, as transformers names them (a folder or a hub
    id): a Whisper, and a Gemma 3 with its tokenizer. What is not named starts from random weights.
    ``frozen`` parts stay as they are. ``letter_ctc`` and ``piece_ctc`` weigh the auxiliary losses:
    characters on the encoder's states, the decoder's tokens on the Q-Former's output; the latter
    needs a Q-Former whose tokens follow time. ``speaker_invariance`` weighs how far the features
    of all voices are from those that ``initial`` gives one voice (`training.corpus.pairs`), which
    hardens them against telling speakers apart.
    """

    model: str
    stages: tuple[Stage, ...] = Field(min_length=1)
    minutes: PositiveFloat | None = None
    steps: PositiveInt | None = None
    initial: Path | None = None
    encoder: str | None = None
    decoder: str | None = None
    frozen: frozenset[Part] = frozenset()
    balance: Balance = Balance()
    augmentation: Augmentation = Augmentation()
    batch: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: PositiveInt = 300
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: PositiveFloat = 1.0
    letter_ctc: Annotated[float, Field(ge=0)] = 0.3
    piece_ctc: Annotated[float, Field(ge=0)] = 0.3
    speaker_invariance: Annotated[float, Field(ge=0)] = 0.0
    vocabulary: PositiveInt = 1200
    stored_as: Literal["float16", "bfloat16"] = "float16"
    seed: int = 17

    def model_post_init(self, context: object) -> None:
        """Check what concerns several settings."""
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give a budget, either minutes or steps")
        if self.speaker_invariance and self.initial is None:
            raise ValueError("speaker_invariance needs an initial checkpoint")
        ends = [stage.until for stage in self.stages]
        if ends != sorted(set(ends)) or ends[-1] != 1:
            raise ValueError("the stages' until must rise and end with 1")

    def stage(self, done: float) -> Stage:
        """The stage at that share of the budget."""
        return next((stage for stage in self.stages if done < stage.until), self.stages[-1])


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        RecipeError: the file is missing, not YAML, or has unknown or wrong settings.
    """
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read: {error.strerror}.",
            "Name a file such as training/recipes/nano.yaml.",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path} is not YAML: {reason}.", "Correct the file.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the recipe"
        raise RecipeError(
            f"{path}: {place}: {first['msg']}.", "The settings are those of training/recipe.py."
        ) from error
