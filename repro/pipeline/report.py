"""The page that says what was found, and the manifest, from the journals of the notebooks."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from repro.pipeline import run as results

TOP_TABLES = ("headline", "verdicts")
LONG_TABLE = 20  # rows; a longer one is linked, not shown
SYNTHETIC = (
    "> **Synthetic.** Everything on this page was computed from invented data that carry a known "
    "pattern. It shows that the method works as written; it says nothing about real listeners."
)


def write(pipeline, renew: bool) -> str:
    """Write ``manifest.json``, ``README.md`` and ``index.html``; return the headline table's name.

    Parameters
    ----------
    pipeline : repro.runner.Pipeline
    renew : bool
        Write them although they exist and would say the same.
    """
    folder = pipeline.folder
    stamps = {step: stamp for step in pipeline.steps if (stamp := pipeline.stamp(step))}
    made = manifest(pipeline, stamps)
    expected = {*pipeline.ordinary, *stamps}
    stale = [step for step in pipeline.steps if step in expected and pipeline.stale(step)]
    journals = {step: stamp["journal"] for step, stamp in stamps.items()}
    text = page(folder, made, journals, stale)
    readme, index = folder / "README.md", folder / "index.html"
    # A companion that ran by itself can make a notebook stale that was not among the chosen.
    if renew or not (index.exists() and readme.exists() and readme.read_text("utf-8") == text):
        results.write_json(folder / "manifest.json", made)
        for path, content in {readme: text, index: _html(text, made)}.items():
            with results.atomic(path) as file:
                file.write(content.encode())
    return _top("headline", journals, stale)


def show(folder: Path, headline: str) -> None:
    """Print where the report is, and the headline table."""
    print(f"\nReport: {folder / 'index.html'}")
    table = folder / "tables" / f"{headline}.md"
    if table.exists():
        text = re.sub(r"</?\w+>|\*\*", "", table.read_text("utf-8"))
        print(html.unescape(text).strip())


def _top(name: str, journals: dict[str, dict], stale: list[str]) -> str:
    """Return which table stands for ``name`` at the head of the page: that over seeds, if made.

    That it is there is not enough: in a fresh clone it is of other code than what has just run.
    """
    fresh = [journal for step, journal in journals.items() if step not in stale]
    made = {shown["name"] for journal in fresh for shown in journal["shown"]}
    return f"seeds_{name}" if f"seeds_{name}" in made else name


def manifest(pipeline, stamps: dict[str, dict]) -> dict:
    """Return what was run, on what, with what, and everything it made."""
    journals = [stamp["journal"] for stamp in stamps.values()]
    last = journals[-1]
    fingerprints = [j["facts"]["fingerprint"] for j in journals if "fingerprint" in j["facts"]]
    kept = ("seconds", "peak_mib", "commit", "checks", "facts")
    return {
        "profile": pipeline.profile.name,
        **{name: last[name] for name in ("label", "seed", "device", "threads", "versions")},
        "commit": last["commit"],
        "data": fingerprints[0] if fingerprints else None,
        "notebooks": {
            step: {name: stamp["journal"][name] for name in kept} | {"outputs": stamp["outputs"]}
            for step, stamp in stamps.items()
        },
    }


def page(folder: Path, made: dict, journals: dict[str, dict], stale: list[str]) -> str:
    """Return the report as Markdown, its links relative to ``folder``."""
    lines = [f"# What was found: {made['label']}", ""]
    if "synthetic" in made["label"]:
        lines += [SYNTHETIC, ""]
    if stale:
        lines += [f"> **Not up to date:** {', '.join(stale)}.", ""]
    top = [_top(name, journals, stale) for name in TOP_TABLES]
    for name in top:
        path = folder / "tables" / f"{name}.md"
        lines += [path.read_text("utf-8")] if path.exists() else []
    for step, journal in journals.items():
        lines += ["", f"## {_title(folder / 'notebooks' / f'{step}.ipynb')}", ""]
        lines += [f"[page](html/{step}.html), [notebook](notebooks/{step}.ipynb)", ""]
        for shown in journal["shown"]:
            name, caption = shown["name"], shown["caption"]
            if shown["kind"] == "figure":
                width = results.shown_width(folder / "figures" / f"{name}.png")
                image = f'<img src="figures/{quote(name)}.png" width="{width}"'
                lines += [f'{image} alt="{html.escape(caption)}">', "", f"*{caption}*", ""]
            elif name not in top:
                path = folder / "tables" / f"{name}.md"
                table = path.read_text("utf-8") if path.exists() else ""
                ending = "md" if table else "csv"
                short = 0 < table.count("\n|") <= LONG_TABLE
                link = f"Table: [{caption}](tables/{quote(name)}.{ending})\n"
                lines += [table if short else link]
    return "\n".join(lines + _provenance(made))


def _title(notebook: Path) -> str:
    first = json.loads(notebook.read_text("utf-8"))["cells"][0]["source"]
    return "".join(first).splitlines()[0].removeprefix("# ")


def _provenance(made: dict) -> list[str]:
    libraries = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    lines = ["", "## Provenance", ""]
    lines += [f"Profile {made['profile']}, seed {made['seed']}, device {made['device']}, "]
    lines += [f"{made['threads']} threads, data {made['data']}, commit {made['commit']}. "]
    lines += [f"{libraries}. Digests of every output are in [manifest.json](manifest.json).", ""]
    lines += ["| notebook | seconds | peak memory, MiB | checks passed |", "|:--|--:|--:|--:|"]
    for step, entry in made["notebooks"].items():
        row = [step, f"{entry['seconds']:.0f}", f"{entry['peak_mib']:.0f}", len(entry["checks"])]
        lines += [f"| {' | '.join(map(str, row))} |"]
    return [*lines, ""]


def _html(text: str, made: dict) -> str:
    import nbformat
    from nbconvert import HTMLExporter

    # A repository shows README.md and Markdown tables; a browser wants the CSV to open.
    text = re.sub(r"\(tables/([^)]+)\.md\)", r"(tables/\1.csv)", text)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text, id="report")])
    exporter = HTMLExporter(exclude_input_prompt=True)
    title = {"metadata": {"name": f"What was found: {made['label']}"}}
    return exporter.from_notebook_node(notebook, title)[0]


def readme(text: str, table: Callable[[str, str], str]) -> str:
    """Return a text with the rows of tables put in where its markers name them.

    Parameters
    ----------
    text : str
        With any number of ``<!-- results/<profile>/tables/<name> -->`` ... ``<!-- end -->``; what
        stands between two is replaced.
    table : callable
        Given profile and name, returns the table's Markdown, of which the rows are taken.
    """

    def filled(found: re.Match) -> str:
        rows = [line for line in table(found[2], found[3]).splitlines() if line.startswith("|")]
        return "\n".join([found[1], "", *rows, "", "<!-- end -->"])

    begin = r"<!-- results/(\S+)/tables/(\S+) -->"
    between = "(?:(?!<!-- results/).)*?"  # else a forgotten end would swallow the next table
    new, n = re.subn(f"({begin}){between}<!-- end -->", filled, text, flags=re.DOTALL)
    if n != len(re.findall(begin, text)):
        raise ValueError("a table's marker has no <!-- end --> after it")
    return new
