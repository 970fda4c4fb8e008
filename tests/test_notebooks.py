"""What every notebook promises its reader."""

import ast
import re

import nbformat
import numpy as np
import pytest

from repro.config import ROOT
from repro.evaluation import tables

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CHECKED = "nbval-check-output"


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=4)


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_are_there_and_in_the_readme():
    assert [int(path.stem[:2]) for path in PATHS] == list(range(12))
    text = (ROOT / "README.md").read_text("utf-8")
    assert [path.name for path in PATHS if f"(notebooks/{path.name})" not in text] == []


def test_what_the_paper_is_said_to_have_printed_is_in_its_tables(notebook):
    """A mean, a difference of two, or what chance would have: mistyped numbers are found."""
    known = {tables.CHANCE}
    for rows in tables.PRINTED.values():
        for column in rows.to_numpy().T:
            known |= {*column, *np.subtract.outer(column, column).ravel()}
    written = {f"{x:{sign}.4f}" for x in known for sign in ("", "+")}
    text = "\n".join(cell.source for cell in notebook.cells)
    assert {*re.findall(r"(?<![\w.])[+-]?0\.\d{4}\b", text)} <= written
    times = {f"{x / tables.CHANCE:.1f}" for x in tables.PRINTED["out-of-matrix"]["R@40"]}
    assert {*re.findall(r"\(the paper(?:'s best)?: (\d+\.\d)\)", text)} <= times


def test_it_is_valid_and_names_no_private_kernel(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata


def test_one_cell_takes_the_parameters(code):
    (cell,) = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    names = [line.split(" = None")[0] for line in cell.source.splitlines()]
    assert names in (["profile", "device"], ["profile", "liked", "device"])


def test_it_opens_with_a_title_and_closes_with_checks(notebook):
    assert notebook.cells[0].source.startswith("# ")
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE)[-1].strip() == "Checks"


def test_there_is_at_least_as_much_text_as_code(notebook, code):
    assert 2 * len(code) <= len(notebook.cells)


def test_cells_are_short_and_define_only_short_functions(code):
    for cell in code:
        assert len(cell.source.splitlines()) <= 20, cell.source
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef), cell.source
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 12, cell.source


def test_it_installs_nothing_and_knows_no_absolute_path(code):
    for cell in code:
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), cell.source
        assert not re.search(r"""["'](/|~|[A-Za-z]:\\)\w""", cell.source), cell.source


def test_only_compared_outputs_are_stored(code):
    for cell in code:
        stored = [
            output.get("text") or output.get("data", {}).get("text/plain")
            for output in cell.outputs
        ]
        if CHECKED in cell.metadata.get("tags", []):
            # nbval passes a cell without stored output: it would compare nothing.
            assert stored and all(stored), cell.source
        else:
            assert not stored, cell.source


def test_some_output_is_compared(code):
    assert any(CHECKED in cell.metadata.get("tags", []) for cell in code)
