"""Recipe of the Core ML backend."""

from esrt.manifest import Activations
from export.backends.coreml.inspect import inspect
from export.backends.coreml.lower import lower
from export.backends.coreml.rewrite import CoreMLGraph
from export.backends.coreml.runner import load_runner
from export.recipe import ExportRecipe

RECIPE = ExportRecipe(
    kind="coreml",
    title="Core ML",
    entry="model.mlpackage",
    tools=("torch", "transformers", "coremltools"),
    activations=(Activations.FLOAT, Activations.STATIC),
    graph=lambda model, settings: CoreMLGraph(model, settings.split),
    lower=lower,
    load_runner=load_runner,
    inspect=inspect,
    native=False,
)
