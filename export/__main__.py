"""``python -m export KIND`` and ``esrt-export KIND``: the export commands of all kinds."""

from esrt.cli import application, run
from export.backends import kinds
from export.cli import export_command

app = application("Export a checkpoint to an artifact for devices.")
for _kind in kinds():
    app.command(_kind)(export_command(_kind))


def main() -> None:
    """Run the command line and exit."""
    run(app)


if __name__ == "__main__":
    main()
