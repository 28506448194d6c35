"""The chapters of the book from notebooks as they are stored, the results from their files, the API from docstrings.

mkdocs calls the functions `on_...`; nothing is executed and nothing is loaded from a network.
"""

import base64
import contextlib
import json
import os
import re
import unicodedata
from functools import cache
from html import escape, unescape
from pathlib import Path, PurePosixPath

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

from dense_ssl.core import read_json
from dense_ssl.experiments.provenance import figure_said, standing

ROOT = Path(__file__).parents[1]
ROOMS = {"": "Beginnings", "01_geometry": "Geometry", "02_data": "Data", "03_positives": "Positives",
         "04_objectives": "Objectives", "05_models": "Models", "06_methods": "Methods", "07_training": "Training",
         "08_evaluation": "Evaluation", "09_viz": "Figures", "10_experiments": "Experiments"}
OUTSIDE = re.compile(r"^(?:[a-z]+:|#|mailto:)")
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))")
MODULE = re.compile(r"#\| *default_exp (\S+)")


def notebooks() -> dict[str, dict]:
    "Every notebook by its path below nbs/, README's own left out: that is the front page."
    paths = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
    return {p.relative_to(ROOT / "nbs").as_posix(): json.loads(p.read_text()) for p in paths if p.name != "index.ipynb"}


def source(cell: dict) -> str:
    return "".join(cell["source"])


def module(book: dict) -> str:
    "The module that a notebook exports, or nothing."
    found = (MODULE.search(source(c)) for c in book["cells"] if c["cell_type"] == "code")
    return next((m[1] for m in found if m), "")


def title(book: dict, name: str) -> str:
    if not (found := re.search(r"^# (.+)$", source(book["cells"][0]), re.M)) or book["cells"][0]["cell_type"] == "code":
        raise PluginError(f"nbs/{name} has no title; needed: a first cell that begins with # and a name")
    return found[1].strip()


def chapter_of(name: str) -> str:
    return "chapters/" + name.removesuffix(".ipynb") + ".md"


def relative(target: str, page: str) -> str:
    "A link from a page to a file of the book."
    return os.path.relpath(target, str(PurePosixPath(page).parent))


class Links:
    "Where links of notebooks lead in the book; files of the project that they name are taken along."

    def __init__(self) -> None:
        self.wanted: set[Path] = set()

    def rewrite(self, text: str, at: Path, page: str) -> str:
        "The links of a Markdown text that stands in the folder `at` of the project, as links of `page`."
        def lead(match: re.Match) -> str:
            target, _, anchor = match[2].partition("#")
            if OUTSIDE.match(match[2]):
                return match[0]
            path = Path(os.path.normpath(at / target))
            inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
            if inside.startswith("nbs/") and inside.endswith(".ipynb"):
                name = inside.removeprefix("nbs/")
                to = "index.md" if name == "index.ipynb" else chapter_of(name)
            elif inside and path.is_file():
                self.wanted.add(path)
                to = f"files/{inside}"
            else:                                              # a folder, or something that only a checkout has
                return match[1].lstrip("!").strip("[](").removesuffix("]") if match[1][0] != "!" else ""
            return f"{match[1]}{relative(to, page)}{match[3]}"

        fenced = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
        return "".join(part if k % 2 else LINK.sub(lead, part) for k, part in enumerate(fenced))


def about(name: str, book: dict, page: str) -> str:
    "Where a chapter comes from: its notebook, its module, and the command that runs it."
    takes = any("parameters" in c["metadata"].get("tags", ()) for c in book["cells"])
    command = f"papermill nbs/{name} runs/out.ipynb" if takes else f".venv/bin/python tests/notebooks.py nbs/{name}"
    parts = [f"[notebook]({relative(f'files/nbs/{name}', page)})"]
    if exported := module(book):
        parts.append(f"[`dense_ssl.{exported}`]({relative(f'api/{exported}.md', page)})")
    return f'<div class="about" markdown>{" · ".join(parts)} · run it: `{command}`</div>\n'


def folded(summary: str, body: str, kind: str) -> str:
    "A block that opens on a click."
    inside = "\n".join(f"    {line}" if line else "" for line in body.split("\n"))
    return f'??? {kind} "{summary.replace(chr(34), chr(39))}"\n\n{inside}\n'


def first_sentence(text: str) -> str:
    "The first sentence of a Markdown text, without its marks."
    plain = re.sub(r"[*`]|\$+", "", LINK.sub(lambda m: m[1].strip("![(").removesuffix("]"), text)).strip()
    return re.split(r"(?<=[.;:!?])\s|\n", plain)[0].rstrip(".;:")


def is_test(code: str) -> bool:
    asserts = r"^\s*(assert |with pytest\.raises|torch\.testing\.assert|np\.testing\.assert)"
    return bool(re.search(asserts, code, re.M))


def is_imports(code: str) -> bool:
    lines = [line for line in code.split("\n") if line and line[0] not in " )#\t"]
    return bool(lines) and all(line.startswith(("import ", "from ", "if TYPE_CHECKING:")) for line in lines)


def outputs(cell: dict, stem: str, page: str, made: dict[str, bytes]) -> str:
    "What a cell showed when it was stored: pictures as files, words as they are."
    shown = []
    for k, output in enumerate(cell.get("outputs", ())):
        data = output.get("data", {})
        kind = next((t for t in ("image/png", "image/jpeg", "image/svg+xml", "text/markdown") if t in data), "")
        if kind == "text/markdown":
            shown.append("".join(data[kind]))
        elif kind:
            file = f"{stem}-{cell['id']}-{k}.{kind.split('/')[1].split('+')[0]}"
            text = "".join(data[kind])
            made[file] = text.encode() if "svg" in kind else base64.b64decode(text)
            shown.append(f"![what the cell shows]({relative(file, page)})")
        else:
            words = "".join(output.get("text", data.get("text/plain", "")))
            words = re.sub(r"\x1b\[[0-9;]*m", "", words).rstrip("\n")
            if words and not words.startswith("<") and "FloatProgress" not in words:
                shown.append(f'```text\n{words[:6000]}\n```')
    body = "\n\n".join(shown)
    return f'<div class="output" markdown>\n\n{body}\n\n</div>' if body else ""


def chapter(name: str, book: dict, links: Links, made: dict[str, bytes]) -> str:
    "A notebook as a page: what it explains, exports and shows; what tests is one line that says what holds."
    page, at, parts, said = chapter_of(name), (ROOT / "nbs" / name).parent, [], ""
    for number, cell in enumerate(book["cells"]):
        text = source(cell)
        if cell["cell_type"] == "markdown":
            parts.append(links.rewrite(text, at, page))
            said = text if not text.startswith("#") else ""
            if number == 0:
                parts.append(about(name, book, page))
            continue
        if cell["cell_type"] != "code" or MODULE.search(text):
            continue
        exported = bool(re.search(r"^#\| *export", text, re.M))
        code = re.sub(r"^#\|.*\n?", "", text, flags=re.M).strip("\n")
        shown = outputs(cell, page.removesuffix(".md"), page, made)
        block = f"```python\n{code}\n```"
        if is_imports(code):
            if parts[-1].startswith('??? quote "imports"'):    # those of the module, then those of its examples
                parts[-1] += "\n" + "\n".join(f"    {line}" if line else "" for line in block.split("\n")) + "\n"
            else:
                parts.append(folded("imports", block, "quote"))
        elif not exported and is_test(code) and "image" not in shown:
            held = first_sentence(said) or "what was said above"
            parts.append(folded(f"✓ {held}", block, "success holds") + ("\n" + shown if shown else ""))
        else:
            parts.append(block + ("\n\n" + shown if shown else ""))
        said = ""
    return "\n\n".join(parts)


def clickables() -> list[Path]:
    "Pages that are clicked, from finished runs, the fuller profile first."
    folders = (ROOT / "figures", ROOT / "figures" / "small", ROOT / "figures" / "quick")
    found = [path for folder in folders for path in sorted(folder.glob("*-click.html"))]
    return list({p.name: p for p in reversed(found)}.values())


@cache
def below(facts: Path) -> str:
    "What stands under a table or figure, by the JSON beside it: whether it is of this code, and how it is made again."
    said = read_json(facts)
    profile, paper = facts.parent.name, facts.name.split("-")[0]
    words = standing(said["records"]) if "records" in said else figure_said(said, profile, paper)
    return f'<p class="from" markdown>{words}</p>' if words else ""


def frame(name: str, page: str, known: dict[str, Path]) -> str:
    "A clickable figure in a frame, or how to make it."
    if name in known:
        to = relative(f"files/{known[name].relative_to(ROOT).as_posix()}", page.replace(".md", ".html"))
        facts = known[name].with_suffix(".json")
        return (f'<iframe class="click" src="{to}" title="Clickable figure" loading="lazy"></iframe>\n\n'
                f"[The figure alone]({to})\n\n{below(facts) if facts.is_file() else ''}")
    return "*The clickable figure is not made yet: `make reproduce` makes it from finished runs.*"


def included(text: str, page: str, links: Links, known: dict[str, Path]) -> str:
    """What a page asks for: {{ table NAME }}, {{ tables PROFILE }}, {{ figure NAME words }}, {{ click PAPER }},
    {{ section NOTEBOOK heading }}."""
    def put(match: re.Match) -> str:
        what, name, words = match[1], match[2], match[3].strip()
        if what == "click":
            return frame(f"{name}-click.html", page, known)
        if what == "tables":
            if not (paths := sorted((ROOT / "figures" / name).glob("*.md"))):
                raise PluginError(f"site/pages/{page} asks for the tables in figures/{name}, where there are none")
            return "\n\n".join(included(f"{{{{ table {name}/{p.stem} }}}}", page, links, known) for p in paths)
        if what == "section":
            return links.rewrite(section(name, words), (ROOT / "nbs" / name).parent, page)
        path = ROOT / "figures" / (f"{name}.md" if what == "table" else f"{name}.png")
        if not path.is_file():
            raise PluginError(f"site/pages/{page} asks for figures/{path.relative_to(ROOT / 'figures')}, which is not "
                              "there; make it, or name another")
        if what == "table":
            text = links.rewrite(path.read_text(), path.parent, page)
            return f'<div class="wide" markdown>\n\n{text}\n\n</div>\n\n{below(path.with_suffix(".json"))}'
        links.wanted.add(path)
        picture = f"![{words}]({relative(f'files/{path.relative_to(ROOT).as_posix()}', page)})"
        return f"{picture}\n\n*{words}*\n\n{below(path.with_suffix('.json'))}"

    return re.sub(r"\{\{ (tables|table|figure|click|section) (\S+)(.*?)\}\}", put, text)


def section(name: str, heading: str) -> str:
    "The cell of a notebook that begins with this heading, without the heading."
    cells = map(source, json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text())["cells"])
    found = [c for c in cells if re.match(rf"#+ {re.escape(heading)}\s*\n", c)]
    if len(found) != 1:
        raise PluginError(f"nbs/{name}.ipynb has {len(found)} cells that begin with {heading!r}; needed: one")
    return found[0].partition("\n")[2]


def api(books: dict[str, dict]) -> dict[str, str]:
    "A page for every module, from its docstrings."
    pages = {}
    for name, book in books.items():
        if exported := module(book):
            page = f"api/{exported}.md"
            lead = f"# {exported}\n\n[What it is and how it works]({relative(chapter_of(name), page)})\n\n"
            pages[page] = f"{lead}::: dense_ssl.{exported}\n"
    return pages


def rooms(names: list[str], books: dict[str, dict]) -> list[dict]:
    "The chapters in the order of the rooms."
    by = {label: [n for n in names if (n.split("/")[0] if "/" in n else "") == room] for room, label in ROOMS.items()}
    return [{label: [{title(books[n], n): chapter_of(n)} for n in found]} for label, found in by.items() if found]


def on_config(config):
    "The order of the book."
    config["books"] = books = notebooks()
    names, papers = list(books), ["pixdepth", "cpcdr", "auxiliary", "geosets"]
    modules = sorted(api(books))
    by: dict[str, list] = {}
    for page in modules:
        by.setdefault(page.split("/")[1].split(".")[0] if "." in page[4:-3] else "core", []).append({page[4:-3]: page})
    config.nav = [{"The idea": "index.md"}, {"Papers": [f"papers/{paper}.md" for paper in papers]},
                  {"Your data": "your_data.md"}, {"Results": "results.md"},
                  {"How to add": chapter_of("how_to_add.ipynb")},
                  {"Chapters": rooms([n for n in names if n != "how_to_add.ipynb"], books)},
                  {"API": [{room: pages} for room, pages in by.items()]}]
    return config


def on_files(files, config):
    "Chapters, their pictures, API pages, and the files of the project that are linked to."
    links, made, books = Links(), {}, config["books"]
    config["links"], known = links, {p.name: p for p in clickables()}
    config["known"] = known
    links.wanted |= set(known.values()) | {ROOT / "nbs" / name for name in books}
    for page, text in {**{chapter_of(n): chapter(n, b, links, made) for n, b in books.items()}, **api(books)}.items():
        files.append(File.generated(config, page, content=text))
    for file, content in made.items():
        files.append(File.generated(config, file, content=content))
    for file in list(files):
        if file.src_uri.endswith(".md") and not file.src_uri.startswith(("chapters/", "api/")):
            included(file.content_string, file.src_uri, links, known)
    for path in sorted((ROOT / "site" / "assets").iterdir()):
        files.append(File.generated(config, f"assets/{path.name}", content=path.read_bytes()))
    for path in sorted(links.wanted):
        files.append(File.generated(config, f"files/{path.relative_to(ROOT).as_posix()}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    return included(markdown, page.file.src_uri, config["links"], config["known"])


def on_page_content(html, page, config, files):
    "Equations as MathML, which browsers draw by themselves."
    def inline(match: re.Match) -> str:
        made = mathml(match[1], "inline")                   # a long one has a line of its own width on a telephone
        return f'<span class="long">{made}</span>' if len(match[1]) > 40 else made

    def block(match: re.Match) -> str:
        return mathml(match[1], "block")

    html = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', inline, html, flags=re.S)
    return re.sub(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', block, html, flags=re.S)


def mathml(latex: str, display: str) -> str:
    "An equation as MathML; letters of another alphabet as the characters that browsers draw."
    latex = re.sub(r"\\[bB]ig[lr](?![a-z])", "", unescape(latex))
    try:
        made = convert(latex, display=display)
    except Exception as error:
        raise PluginError(f"equation {latex!r} cannot be drawn: {error}") from error
    return re.sub(r'<mi mathvariant="(script|bold|double-struck)">(\w|&#x\w+;)</mi>', letter, made)


def letter(match: re.Match) -> str:
    "The character of a mathematical alphabet, or what was there where there is none."
    kind, plain = match[1].upper(), unescape(match[2])
    case = "CAPITAL" if plain.isupper() else "SMALL"
    for name in (f"MATHEMATICAL {kind} {case} {plain.upper()}", f"{kind} {case} {plain.upper()}"):
        with contextlib.suppress(KeyError):
            return f"<mi>{unicodedata.lookup(name)}</mi>"
    return match[0]


def on_post_page(output, page, config):
    "Nothing from elsewhere: the page says so by itself if the theme asks for something."
    for address in re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?:[^"]+)"', output):
        raise PluginError(f"{page.file.src_uri} loads {escape(address)}; needed: a file of the book")
    return output


def on_post_build(config):
    "The theme's page for a server that finds nothing has absolute links, and nobody asks a disk for it."
    Path(config.site_dir, "404.html").unlink()
