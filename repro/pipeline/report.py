"""The page that says what was found, and the manifest, from the records of the notebooks."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from urllib.parse import quote

from repro.data.files import write_json
from repro.pipeline.run import shown_width

FILES = "README.md", "index.html", "manifest.json"
TOP_TABLES = "headline", "verdicts"
LONG_TABLE = 20  # rows; a longer one is linked, not shown
SYNTHETIC = (
    "> **Synthetic.** Everything on this page was computed from invented data that carry a known "
    "pattern. It shows that the method works as written; it says nothing about real listeners."
)


def write(pipeline, renew: bool) -> str:
    """Write the page and the manifest of a profile's results; return the headline as plain text.

    Parameters
    ----------
    pipeline : repro.pipeline.runner.Pipeline
    renew : bool
        Write them although they exist and would say the same.
    """
    folder, notebooks = pipeline.folder, pipeline.all
    records = {name: record for name in notebooks if (record := pipeline.record(name))}
    stale = [n for n in notebooks if (n in records or n in pipeline.ordinary) and pipeline.stale(n)]
    fresh = {name: record for name, record in records.items() if name not in stale}
    top = [table for name in TOP_TABLES if (table := _top(folder, name, fresh))]
    text = page(folder, records, stale, top)
    readme, index, manifest = (folder / name for name in FILES)
    # A companion that ran by itself can make a notebook stale that was not among the chosen.
    if renew or not (index.exists() and readme.exists() and readme.read_text("utf-8") == text):
        write_json(manifest, records)
        readme.write_text(text, "utf-8")
        index.write_text(_html(text), "utf-8")
    headline = top[0].read_text("utf-8") if top else ""
    return html.unescape(re.sub(r"</?\w+>|\*\*", "", headline)).strip()


def _top(folder: Path, name: str, fresh: dict[str, dict]) -> Path | None:
    """Return the table that stands for ``name`` at the head of the page: that over seeds, if made.

    That it is there is not enough: in a fresh clone it is of other code than what has just run.
    """
    made = {shown["name"]: n for n, record in fresh.items() for shown in record["shown"]}
    name = f"seeds_{name}" if f"seeds_{name}" in made else name
    return folder / made[name] / "tables" / f"{name}.md" if name in made else None


def page(folder: Path, records: dict[str, dict], stale: list[str], top: list[Path]) -> str:
    """Return the report as Markdown, its links relative to ``folder``."""
    last = list(records.values())[-1]
    lines = [f"# What was found: {last['label']}", ""]
    if "synthetic" in last["label"]:
        lines += [SYNTHETIC, ""]
    if stale:
        lines += [f"> **Not up to date:** {', '.join(stale)}.", ""]
    lines += [path.read_text("utf-8") for path in top]
    for name, record in records.items():
        cells = json.loads((folder / name / f"{name}.ipynb").read_text("utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
        lines += [
            "",
            f"## {title}",
            "",
            f"[page]({name}/{name}.html), [notebook]({name}/{name}.ipynb)",
            "",
        ]
        shown = [
            one
            for one in record["shown"]
            if folder / name / "tables" / f"{one['name']}.md" not in top
        ]
        lines += [line for one in shown for line in _shown(folder, name, **one)]
    lines += ["", "## Provenance", ""]
    libraries = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    lines += [f"Profile {last['profile']}, seed {last['seed']}, device {last['device']}, "]
    facts = {name: fact for record in records.values() for name, fact in record["facts"].items()}
    lines += [f"{last['threads']} threads, data {facts.get('data')}, commit {last['commit']}. "]
    lines += [f"{libraries}. Digests of every output are in [manifest.json](manifest.json).", ""]
    lines += ["| notebook | seconds | peak memory, MiB | checks passed |", "|:--|--:|--:|--:|"]
    for name, record in records.items():
        numbers = f"{record['seconds']:.0f} | {record['peak_mib']:.0f} | {len(record['checks'])}"
        lines += [f"| {name} | {numbers} |"]
    return "\n".join([*lines, ""])


def _shown(folder: Path, notebook: str, kind: str, name: str, caption: str) -> list[str]:
    """Return the lines for a figure or a table; a long table is linked, not shown."""
    if kind == "figure":
        path = f"{notebook}/figures/{name}.png"
        width = shown_width(folder / path)
        image = f'<img src="{quote(path)}" width="{width}" alt="{html.escape(caption)}">'
        return [image, "", f"*{caption}*", ""]
    path = folder / notebook / "tables" / f"{name}.md"
    table = path.read_text("utf-8") if path.exists() else ""
    if 0 < table.count("\n|") <= LONG_TABLE:
        return [table]
    ending = "md" if table else "csv"
    return [f"Table: [{caption}]({notebook}/tables/{quote(name)}.{ending})\n"]


def _html(text: str) -> str:
    import nbformat
    from nbconvert import HTMLExporter

    # A repository shows README.md and Markdown tables; a browser wants the CSV to open.
    text = re.sub(r"(\(\w+/tables/[^)]+)\.md\)", r"\1.csv)", text)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id="report")])
    title = {"metadata": {"name": text.splitlines()[0].removeprefix("# ")}}
    return HTMLExporter(exclude_input_prompt=True).from_notebook_node(notebook, title)[0]


def filled(text: str, root: Path) -> str:
    """Return a text with the rows of tables put in where its markers name them.

    Parameters
    ----------
    text : str
        With any number of ``<!-- results/<profile>/<notebook>/tables/<name> -->`` ...
        ``<!-- end -->``; what stands between two is replaced.
    root : Path
        The folder in which ``results`` is.
    """

    def rows(found: re.Match) -> str:
        table = (root / f"{found[2]}.md").read_text("utf-8").splitlines()
        lines = [line for line in table if line.startswith("|")]
        return "\n".join([found[1], "", *lines, "", "<!-- end -->"])

    begin = r"<!-- (results/\S+/tables/\S+) -->"
    between = "(?:(?!<!-- results/).)*?"  # else a forgotten end would swallow the next table
    new, n = re.subn(f"({begin}){between}<!-- end -->", rows, text, flags=re.DOTALL)
    if n != len(re.findall(begin, text)):
        raise ValueError("a table's marker has no <!-- end --> after it")
    return new
