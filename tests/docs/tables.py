"""Tables and code blocks of the documents."""

import re
from collections.abc import Iterator

from esrt.bundled import REPOSITORY

Row = dict[str, str]


def page(name: str) -> str:
    """Text of a document in docs/."""
    return (REPOSITORY / "docs" / name).read_text("utf-8")


def tables(text: str, *, heading: str | None = None) -> list[list[Row]]:
    """Tables of a document, or of the section under a heading: cells by column title."""
    if heading is not None:
        section = re.search(
            rf"^(#+) {re.escape(heading)}$\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE
        )
        assert section, heading
        text = section[2]
    return [list(_rows(block)) for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]


def _rows(block: str) -> Iterator[Row]:
    titles, _, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in block.split("\n")[:-1]
    )
    for cells in rows:
        yield dict(zip(titles, cells, strict=True))


def plain(cell: str) -> str:
    """A cell without its backticks."""
    return cell.strip("`")
