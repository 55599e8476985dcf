"""Recipe of the ONNX backend."""

from esrt.manifest import Activations
from export.backends.onnx.inspect import inspect
from export.backends.onnx.lower import lower
from export.backends.onnx.runner import load_runner
from export.recipe import ExportRecipe
from export.tracing import DeviceGraph

RECIPE = ExportRecipe(
    kind="onnx",
    title="ONNX",
    entry="model.onnx",
    tools=("torch", "transformers", "onnx", "onnxscript", "onnxruntime"),
    activations=(Activations.DYNAMIC, Activations.STATIC),
    graph=lambda model, settings: DeviceGraph(model, settings.split),
    lower=lower,
    load_runner=load_runner,
    inspect=inspect,
    token_ranges=False,
)
