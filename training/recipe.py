"""Recipe of a training run: a YAML file, validated when read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from esrt.errors import EsrtError

Share = Annotated[float, Field(ge=0, le=1)]
Part = Literal["encoder", "q_former", "mlp", "decoder"]


class RecipeError(EsrtError):
    """A recipe file is missing or not valid."""


class Task(StrEnum):
    """Training tasks, as the ESRT paper names them (arXiv 2605.28642).

    Attributes:
        ASR: speech to transcript.
        SMT: transcript, given as text, to translation.
        SRT: speech to transcript and translation, the task at inference.
    """

    ASR = "asr"
    SMT = "smt"
    SRT = "srt"


class Settings(BaseModel):
    """Settings of a file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


SettingsT = TypeVar("SettingsT", bound=Settings)


class Stage(Settings):
    """Stage of the curriculum.

    Attributes:
        until: share of the budget at which the stage ends.
        tasks: sampling weight of each task.
    """

    until: Annotated[float, Field(gt=0, le=1)]
    tasks: dict[Task, PositiveFloat]


class Balance(Settings):
    """Balancing of languages with unequal amounts of data.

    Attributes:
        cap: most examples of each ordered language pair.
        temperature: a language with n examples is drawn in proportion to n^(1/temperature). 1
            keeps the data's proportions; larger is more even (Arivazhagan et al., arXiv
            1907.05019).
        open: share of the items that are transcripts from outside of the domain.
        non_speech: share of the items that are sound without speech.
        wrong_language: share of the items whose prompt names a wrong language.
    """

    cap: PositiveInt | None = None
    temperature: Annotated[float, Field(ge=1)] = 1.0
    open: Share = 0.0
    non_speech: Share = 0.0
    wrong_language: Share = 0.0


class Augmentation(Settings):
    """Audio augmentation (`training.augment`).

    Attributes:
        noise: probability of noise.
        reverberation: probability of reverberation.
        narrow_band: probability of a narrow band.
        gain: largest gain, up or down, in dB.
        speed: largest change of speed and pitch together, as a share.
        codec: probability of a lossy codec at a low rate (`training.codec_sound`).
    """

    noise: Share = 0.0
    reverberation: Share = 0.0
    narrow_band: Share = 0.0
    gain: Annotated[float, Field(ge=0)] = 0.0
    speed: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    codec: Share = 0.0


class StateAugmentation(Settings):
    """Augmentation of cached encoder states (`training.state_augmentation`).

    Attributes:
        offset: deviation of a random offset of each dimension, in deviations of the dimension.
        scale: deviation of a random factor of each dimension.
        masks: number of stretches that are masked.
        mask_states: length of a stretch, in states of 20 ms.
        dropped: probability that a dimension is dropped in an utterance.
    """

    offset: Annotated[float, Field(ge=0)] = 0.0
    scale: Annotated[float, Field(ge=0)] = 0.0
    masks: Annotated[int, Field(ge=0)] = 0
    mask_states: PositiveInt = 8
    dropped: Share = 0.0


class Recipe(Settings):
    """Settings of a run; ``training/recipes`` has examples.

    Attributes:
        model: name of the model (`esrt.config`).
        stages: the curriculum.
        minutes: budget as training time; give either ``minutes`` or ``steps``.
        steps: budget as optimizer steps.
        initial: checkpoint of the same model, whose edge (encoder, Q-Former, projector) the run
            starts from.
        states: folder of cached states of the model's published encoder (`training.cache`), which
            the run reads instead of audio.
        encoder: pretrained Whisper to start from: a folder or a hub id.
        decoder: pretrained Gemma 3 with its tokenizer to start from: a folder or a hub id. Parts
            without a source start from random weights.
        frozen: parts whose weights do not change.
        balance: balancing of languages.
        augmentation: changes to the audio.
        state_augmentation: changes to cached states.
        batch: items of a batch, per process.
        learning_rate: highest learning rate.
        warmup_steps: steps of linear warm-up.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        letter_ctc: weight of the CTC loss of characters on the encoder's states. With ``states``
            it is on the Q-Former's output, of which each token makes three frames.
        piece_ctc: weight of the CTC loss of decoder tokens on the Q-Former's output; needs a
            Q-Former whose tokens follow time.
        speaker_invariance: weight of the distance between the features of all voices and those of
            the reference voice (`training.corpus.pairs`; with ``states``, pairs of the corpus's
            settings), which ``initial`` computes. Features then reveal less of the speaker.
        precision: number format of the training's products. bf16 is slow on a processor without
            instructions for it.
        vocabulary: tokens of a new tokenizer.
        stored_as: number format of the checkpoint's weights.
        seed: seed of weights and draws.
    """

    model: str
    stages: tuple[Stage, ...] = Field(min_length=1)
    minutes: PositiveFloat | None = None
    steps: PositiveInt | None = None
    initial: Path | None = None
    states: Path | None = None
    encoder: str | None = None
    decoder: str | None = None
    frozen: frozenset[Part] = frozenset()
    balance: Balance = Balance()
    augmentation: Augmentation = Augmentation()
    state_augmentation: StateAugmentation = StateAugmentation()
    batch: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: PositiveInt = 300
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: PositiveFloat = 1.0
    letter_ctc: Annotated[float, Field(ge=0)] = 0.3
    piece_ctc: Annotated[float, Field(ge=0)] = 0.3
    speaker_invariance: Annotated[float, Field(ge=0)] = 0.0
    precision: Literal["bf16", "fp32"] = "bf16"
    vocabulary: PositiveInt = 1200
    stored_as: Literal["float16", "bfloat16"] = "float16"
    seed: int = 17

    def model_post_init(self, context: object) -> None:
        """Check rules that concern several settings."""
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give a budget, either minutes or steps")
        if self.speaker_invariance and self.initial is None:
            raise ValueError("speaker_invariance needs an initial checkpoint")
        ends = [stage.until for stage in self.stages]
        if ends != sorted(set(ends)) or ends[-1] != 1:
            raise ValueError("the stages' until must rise and end with 1")


def read_recipe(path: Path) -> Recipe:
    """Read and validate a recipe.

    Raises:
        RecipeError: the file is missing, not YAML, or has unknown or wrong settings.
    """
    return read_settings(
        path, Recipe, "the recipe", "training/recipes/nano.yaml", "training/recipe.py"
    )


def read_settings(
    path: Path, model: type[SettingsT], whole: str, example: str, code: str
) -> SettingsT:
    """Read and validate a YAML file.

    Args:
        path: the file.
        model: its settings.
        whole: name of the file's content, for errors that concern no single setting.
        example: path of a valid file, for the remedy.
        code: path of the settings' module, for the remedy.

    Raises:
        RecipeError: the file is missing, not YAML, or has unknown or wrong settings.
    """
    try:
        return model.model_validate(yaml.safe_load(path.read_text("utf-8")))
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read: {error.strerror}.", f"Name a file such as {example}."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path} is not YAML: {reason}.", "Correct the file.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or whole
        raise RecipeError(
            f"{path}: {place}: {first['msg']}.", f"See the settings in {code}."
        ) from error
