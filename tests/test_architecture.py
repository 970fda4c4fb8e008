"""The package keeps its shape: algorithms know nothing of paths, profiles or plots."""

import ast
import json
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "repro"
MODULES = sorted(PACKAGE.glob("*.py"))
ALGORITHMS = {"vq", "tagnet", "als", "wmf", "poisson", "regression", "metrics", "splits"}
MACHINERY = ["results", "runner", "report", "config", "synthetic"]
MACHINERY += ["sources", "readers", "datasets", "fetch"]
SURROUNDINGS = {
    "pathlib",
    "os",
    "io",
    "shutil",
    "tempfile",
    "sys",
    "matplotlib",
    "seaborn",
    "IPython",
}


def code_of(path):
    """Return the code of a module or of a notebook."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf8")
    cells = json.loads(path.read_text(encoding="utf8"))["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")


def imports(path):
    """Return the dotted names that a module or a notebook imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(code_of(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ("repro." if node.level else "") + (node.module or "")
            found |= {f"{base.rstrip('.')}.{alias.name}" for alias in node.names}
    return found


def of_ours(path):
    parts = [name.split(".") for name in imports(path)]
    return {part[1] for part in parts if part[0] == "repro" and len(part) > 1}


def test_every_algorithm_is_there():
    assert {path.stem for path in MODULES} >= ALGORITHMS


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_algorithm_stands_alone(name):
    path = PACKAGE / f"{name}.py"
    assert of_ours(path) <= {"parallel", "vectors"} | ({"als"} if name == "wmf" else set())
    assert not {found.split(".")[0] for found in imports(path)} & SURROUNDINGS
    called = {n.func.id for n in ast.walk(ast.parse(path.read_text(encoding="utf8")))
              if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
    assert not called & {"open", "print", "input", "exec", "eval"}


@pytest.mark.parametrize("name", MACHINERY)
def test_machinery_knows_no_algorithm(name):
    assert not of_ours(PACKAGE / f"{name}.py") & ALGORITHMS


@pytest.mark.parametrize("name", ["tables", "plots", "paper"])
def test_presentation_knows_only_metrics_and_the_papers_numbers(name):
    assert of_ours(PACKAGE / f"{name}.py") <= {"metrics", "paper"}
    assert not {found.split(".")[0] for found in imports(PACKAGE / f"{name}.py")} & {
        "pathlib",
        "os",
    }


ROOT = PACKAGE.parent
EVERYTHING = [
    *MODULES,
    *sorted(ROOT.glob("benchmarks/*.py")),
    *sorted(ROOT.glob("notebooks/*.ipynb")),
]
SQL = re.compile(r"\b(SELECT|INSERT|UPDATE|DELETE)\b.*\b(FROM|INTO|SET)\b", re.DOTALL)


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_nothing_runs_or_unpacks_what_it_reads(path):
    tree = ast.parse(code_of(path))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = {getattr(call.func, "attr", getattr(call.func, "id", "")) for call in calls}
    imported = imports(path)
    roots = {found.split(".")[0] for found in imported}
    assert not roots & {"pickle", "dill", "urllib3", "httpx"}
    assert not [found for found in imported if found.startswith("urllib.request")]
    assert not named & {"extractall", "extract", "unpack_archive", "read_pickle", "to_pickle"}
    assert not named & {"popen", "urlopen", "urlretrieve"}
    assert not {ast.unparse(call.func) for call in calls} & {"os.system", "os.popen"}
    if path.parent != ROOT / "benchmarks":  # a peer runs on joblib; a function is named system
        assert "joblib" not in roots and "system" not in named
    assert not {call.func.id for call in calls if isinstance(call.func, ast.Name)} & {
        "eval",
        "exec",
    }
    for call in calls:
        given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        assert given.get("allow_pickle", False) is False
        assert given.get("weights_only", True) is True
        assert given.get("shell", False) is False
        assert given.get("verify", True) is True
        if ast.unparse(call.func) == "torch.load":
            assert given.get("weights_only") is True
    for node in ast.walk(tree):  # no SQL is put together from values
        if isinstance(node, ast.JoinedStr):
            assert not SQL.search("".join(getattr(v, "value", "") or "" for v in node.values
                                          if isinstance(v, ast.Constant)))  # fmt: skip
