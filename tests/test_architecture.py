"""The package keeps its shape: who may import whom, and what nothing may do."""

import ast
import json

import pytest

from repro.config import ROOT

PACKAGE = ROOT / "repro"
# What a room may import of the package; a room is a folder, or a module beside the folders.
ARROWS = {
    "config": [],
    "kernels": [],
    "data": ["config", "data"],
    "models": ["kernels", "models"],
    "evaluation": ["kernels", "evaluation"],
    "systems": ["config", "models", "evaluation.metrics", "kernels"],
    "pipeline": ["config", "data.files", "pipeline"],
    "__main__": ["config", "data.files", "pipeline"],
    "__init__": [],
}
PURE = "kernels", "models", "evaluation", "systems"  # they know no files, screens or settings
SURROUNDINGS = {"pathlib", "os", "shutil", "tempfile", "sys", "subprocess", "IPython", "requests"}
MODULES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = [
    *MODULES,
    *sorted(ROOT.glob("benchmarks/*.py")),
    *sorted(ROOT.glob("notebooks/*.ipynb")),
]


def code_of(path):
    """Return the code of a module or of a notebook."""
    if path.suffix == ".py":
        return path.read_text("utf-8")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def imports(path):
    """Return the dotted names that a module or a notebook imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(code_of(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            assert "repro" not in {a.name[:5] for a in node.names}  # the runner reads "from"
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_its_room_may(path):
    allowed = ARROWS[room(path)]
    assert not [name for name in imports(path) if name.startswith(".")]
    ours = {name.removeprefix("repro.") for name in imports(path) if name.startswith("repro.")}
    strange = {n for n in ours if not any(f"{n}.".startswith(f"{to}.") for to in allowed)}
    assert not strange


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) in PURE], ids=lambda p: p.stem)
def test_the_computing_rooms_know_no_surroundings(path):
    names = {name.split(".")[0] for name in imports(path)}
    assert not names & SURROUNDINGS
    if room(path) != "evaluation":
        assert not names & {"matplotlib", "seaborn"}
    calls = [node for node in ast.walk(ast.parse(code_of(path))) if isinstance(node, ast.Call)]
    assert not {ast.unparse(call.func) for call in calls} & {"open", "print", "input"}


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_nothing_unpacks_objects_or_downloads_by_other_ways(path):
    """What ruff's S rules do not see; pickle, shells, eval, SQL of strings and the like they do."""
    names = imports(path)
    assert not {name.split(".")[0] for name in names} & {"dill", "urllib3", "httpx"}
    assert not {"joblib.load", "joblib.dump", "joblib"} & names  # which unpack objects
    for call in ast.walk(ast.parse(code_of(path))):
        if isinstance(call, ast.Call):
            given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
            assert given.get("allow_pickle", False) is False
            assert given.get("weights_only") is True or ast.unparse(call.func) != "torch.load"
            assert not {"read_pickle", "to_pickle"} & {getattr(call.func, "attr", "")}
