"""Export the device part of a checkpoint to ONNX: ``python export/to_onnx.py``."""

import sys

if __name__ == "__main__":
    try:
        from esrt.cli import run
        from export.cli import export_command
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"error: This project is not installed for {sys.executable}: {error}."
            " Run make setup and use .venv/bin/python, or run: pip install '.[export]'.\n"
        )
        sys.exit(2)
    run(export_command("onnx"))
