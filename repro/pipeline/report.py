"""What a reader opens: a page per notebook, a profile's index, and the landing page of all."""

from __future__ import annotations

import html
import json
import os
import re
from functools import partial
from pathlib import Path
from urllib.parse import quote

from repro.config import DEMO, REAL, ROOT
from repro.data.files import write_json

FILES = "README.md", "index.html", "manifest.json"
TOP_TABLES = "headline", "verdicts"
SYNTHETIC = (
    "> **Synthetic.** Everything on this page was computed from invented data that carry a known "
    "pattern. It shows that the method works as written; it says nothing about real listeners.\n"
)
FOLDED = """{% extends "basic/index.html.j2" %}{% block input_group %}
{% if ["plumbing", "injected-parameters"] | select("in", cell.metadata.get("tags", [])) | list %}
<details><summary>code</summary>{{ super() }}</details>{% else %}{{ super() }}{% endif %}
{% endblock %}"""
STYLE = """
body {max-width: 1120px; margin: 0 auto; padding: 12px 24px; font: 16px/1.5 sans-serif}
h1, h2, h3, p, li, pre, nav, summary {max-width: 900px}
nav, small, summary, table {font-size: 13px} pre {font-size: 12px}
nav {color: #666} summary {color: #666; cursor: pointer}
a {color: #0173b2; text-decoration: none} .anchor-link {visibility: hidden}
img {max-width: 100%; height: auto} math {font-size: 1.1em} math[display=block] {margin: 8px 0}
pre, .wide {overflow-x: auto; line-height: 1.35}
.highlight {background: #f6f6f6; padding: 2px 10px; margin: 6px 0; max-width: 880px}
table {border-collapse: collapse; margin: 8px 0}
td, th {padding: 2px 10px 2px 0; border-bottom: 1px solid #ddd; vertical-align: top}
@media (max-width: 1000px) {table {font-size: 11px} td, th {padding-right: 5px}}
"""


def write(pipeline) -> str:
    """Write pages and manifest of a pipeline's results; return the headline as plain text."""
    records = {name: record for name in pipeline.all if (record := pipeline.record(name))}
    stale = [n for n in {*pipeline.ordinary, *records} if pipeline.stale(n)]
    text, headline = summary(pipeline.folder, records, sorted(stale))
    (pipeline.folder / "README.md").write_text(text, "utf-8")
    write_json(pipeline.folder / "manifest.json", records)
    write_pages(pipeline.folder)
    return html.unescape(re.sub(r"</?\w+>", "", headline).replace("**", "  ")).strip()


def summary(folder: Path, records: dict[str, dict], stale: list[str]) -> tuple[str, str]:
    """Return what was found as Markdown, its links relative to ``folder``, and its headline table.

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
        links = f"[page]({name}/{name}.html), [notebook]({name}/{name}.ipynb)"
        lines += [f"\n## {_title(folder, name)}\n\n{links}\n"]
        lines += [_shown(name, **one) for one in record["shown"] if one["name"] not in top]
    lines += [
        f"\n## Provenance\n\nProfile {last['profile']}, seed {last['seed']}, "
        f"device {last['device']}, {last['threads']} threads, commit {last['commit']}. Libraries, "
        "data and the digests of every output are in [manifest.json](manifest.json).\n\n"
        "| notebook | seconds | peak memory, MiB | checks passed |\n|:--|--:|--:|--:|"
    ]
    for name, record in records.items():
        numbers = f"{record['seconds']:.0f} | {record['peak_mib']:.0f} | {len(record['checks'])}"
        lines += [f"| {name} | {numbers} |"]
    return "\n".join([*lines, ""]), next(iter(top.values()), "")


def _title(folder: Path, name: str) -> str:
    first = json.loads((folder / name / f"{name}.ipynb").read_text("utf-8"))["cells"][0]
    return "".join(first["source"]).splitlines()[0].removeprefix("# ")


def _shown(notebook: str, kind: str, name: str, caption: str) -> str:
    """Return a figure as Markdown shows it, or a link to a table."""
    if kind == "figure":
        return f"![{caption}]({notebook}/figures/{quote(name)}.png)\n\n*{caption}*\n"
    return f"Table: [{caption}]({notebook}/tables/{quote(name)}.csv)\n"


def write_pages(folder: Path) -> None:
    """Write the pages of a folder of results from what is in it, and the landing page beside it."""
    import nbformat
    from nbconvert import HTMLExporter

    notebooks = {path.stem: path for path in sorted(folder.glob("[0-9]*/[0-9]*.ipynb"))}
    names = [name for name, path in notebooks.items() if name == path.parent.name]
    # Code is escaped already, and outputs are our own: to clean them again is half the work.
    filters = {"markdown2html": partial(_html, names=names), "clean_html": lambda text: text}
    bare = {"exclude_input_prompt": True, "exclude_output_prompt": True}
    exporter = HTMLExporter(raw_template=FOLDED, filters=filters, **bare)
    for i, name in enumerate(names):
        links = {"All results": "../index.html"}
        around = {"Previous": names[:i][-1:], "Next": names[i + 1 :][:1]}
        for mark, others in around.items():
            links |= {f"{mark}: {_title(folder, o)}": f"../{o}/{o}.html" for o in others}
        notebook = nbformat.read(notebooks[name], as_version=4)
        _write(folder / name / f"{name}.html", links, exporter.from_notebook_node(notebook)[0])
    text = (folder / "README.md").read_text("utf-8")
    _write(folder / "index.html", {"All profiles": "../index.html"}, _html(text))
    _write(folder.parent / "index.html", {}, _html(landing(folder.parent)))


def landing(root: Path) -> str:
    """Return the question and the findings, as README.md opens with them, and all profiles."""
    text = (ROOT / "README.md").read_text("utf-8").partition("\n## ")[0]
    text = re.sub(r"\]\((?!\w+:)", f"]({os.path.relpath(ROOT, root)}/", text)
    for profile in (*REAL, DEMO):
        if (path := root / profile.name / "README.md").exists():
            table = re.search(r"\*\*[^*]+\*\*\n\n\|.*?</small>", path.read_text("utf-8"), re.DOTALL)
            text += f"\n## {profile.label}\n\n[Profile {profile.name}]({profile.name}/index.html)\n"
            text += f"\n{table[0]}\n" if table else ""
    return text


def _html(text: str, names=()) -> str:
    """Return Markdown as HTML, with formulas in MathML, and links to ``names`` as to pages."""
    from latex2mathml.converter import convert
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        def inline_math(self, body, display="inline"):
            body = re.sub(r"\\tag\{(.*?)\}", r"\\qquad(\1)", body)
            return re.sub(' xmlns=".*?"', "", convert(body, display=display))  # HTML needs none

        def block_math(self, body):
            return self.inline_math(body, "block")

        def link(self, text, url, title=None):
            if other := re.fullmatch(r"\.\./(\w+)/\1\.ipynb", url):
                return super().link(text, f"{url[:-6]}.html") if other[1] in names else text
            return super().link(text, url, title)

    return MarkdownWithMath(renderer=Renderer(escape=False)).render(text)


def _write(path: Path, links: dict[str, str], body: str) -> None:
    """Write a page, which begins with links to others and with its contents."""
    from pygments.formatters import HtmlFormatter

    title = html.unescape(re.sub("<.*?>", "", re.search("<h1.*?(?=<a|</h1>)", body)[0]))
    found = re.findall(r'<h2 id="(.*?)">(.*?)<a class="anchor-link"', body)
    around = " · ".join(f'<a href="{url}">{text}</a>' for text, url in links.items())
    inside = " · ".join(f'<a href="#{place}">{text}</a>' for place, text in found)
    body = re.sub("<table.*?</table>", r'<div class="wide">\g<0></div>', body, flags=re.DOTALL)
    path.write_text(
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{STYLE}{HtmlFormatter().get_style_defs('.highlight')}</style></head><body>\n"
        f"<nav>{around}</nav>\n<nav>On this page: {inside}</nav>\n{body}</body></html>\n",
        "utf-8",
    )
