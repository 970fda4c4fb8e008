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
    "pattern. It shows that the method works as written; it says nothing about real listeners.\n"
)


def write(pipeline) -> str:
    """Write page and manifest of a pipeline's results; return the headline as plain text."""
    folder = pipeline.folder
    records = {name: record for name in pipeline.all if (record := pipeline.record(name))}
    stale = [n for n in {*pipeline.ordinary, *records} if pipeline.stale(n)]
    text, headline = page(folder, records, sorted(stale))
    readme, index, manifest = (folder / name for name in FILES)
    write_json(manifest, records)
    if not (index.exists() and readme.exists() and readme.read_text("utf-8") == text):
        readme.write_text(text, "utf-8")
        index.write_text(_html(text), "utf-8")
    return html.unescape(re.sub(r"</?\w+>", "", headline).replace("**", "  ")).strip()


def page(folder: Path, records: dict[str, dict], stale: list[str]) -> tuple[str, str]:
    """Return the report as Markdown, its links relative to ``folder``, and its headline table.

    The tables over seeds lead it, where a notebook has made them that is not stale: in a fresh
    clone they are of other code than what has just run.
    """
    last = list(records.values())[-1]
    made = {s["name"]: n for n in records if n not in stale for s in records[n]["shown"]}
    names = [f"seeds_{name}" if f"seeds_{name}" in made else name for name in TOP_TABLES]
    top = {n: (folder / made[n] / f"tables/{n}.md").read_text("utf-8") for n in names if n in made}
    lines = [f"# What was found: {last['label']}\n"]
    lines += [SYNTHETIC] if "synthetic" in last["label"] else []
    lines += [f"> **Not up to date:** {', '.join(stale)}.\n"] if stale else []
    lines += top.values()
    for name, record in records.items():
        cells = json.loads((folder / name / f"{name}.ipynb").read_text("utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
        lines += [f"\n## {title}\n\n[page]({name}/{name}.html), [notebook]({name}/{name}.ipynb)\n"]
        lines += [_shown(folder, name, **one) for one in record["shown"] if one["name"] not in top]
    libraries = ", ".join(f"{name} {number}" for name, number in last["versions"].items())
    data = [record["facts"]["data"] for record in records.values() if "data" in record["facts"]]
    lines += [
        f"\n## Provenance\n\nProfile {last['profile']}, seed {last['seed']}, "
        f"device {last['device']}, {last['threads']} threads, data {''.join(data) or 'unknown'}, "
        f"commit {last['commit']}. {libraries}. Digests of every output are in "
        "[manifest.json](manifest.json).\n\n"
        "| notebook | seconds | peak memory, MiB | checks passed |\n|:--|--:|--:|--:|"
    ]
    for name, record in records.items():
        numbers = f"{record['seconds']:.0f} | {record['peak_mib']:.0f} | {len(record['checks'])}"
        lines += [f"| {name} | {numbers} |"]
    return "\n".join([*lines, ""]), next(iter(top.values()), "")


def _shown(folder: Path, notebook: str, kind: str, name: str, caption: str) -> str:
    """Return a figure or a table as Markdown; a long table is linked, not shown."""
    if kind == "figure":
        path = f"{notebook}/figures/{name}.png"
        width = shown_width(folder / path)
        image = f'<img src="{quote(path)}" width="{width}" alt="{html.escape(caption)}">'
        return f"{image}\n\n*{caption}*\n"
    path = folder / notebook / "tables" / f"{name}.md"
    table = path.read_text("utf-8") if path.exists() else ""
    link = f"{notebook}/tables/{quote(name)}.{'md' if table else 'csv'}"
    short = 0 < table.count("\n|") <= LONG_TABLE
    return table if short else f"Table: [{caption}]({link})\n"


def _html(text: str) -> str:
    import nbformat
    from nbconvert import HTMLExporter

    # A repository shows README.md and Markdown tables; a browser wants the CSV to open.
    text = re.sub(r"(\(\w+/tables/[^)]+)\.md\)", r"\1.csv)", text)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id="report")])
    title = {"metadata": {"name": text.splitlines()[0].removeprefix("# ")}}
    return HTMLExporter(exclude_input_prompt=True).from_notebook_node(notebook, title)[0]
