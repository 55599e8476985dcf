"""Runs a Core ML program by the interpreter, because Core ML itself needs an Apple system."""

from pathlib import Path

from esrt.arrays import Float32Array
from export.backends.coreml.mil_interpreter import Program
from export.graph_io import INPUT, OUTPUT, Runner


def load_runner(path: Path) -> Runner:
    """Read a program and return the function that evaluates it."""
    program = Program(path)

    def run(mel: Float32Array) -> Float32Array:
        return program.run({INPUT: mel})[OUTPUT]

    return run
