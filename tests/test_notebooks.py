"""What every notebook promises its reader."""

import ast
import re

import nbformat
import pytest

from repro.config import ROOT

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


def test_all_are_there():
    assert [path.stem for path in PATHS] == [
        "00_the_method",
        "01_data_prep",
        "02_vq_histograms",
        "03_tag_pretraining",
        "04_content_aware_als",
        "05_baselines",
        "06_cold_start_evaluation",
        "07_seeds",
        "08_studies",
        "09_exposure",
        "10_hearing",
        "11_your_own_taste",
    ]


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
        assert len(cell.source.splitlines()) <= 25, cell.source
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
