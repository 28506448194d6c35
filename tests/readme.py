"""README.md is nbs/index.ipynb as Markdown, outputs included. With --write it is made, else compared."""

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).parents[1]


def readme() -> str:
    "The Markdown of nbs/index.ipynb without its code cells; links to figures as seen from the project's folder."
    notebook = nbformat.read(ROOT / "nbs" / "index.ipynb", 4)
    exporter = MarkdownExporter(config=Config({"TemplateExporter": {"exclude_input": True}}))
    body, _ = exporter.from_notebook_node(notebook)
    body = re.sub(r"\]\((?!\.\./|https?:)([^)]*\.ipynb)\)", r"](nbs/\1)", body).replace(
        "](../", "]("
    )  # the notebook lies in nbs/, README.md above it
    return re.sub(r"\n{3,}", "\n\n", body).strip() + "\n"


if __name__ == "__main__":
    text, path = readme(), ROOT / "README.md"
    if "--write" in sys.argv:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        sys.exit("README.md differs from nbs/index.ipynb; run `make readme`")
    print(f"README.md: {len(text.split())} words")
