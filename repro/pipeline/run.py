"""What a notebook reads and writes: one folder per notebook.

``results/<profile>/<notebook>/`` holds ``artifacts/`` (not committed) for later notebooks, and
``figures/`` and ``tables/`` for readers. It is written as ``<notebook>.partial`` and renamed at the
end, so that it appears whole or not at all. A notebook run by hand writes to ``results/scratch/``.
"""

from __future__ import annotations

import html
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import numpy as np
import pandas as pd
from IPython.display import Image, Markdown, display
from scipy import sparse
from tabulate import tabulate

from repro.config import ROOT, Profile, data_root, named, results_root
from repro.data.files import write_atomically, write_json

PACKAGES = "numpy scipy pandas polars h5py torch numba scikit-learn faiss-cpu nltk"
RECORD = "artifacts/record.json"  # what a notebook was run on and has shown
KEPT = "kept"  # a folder that only an unfinished notebook has, for its next try
NOTEBOOKS = ROOT / "notebooks"
_NUMBER = re.compile(r"[*+−-]*\d|–$")  # what a cell with a number in it begins with
_BOLD = re.compile(r"\*\*([-+−±.,\d\s\[\]~]+)\*\*")  # a cell in Markdown's bold
_CSR = "data", "indices", "indptr", "shape"  # what a saved sparse matrix becomes


def git_commit() -> str:
    """Return the commit, marked ``+changes`` when code differs from it, or ``unknown``."""
    git, code = ["git", "-C", str(ROOT)], ["repro", "notebooks", "requirements.lock"]
    with suppress(OSError, subprocess.CalledProcessError):
        head = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True)
        changed = subprocess.check_output([*git, "status", "--porcelain", "--", *code])
        return head.strip() + ("+changes" if changed else "")
    return "unknown"


def versions() -> dict[str, str]:
    """Return the version of Python and of each library that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES.split():
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def is_full(notebook: Path) -> bool:
    """Return whether a notebook is for ``--full`` alone, because it is slow or reads companions."""
    return "full" in json.loads(notebook.read_text("utf-8"))["metadata"].get("repro", {})


class Checkpoint:
    """The state of a long fit, saved every so many seconds; without a path nothing is kept."""

    def __init__(self, path: Path | None, every: float):
        self._path, self._every, self._saved = path, every, time.monotonic()

    def load(self) -> dict | None:
        """Return what an earlier try has saved last, None if there is nothing to go on from."""
        import torch

        try:
            return torch.load(self._path, weights_only=True) if self._path else None
        except Exception:  # absent or broken, in whatever way: the fit starts from the beginning
            return None

    def save(self, state: Callable[[], dict]) -> None:
        """Save what ``state`` returns (tensors, numbers, strings), if it is time again."""
        import torch

        if self._path and time.monotonic() - self._saved >= self._every:
            with write_atomically(self._path) as file:
                torch.save(state(), file)
            self._saved = time.monotonic()


class Points:
    """The finished settings of a search or a study, one row each, in the order of their computing.

    A file, if one is given, gets a line of JSON per row: an interrupted notebook goes on with it.
    """

    def __init__(self, path: Path | None = None):
        self._path, self._rows = path, {}
        lines = path.read_text("utf-8").splitlines() if path and path.exists() else []
        for line in lines:
            with suppress(ValueError):  # an interruption may have cut a line
                row = json.loads(line)
                self._rows[self._key(row["settings"])] = row

    @staticmethod
    def _key(settings: dict) -> str:
        return json.dumps(settings, sort_keys=True, default=np.generic.item)

    def todo(self, settings: Iterable[dict]) -> Iterator[dict]:
        """Return those of the ``settings`` that have no row yet, one after the other."""
        return (one for one in settings if self._key(one) not in self._rows)

    def add(self, settings: dict, result: dict) -> None:
        """Add the row of one of the settings; numbers, strings and truth values only."""
        line = json.dumps({"settings": settings, "result": result}, default=np.generic.item)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}")  # the line end goes first: the last line may be cut
        self._rows[self._key(settings)] = json.loads(line)

    def frame(self, settings: Iterable[dict] | None = None) -> pd.DataFrame:
        """Return settings and results as columns, one row for each of the ``settings`` (or all)."""
        keys = self._rows if settings is None else map(self._key, settings)
        rows = [self._rows[key] for key in keys]
        return pd.DataFrame([row["settings"] | row["result"] for row in rows])


class Store:
    """What the finished notebooks of one profile have saved, in the first of some ``roots``."""

    def __init__(self, profile: Profile, *roots: Path):
        self.profile, self._roots = profile, roots or (results_root(),)

    def _folders(self) -> list[Path]:
        found = (sorted((root / self.profile.name).glob("[0-9]*")) for root in self._roots)
        return [folder for folders in found for folder in folders if folder.suffix != ".partial"]

    def _find(self, name: str) -> Path:
        for folder in self._folders():
            if (path := folder / name).exists():
                return path
        raise FileNotFoundError(f"{name} is missing: run the earlier notebooks first")

    def load(self, name: str) -> SimpleNamespace:
        """Return what :meth:`Run.save` wrote, each value as an attribute."""
        with np.load(self._find(f"artifacts/{name}.npz"), allow_pickle=False) as archive:
            arrays = dict(archive)
        values = {n: x if x.ndim else x.item() for n, x in arrays.items() if "." not in n}
        for name in [key.removesuffix(".data") for key in arrays if key.endswith(".data")]:
            *parts, shape = (arrays[f"{name}.{part}"] for part in _CSR)
            values[name] = sparse.csr_matrix(tuple(parts), shape=tuple(shape))
        return SimpleNamespace(**values)

    def read_table(self, name: str) -> pd.DataFrame:
        """Return the numbers of a table that :meth:`Run.table` wrote."""
        return pd.read_csv(self._find(f"tables/{name}.csv"))


class Run(Store):
    """One notebook's execution under one profile.

    Parameters
    ----------
    notebook : str
        The notebook's name without ending, such as ``"01_data_prep"``.
    profile : str or Profile, optional
        A name, or, by hand, a profile with other settings; else ``$REPRO_PROFILE``, else ``demo``.
    device : str, optional
        ``"cpu"``, ``"cuda"`` or ``"auto"``; else ``$REPRO_DEVICE``, else a GPU if torch sees one.

    Attributes ``folder`` (where the notebook writes), ``data`` (the raw data: the user's folder, or
    the synthetic world, which companions share) and ``label`` (what the data are). ``by_hand`` says
    that no runner is at work: then nothing is kept for a later try, whose code may be another.
    """

    def __init__(self, notebook: str, profile=None, device: str | None = None):
        if not isinstance(profile, Profile):
            profile = named(profile or os.environ.get("REPRO_PROFILE") or "demo")
        base, _, self._suffix = profile.name.partition("+")
        root, self.by_hand = results_root(), "REPRO_KEY" not in os.environ
        self._changed = profile != named(profile.name)
        super().__init__(profile, *([root / "scratch"] if self.by_hand else []), root)
        own = self._roots[0] / profile.name
        self.folder = own / (notebook if self.by_hand else f"{notebook}.partial")
        self.device, threads = _pick_device(device)
        self.data = data_root()
        if profile.source == "world":
            shared = profile.world == named(base).world
            self.data = (root / base if shared else own) / "world"
        # A synthetic world put in the place of real files says so.
        synthetic = profile.source != "world" and (self.data / "world.json").exists()
        self.label = "synthetic data" if synthetic else profile.label
        for room in ("artifacts", "figures", "tables"):
            (self.folder / room).mkdir(parents=True, exist_ok=True)
        # Only then can a claim of the paper be called reproduced.
        self.on_the_papers_data = profile.source == "msd" and self.label == profile.label
        self._record = {"profile": profile.name, "label": self.label, "seed": profile.seed}
        self._record |= {"device": self.device, "threads": threads, "commit": git_commit()}
        self._record |= {"versions": versions(), "checks": [], "shown": []}
        self._note()

    @property
    def provenance(self) -> str:
        """One line that says what a number was made from."""
        label = f"{self.label} +{self._suffix}" if self._suffix else self.label
        parts = [label, f"seed {self.profile.seed}", self.device]
        with suppress(FileNotFoundError):
            parts += [f"data {self.load('data').digest[:12]}"]  # of the first notebook
        if self._changed:
            parts += ["settings changed by hand"]
        return " · ".join(parts)

    def banner(self) -> None:
        """Show what this run is: profile, data, device, versions, commit, and where it writes."""
        libraries = " ".join(f"{name} {number}" for name, number in versions().items())
        where = f"Run by hand: written to `{self.folder}`; inputs from `scratch` first.  \n"
        text = f"Profile **{self.profile.name}** · {self.provenance}  \n"
        text += where if self.by_hand else ""
        display(Markdown(f"{text}<small>{libraries} · commit {git_commit()}</small>"))

    def _folders(self) -> list[Path]:
        own = self.folder.name.removesuffix(".partial")  # the runner's earlier one is not read
        return [self.folder, *(f for f in super()._folders() if f.name != own)]

    def save(self, name: str, /, **values) -> None:
        """Save arrays, sparse matrices and scalars as ``artifacts/<name>.npz``, without pickle."""
        arrays = {key: np.asarray(x) for key, x in values.items() if not sparse.issparse(x)}
        if bad := [key for key, array in arrays.items() if array.dtype.hasobject]:
            raise TypeError(f"{bad[0]!r} holds Python objects: save numbers or fixed-width strings")
        for key in [key for key in values if key not in arrays]:
            matrix = values[key].tocsr()
            arrays |= {f"{key}.{part}": getattr(matrix, part) for part in _CSR}
        np.savez(self.folder / f"artifacts/{name}.npz", **arrays)

    @property
    def companions(self) -> dict[str, Store]:
        """What the profile's companions have saved, those that are finished, by suffix."""
        wanted = {path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb") if not is_full(path)}
        stores = {s: Store(named(f"{self.profile.name}+{s}")) for s in self.profile.companions}
        return {s: o for s, o in stores.items() if wanted <= {f.name for f in o._folders()}}

    @property
    def seeds(self) -> list[Store]:
        """This run, and those companions that are the same under another seed."""
        return [self, *(one for name, one in self.companions.items() if name.startswith("seed"))]

    def points(self, name: str) -> Points:
        """Return a table of finished settings, kept for the next try; in memory by hand."""
        path = self.folder / KEPT / f"{quote(name, safe='')}.jsonl"
        return Points(None if self.by_hand else path)

    def checkpoint(self, name: str, every: float | None = None) -> Checkpoint:
        """Return a checkpoint for this run and device: a GPU's random state is nothing to a CPU."""
        seconds = os.environ.get("REPRO_CHECKPOINT_SECONDS") or 60 if every is None else every
        path = self.folder / KEPT / f"{quote(f'{name} {self.device}', safe='')}.pt"
        return Checkpoint(None if self.by_hand else path, float(seconds))

    def figure(self, fig, name: str, caption: str) -> None:
        """Save a figure as PNG and PDF with its provenance in a footer, show it, and close it."""
        import matplotlib.pyplot as plt

        # Below the lower edge: a tight bounding box makes room there, so it covers no label.
        fig.text(1, 0, self.provenance, ha="right", va="top", fontsize=6, color="0.5")
        png, pdf = (self.folder / "figures" / f"{name}.{ending}" for ending in ("png", "pdf"))
        fig.savefig(png, dpi=150, bbox_inches="tight")
        # The date of creation is the only part that would differ between two runs.
        fig.savefig(pdf, bbox_inches="tight", metadata={"CreationDate": None})
        plt.close(fig)  # else the notebook shows it a second time at the end of the cell
        self._note(shown={"kind": "figure", "name": name, "caption": caption})
        width = int.from_bytes(png.read_bytes()[16:20], "big") * 96 // 150  # in a browser's pixels
        display(Image(png, width=width, alt=caption), Markdown(f"*{caption}*"))

    def table(self, frame: pd.DataFrame, name: str, caption: str, note="", shown=None) -> None:
        """Save a table of numbers as CSV, and show it, typeset, on the page, in Markdown and LaTeX.

        Parameters
        ----------
        frame : DataFrame
            One number or name per cell, in full precision; an index that merely counts is left out.
        note : str
            What the reader must know to read it; stands below, with the provenance.
        shown : DataFrame or False, optional
            What :func:`repro.evaluation.tables.typeset` makes of it for the page; None shows
            ``frame`` itself, and False a link to the CSV, no more.
        """
        self._note(shown={"kind": "table", "name": name, "caption": caption})
        path = self.folder / "tables" / f"{name}.csv"
        frame.to_csv(path, index=not isinstance(frame.index, pd.RangeIndex), lineterminator="\n")
        if shown is False:
            display(Markdown(f"{caption}: [{name}.csv](tables/{name}.csv), {len(frame)} rows"))
            return
        below = " · ".join(filter(None, [note, self.provenance]))
        markdown, latex = _drawn(frame if shown is None else shown)
        page = f"**{caption}**\n\n{markdown}\n\n<small>{html.escape(below)}</small>\n"
        path.with_suffix(".md").write_text(page, "utf-8")
        path.with_suffix(".tex").write_text(f"% {caption} ({below})\n{latex}\n", "utf-8")
        # The class keeps MathJax from reading the dollar signs in artists' names.
        display(Markdown(f'<div class="tex2jax_ignore">\n\n{page}\n</div>'))

    def check(self, claim: str, holds) -> None:
        """Print that a claim holds, or raise an AssertionError that states it."""
        if not holds:
            raise AssertionError(claim)
        self._note(checks=claim)
        print(f"ok  {claim}")

    def _note(self, **entries) -> None:
        for kind, entry in entries.items():
            self._record[kind].append(entry)
        unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        write_json(self.folder / RECORD, self._record | {"peak_mib": round(peak, 1)})


def _pick_device(wanted: str | None) -> tuple[str, int]:
    """Return the device, a GPU by default if torch sees one, and torch's number of threads."""
    import torch

    wanted = wanted or os.environ.get("REPRO_DEVICE") or "auto"
    found = "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and found == "cpu":
        raise ValueError("device 'cuda' was asked for, but torch sees no GPU")
    return found, torch.get_num_threads()


def _drawn(frame: pd.DataFrame) -> tuple[str, str]:
    """Return a frame as a table in Markdown and in LaTeX."""
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index(names=[str(n or "") for n in frame.index.names])
    cells = frame.astype(object).map(_text)
    numbers = [column.str.match(_NUMBER).all() for _, column in cells.items()]
    how = {"headers": "keys", "showindex": False, "disable_numparse": True}
    how["colalign"] = ["right" if number else "left" for number in numbers]
    latex = tabulate(cells, tablefmt="latex_booktabs", **how)
    markdown = tabulate(cells.map(_safe).rename(columns=_safe), tablefmt="pipe", **how)
    return markdown, _BOLD.sub(r"\\textbf{\1}", latex)


def _text(value) -> str:
    written = f"{value:.3f}" if isinstance(value, float) else str(value)
    return "–" if pd.isna(value) else written


def _safe(text: str) -> str:
    """Escape names of artists and tags, other people's text: "A$AP" must start no formula."""
    return html.escape(text, quote=False).replace("|", "&#124;").replace("$", "&#36;")
