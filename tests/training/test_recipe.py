"""Recipes: valid settings, and one-line errors for wrong ones."""

from pathlib import Path

import pytest
import yaml

from esrt.config import CONFIGS
from training.recipe import RecipeError, Task, read_recipe

RECIPES = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.yaml"))
GOOD = """
model: esrt-nano
steps: 10
stages:
  - until: 0.5
    tasks: {asr: 1}
  - until: 1
    tasks: {asr: 0.2, srt: 0.8}
"""


def read(folder: Path, text: str) -> object:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return read_recipe(path)


def test_there_are_recipes() -> None:
    assert "nano" in {path.stem for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_bundled_recipe_is_read(path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.model in CONFIGS
    # The loss on tokens needs tokens that follow time.
    assert not recipe.piece_ctc or CONFIGS[recipe.model].q_former.stride


def test_a_recipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD + "balance: {cap: 7, temperature: 5}\nfrozen: [encoder]\n", "utf-8")
    recipe = read_recipe(path)
    assert (recipe.model, recipe.steps, recipe.minutes) == ("esrt-nano", 10, None)
    assert recipe.stages[1].tasks == {Task.ASR: 0.2, Task.SRT: 0.8}
    assert (recipe.balance.cap, recipe.balance.temperature) == (7, 5)
    assert recipe.frozen == {"encoder"}


WRONG = {
    "unknown key": (GOOD + "speed: 3\n", "speed: Extra inputs"),
    "unknown key inside": (GOOD + "balance: {capp: 3}\n", "balance.capp: Extra inputs"),
    "wrong type": (GOOD + "batch: many\n", "batch: Input should be a valid integer"),
    "out of range": (GOOD + "augmentation: {noise: 2}\n", "augmentation.noise: Input should be"),
    "unknown task": (GOOD.replace("srt", "tts"), r"stages.1.tasks.tts\S*: Input should be"),
    "unknown part": (GOOD + "frozen: [head]\n", r"frozen\S*: Input should be"),
    "both budgets": (GOOD + "minutes: 3\n", "a budget, either minutes or steps"),
    "speaker invariance without a checkpoint": (
        GOOD + "speaker_invariance: 1\n",
        "speaker_invariance needs an initial checkpoint",
    ),
    "no budget": (GOOD.replace("steps: 10", ""), "a budget, either minutes or steps"),
    "no stages": ("model: esrt-nano\nsteps: 1\nstages: []\n", "stages: Tuple should have"),
    "ends before 1": (GOOD.replace("until: 1\n", "until: 0.9\n"), "must rise and end with 1"),
    "does not rise": (GOOD.replace("until: 0.5\n", "until: 1\n"), "must rise and end with 1"),
    "no model": (GOOD.replace("model: esrt-nano", ""), "model: Field required"),
    "a list": ("- 1\n- 2\n", "the recipe: Input should be"),
    "nothing": ("", "the recipe: Input should be"),
    "bad YAML": ("model: [esrt-nano\nsteps: 1", "is not YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_settings_are_one_line(tmp_path: Path, case: str) -> None:
    text, says = WRONG[case]
    with pytest.raises(RecipeError, match=says) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert str(tmp_path / "recipe.yaml") in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none.yaml cannot be read: No such file") as caught:
        read_recipe(tmp_path / "none.yaml")
    assert "training/recipes/nano.yaml" in caught.value.remedy


def test_invalid_utf8_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"model: \xff\xfe\x00")
    with pytest.raises(RecipeError, match="not YAML"):
        read_recipe(path)


def test_a_recipe_survives_yaml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, "utf-8")
    recipe = read_recipe(path)
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), "utf-8")
    assert read_recipe(path) == recipe
