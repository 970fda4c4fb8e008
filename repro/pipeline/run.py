"""Where a notebook's run puts what it makes: artefacts, figures, tables, checks, one journal.

Everything lives in ``results/<profile>/``: ``artifacts/`` (not committed) is what one notebook
hands to the next, ``figures/`` and ``tables/`` are for readers. A file appears under its name only
when it is complete, and the journal lists each with its digest.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from IPython.display import Image, Markdown, display
from scipy import sparse
from tabulate import tabulate

from repro.config import Profile, named

ROOT = Path(__file__).resolve().parents[2]
_NUMBER = re.compile(r"[*+−-]*\d|–$")  # what a cell with a number in it begins with
_BOLD = re.compile(r"\*\*([-+−±.,\d\s\[\]~]+)\*\*")  # a cell in Markdown's bold
PACKAGES = ("numpy", "scipy", "pandas", "polars", "h5py", "torch", "scikit-learn", "nltk")


def results_root() -> Path:
    """Return the folder of all results: ``$REPRO_RESULTS``, else ``results`` in the repository."""
    return Path(os.environ.get("REPRO_RESULTS") or ROOT / "results").absolute()


def data_root() -> Path:
    """Return the folder of the raw data: ``$REPRO_DATA``, else ``data`` in the repository."""
    return Path(os.environ.get("REPRO_DATA") or ROOT / "data").absolute()


@contextmanager
def atomic(path: Path):
    """Open a temporary binary file that takes the name ``path`` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:  # a full disk does not say of which file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def alone(lock: Path, otherwise: str):
    """Hold a lock file, or raise BlockingIOError with the given message if another process does."""
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise BlockingIOError(otherwise) from None
    try:
        yield
    finally:
        held.release()


def write_json(path: Path, value) -> None:
    """Write ``value`` as readable JSON, NumPy scalars as plain numbers."""
    with atomic(path) as file:
        file.write(json.dumps(value, indent=1, default=lambda x: x.item()).encode() + b"\n")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_full(notebook: Path) -> bool:
    """Return whether a notebook is for ``--full`` alone, because it is slow or reads companions."""
    metadata = json.loads(notebook.read_text("utf-8"))["metadata"]
    return metadata.get("repro", {}).get("full", False)


def kept_trial(path: Path, key: str) -> dict | None:
    """Return a trial's result if the run of that key stored it, else None."""
    try:
        kept = json.loads(path.read_text("utf-8"))
        return kept["result"] if kept["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def checkpoint_name(key: str, name: str = "") -> str:
    """Return the file name of a checkpoint, which begins with what stands for the run's key."""
    return f"{key[:16]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"


def _save_arrays(path: Path, values: dict) -> None:
    packed = {}
    for key, value in values.items():
        packed |= _pack(key, value)
    with atomic(path) as file:
        np.savez(file, **packed)  # no objects: _pack refuses them


def shown_width(png: Path) -> int:
    """Return the width in a browser's pixels (96 an inch) of an image made at 150 an inch."""
    return int.from_bytes(png.read_bytes()[16:20], "big") * 96 // 150


def git_commit() -> str:
    """Return the commit, marked ``+changes`` when code differs from it, or ``unknown``."""

    def git(*words):
        return subprocess.run(
            ["git", "-C", ROOT, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "repro", "notebooks", "requirements.lock")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Return the version of Python and of each library that can change a number."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _peak_mib() -> float:
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _pick_device(wanted: str | None) -> str:
    import torch

    wanted = wanted or os.environ.get("REPRO_DEVICE") or "auto"
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {wanted!r} was asked for, but torch sees no GPU")
    return wanted


def _pack(name: str, value) -> dict[str, np.ndarray]:
    """Return ``value`` as plain arrays; a sparse matrix becomes five of them."""
    if sparse.issparse(value):
        value = value if value.format in ("csr", "csc") else value.tocsr()
        parts = {part: getattr(value, part) for part in ("data", "indices", "indptr", "shape")}
        parts["kind"] = type(value).__name__
        return {f"{name}.{part}": np.asarray(array) for part, array in parts.items()}
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise TypeError(f"{name!r} holds Python objects: save numbers or fixed-width strings")
    return {name: array}


def _unpack(arrays: dict[str, np.ndarray]) -> dict:
    values = {}
    for key, array in arrays.items():
        name, _, part = key.partition(".")
        if not part:
            values[name] = array.item() if array.ndim == 0 else array
        elif part == "kind":
            kinds = {k.__name__: k for k in (sparse.csr_array, sparse.csc_array)}
            kinds |= {k.__name__: k for k in (sparse.csr_matrix, sparse.csc_matrix)}
            parts = tuple(arrays[f"{name}.{p}"] for p in ("data", "indices", "indptr"))
            values[name] = kinds[array.item()](parts, shape=tuple(arrays[f"{name}.shape"]))
    return values


def _formatted(frame: pd.DataFrame) -> tuple[list, list, list]:
    """Return a frame's header, rows of text and column alignments."""
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index(names=[str(n or "") for n in frame.index.names])

    def text(value):
        if pd.api.types.is_scalar(value) and pd.isna(value):
            return "–"
        return f"{value:.3f}" if isinstance(value, float | np.floating) else str(value)

    rows = [[text(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    numbers = [all(map(_NUMBER.match, column)) for column in zip(*rows, strict=True)]
    return [str(c) for c in frame.columns], rows, ["right" if n else "left" for n in numbers]


def _markdown_safe(text: str) -> str:
    # Names of artists and tags are other people's text: "A$AP" must not start a formula.
    return html.escape(text, quote=False).replace("|", "&#124;").replace("$", "&#36;")


class Checkpoint:
    """The state of a long fit, kept on disk so that the next try can go on from it.

    Parameters
    ----------
    path : Path
    every : float
        Seconds between two savings.
    """

    def __init__(self, path: Path, every: float):
        self._path, self._every, self._saved = path, every, time.monotonic()

    def load(self) -> dict | None:
        """Return what an earlier try has saved last, None if there is nothing to go on from."""
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                return _unpack(dict(archive))
        except (OSError, ValueError, EOFError, LookupError, zipfile.BadZipFile):
            return None

    def save(self, state: Callable[[], dict]) -> None:
        """Save what ``state`` returns (arrays, sparse matrices, scalars), if it is time again."""
        if time.monotonic() - self._saved >= self._every:
            _save_arrays(self._path, state())
            self._saved = time.monotonic()


class Points:
    """The finished settings of a search or a study, one row each, in the order of their computing.

    A file, where there is one, gets a line per row as it is added: an interrupted notebook goes on
    with the rows that are not there yet.

    Parameters
    ----------
    path : Path, optional
        A file of JSON lines; None keeps the rows in memory alone.
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        self._rows: dict[str, dict] = {}
        if path is None or not path.exists():
            return
        for line in path.read_text("utf-8").splitlines():
            with suppress(ValueError):  # the last line of an interrupted run may be cut
                row = json.loads(line)
                self._rows[self._key(row["settings"])] = row

    @staticmethod
    def _key(settings: dict) -> str:
        return json.dumps(settings, sort_keys=True, default=lambda x: x.item())

    def todo(self, settings: Iterable[dict]) -> Iterator[dict]:
        """Return those of the ``settings`` that have no row yet, one after the other."""
        return (one for one in settings if self._key(one) not in self._rows)

    def add(self, settings: dict, result: dict) -> None:
        """Add the row of one of the settings; numbers, strings and truth values only."""
        row = {"settings": settings, "result": result}
        line = json.dumps(row, default=lambda x: x.item())
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        self._rows[self._key(settings)] = json.loads(line)

    def frame(self, settings: Iterable[dict]) -> pd.DataFrame:
        """Return settings and results as columns, one row for each of the ``settings``."""
        rows = [self._rows[self._key(one)] for one in settings]
        return pd.DataFrame([row["settings"] | row["result"] for row in rows])


class Store:
    """What the notebooks have saved under one profile, to be read.

    Parameters
    ----------
    profile : Profile
    """

    def __init__(self, profile: Profile):
        self.profile = profile
        self.folder = results_root() / profile.name
        self.artifacts = self.folder / "artifacts"

    def load(self, name: str) -> SimpleNamespace:
        """Return what :meth:`Run.save` wrote, each value as an attribute."""
        path = self.artifacts / f"{name}.npz"
        if not path.exists():
            raise FileNotFoundError(f"artifact {name!r} is missing: run {_maker(name)} first")
        with np.load(path, allow_pickle=False) as archive:
            return SimpleNamespace(**_unpack(dict(archive)))


class Run(Store):
    """One notebook's execution under one profile, everything it makes entered in a journal.

    Parameters
    ----------
    notebook : str
        The notebook's name without ending, such as ``"01_data_prep"``.
    profile : str, optional
        A name for :func:`repro.config.named`; else ``$REPRO_PROFILE``, else ``"demo"``.
    device : str, optional
        ``"cpu"``, ``"cuda"`` or ``"auto"``; else ``$REPRO_DEVICE``, else a GPU if torch sees one.

    Attributes
    ----------
    profile : Profile
    device : str
    folder : Path
        ``results/<profile>``.
    artifacts : Path
        What notebooks hand to each other, ``folder / "artifacts"``.
    data : Path
        The raw data: the synthetic world among the artefacts, where companions find that of their
        base, or the user's data folder.
    """

    def __init__(self, notebook: str, profile: str | None = None, device: str | None = None):
        super().__init__(named(profile or os.environ.get("REPRO_PROFILE") or "demo"))
        self.notebook = notebook
        self.device = _pick_device(device)
        base, _, self._suffix = self.profile.name.partition("+")
        world = results_root() / base / "artifacts" / "world"
        self.data = world if self.profile.source == "world" else data_root()
        lock = results_root() / base / "artifacts" / "lock"
        if "REPRO_KEY" not in os.environ and lock.exists():  # by hand
            with alone(lock, f"a run is at work in {lock.parents[1]}: wait until it has ended"):
                pass
        self._tried: set[str] = set()
        self._started = time.monotonic()
        self._journal = {
            "notebook": notebook,
            "profile": self.profile.name,
            "label": self.label,
            "seed": self.profile.seed,
            "device": self.device,
            "threads": self.threads,
            "commit": git_commit(),
            "versions": versions(),
            "outputs": {},
            "shown": [],
            "facts": {},
            "checks": [],
        }
        self._write()

    @property
    def label(self) -> str:
        """What the data are; a synthetic world put in the place of real files says so."""
        synthetic = self.profile.source != "world" and (self.data / "world.json").exists()
        return "synthetic data" if synthetic else self.profile.label

    @property
    def on_the_papers_data(self) -> bool:
        """Whether a claim of the paper can be called reproduced by this run."""
        return self.profile.source == "msd" and self.label == self.profile.label

    @property
    def threads(self) -> int:
        """Number of threads of torch's linear algebra."""
        import torch

        return torch.get_num_threads()

    @property
    def fingerprint(self) -> str | None:
        """Short digest of the raw data, a fact that the first notebook states; None before."""
        for path in sorted((self.artifacts / "journal").glob("*.json")):
            found = json.loads(path.read_text("utf-8"))["facts"].get("fingerprint")
            if found:
                return str(found)[:12]
        return None

    @property
    def provenance(self) -> str:
        """One line that says what a number was made from."""
        label = f"{self.label} +{self._suffix}" if self._suffix else self.label
        parts = [label, f"seed {self.profile.seed}", self.device]
        return " · ".join(parts + ([f"data {self.fingerprint}"] if self.fingerprint else []))

    def banner(self) -> None:
        """Show what this run is: profile, data, device, versions, commit."""
        libraries = " ".join(f"{name} {number}" for name, number in versions().items())
        display(
            Markdown(
                f"Profile **{self.profile.name}** · {self.provenance} · {self.threads} threads  \n"
                f"<small>{libraries} · commit {git_commit()}</small>"
            )
        )

    def save(self, name: str, /, **values) -> None:
        """Save arrays, sparse matrices and scalars as ``artifacts/<name>.npz``, without pickle."""
        path = self.artifacts / f"{name}.npz"
        _save_arrays(path, values)
        self._made(path)

    def companion(self, suffix: str) -> Store:
        """Return what the profile's companion of that suffix has saved, if it is finished."""
        store = Store(named(f"{self.profile.name}+{suffix}"))
        for notebook in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
            stamp = store.artifacts / "stamps" / f"{notebook.stem}.json"
            if not (is_full(notebook) or stamp.exists()):
                raise FileNotFoundError(
                    f"{store.profile.name} lacks {notebook.stem}: "
                    f"run ./run_all.sh --profile {self.profile.name} --full first"
                )
        return store

    @property
    def companions(self) -> dict[str, Store]:
        """Those of the profile's companions that are finished, by suffix."""
        finished = {}
        for suffix in self.profile.companions:
            with suppress(FileNotFoundError):
                finished[suffix] = self.companion(suffix)
        return finished

    def trial(self, name: str, compute: Callable[[], dict]) -> dict:
        """Return what ``compute`` returns, from a file if this very run has computed it before.

        So a long notebook goes on where it was interrupted. Nothing is kept when a notebook is run
        by hand, for nobody knows what it was computed from.

        Parameters
        ----------
        name : str
            Tells the trial from the notebook's others.
        compute : callable
            Returns a flat dict of numbers, strings and truth values.
        """
        key = os.environ.get("REPRO_KEY")  # the runner's; it changes with all that counts
        if key and name in self._tried:
            raise ValueError(f"two trials are named {name!r}")
        self._tried.add(name)
        file = f"{hashlib.sha256(name.encode()).hexdigest()}.json"
        path = self.artifacts / "trials" / self.notebook / file
        if key and (kept := kept_trial(path, key)) is not None:
            return kept
        # Plain from the first, so that the result is the same whether computed or read.
        result = {k: v.item() if isinstance(v, np.generic) else v for k, v in compute().items()}
        for entry, value in result.items():
            if type(entry) is not str or type(value) not in (float, int, str, bool):
                raise TypeError(f"trial {name!r}: {entry!r} is neither a number nor a string")
        if key:
            write_json(path, {"key": key, "name": name, "result": result})
        return result

    def points(self, name: str) -> Points:
        """Return a table of finished settings, kept for this very run; in memory by hand."""
        key = os.environ.get("REPRO_KEY")
        file = checkpoint_name(key, name).replace(".npz", ".jsonl") if key else ""
        return Points(self._checkpoints / file if key else None)

    def checkpoint(self, name: str) -> Checkpoint | None:
        """Return a checkpoint for this very run, None when the notebook is run by hand."""
        key = os.environ.get("REPRO_KEY")
        every = float(os.environ.get("REPRO_CHECKPOINT_SECONDS") or 60)
        if not key:
            return None
        # A state of the GPU's random numbers means nothing to a CPU.
        return Checkpoint(self._checkpoints / checkpoint_name(key, f"{name} {self.device}"), every)

    def part(self, name: str, compute: Callable[[], dict]) -> dict:
        """Return what ``compute`` returns, or what it returned in an earlier try of this very run.

        As :meth:`trial`, for arrays, and forgotten once the notebook is done.
        """
        if (key := os.environ.get("REPRO_KEY")) is None:
            return compute()
        kept = Checkpoint(self._checkpoints / checkpoint_name(key, name), 0.0)
        if (found := kept.load()) is None:
            found = compute()
            kept.save(lambda: found)
        return found

    @property
    def _checkpoints(self) -> Path:
        return self.artifacts / "checkpoints" / self.notebook

    def figure(self, fig, name: str, caption: str) -> None:
        """Save a figure as PNG and PDF with its provenance in a footer, show it, and close it."""
        import matplotlib.pyplot as plt

        # Below the lower edge: a tight bounding box makes room there, so it covers no label.
        fig.text(1, 0, self.provenance, ha="right", va="top", fontsize=6, color="0.5")
        png, pdf = (self.folder / "figures" / f"{name}.{ending}" for ending in ("png", "pdf"))
        with atomic(png) as file:
            fig.savefig(file, format="png", dpi=150, bbox_inches="tight")
        with atomic(pdf) as file:
            metadata = {"CreationDate": None}  # the only part that would differ between two runs
            fig.savefig(file, format="pdf", bbox_inches="tight", metadata=metadata)
        plt.close(fig)  # else the notebook shows it a second time at the end of the cell
        self._shown("figure", name, caption)
        self._made(png, pdf)
        display(Image(png, width=shown_width(png), alt=caption), Markdown(f"*{caption}*"))

    def table(
        self,
        frame: pd.DataFrame,
        name: str,
        caption: str,
        note: str = "",
        shown: pd.DataFrame | bool | None = None,
    ) -> None:
        """Save a table of numbers as CSV, and show it, typeset, on the page, in Markdown and LaTeX.

        The index is a column of the table unless it merely counts the rows.

        Parameters
        ----------
        frame : DataFrame
            One number or name per cell; goes to the CSV in full precision.
        note : str
            What the reader must know to read it; stands below, with the provenance.
        shown : DataFrame or False, optional
            The same for the page, as :func:`repro.evaluation.tables.typeset` makes it, bold cells
            between ``**``; None shows ``frame`` itself, and False a link to the CSV, no more.
        """
        counted = isinstance(frame.index, pd.RangeIndex)
        texts = {"csv": frame.to_csv(index=not counted, lineterminator="\n")}
        below = " · ".join(filter(None, [note, self.provenance]))
        if shown is not False:
            header, rows, align = _formatted(frame if shown is None else shown)

            def drawn(style, head=header, body=rows):
                return tabulate(body, head, tablefmt=style, disable_numparse=True, colalign=align)

            safe_rows = [[_markdown_safe(cell) for cell in row] for row in rows]
            markdown = drawn("pipe", [_markdown_safe(cell) for cell in header], safe_rows)
            latex = _BOLD.sub(r"\\textbf{\1}", drawn("latex_booktabs"))
            texts["md"] = f"**{caption}**\n\n{markdown}\n\n<small>{html.escape(below)}</small>\n"
            texts["tex"] = f"% {' '.join(caption.split())} ({below})\n{latex}\n"
        paths = [self.folder / "tables" / f"{name}.{ending}" for ending in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            with atomic(path) as file:
                file.write(text.encode())
        self._shown("table", name, caption)
        self._made(*paths)
        if shown is False:
            display(Markdown(f"{caption}: [{name}.csv](../tables/{name}.csv), {len(frame)} rows"))
            return
        # The class keeps MathJax from reading the dollar signs in artists' names.
        page = f"<p><b>{html.escape(caption)}</b></p>"
        cells = re.sub("<(t[dh])>", r'<\1 style="text-align: left;">', drawn("html"))
        cells = _BOLD.sub(r"<b>\1</b>", cells)
        page += f'<div class="tex2jax_ignore">{cells}</div>'
        page += f"<p><small>{html.escape(below)}</small></p>"
        plain = f"{caption}\n{drawn('simple')}\n{below}"
        display({"text/html": page, "text/plain": plain}, raw=True)

    def fact(self, **values) -> None:
        """Enter small named values (numbers, strings) in the journal and so in the manifest."""
        self._journal["facts"] |= values
        self._write()

    def check(self, claim: str, holds) -> None:
        """Print that a claim holds, or raise an AssertionError that states it."""
        if not holds:
            raise AssertionError(claim)
        self._journal["checks"].append(claim)
        self._write()
        print(f"ok  {claim}")

    def _made(self, *paths: Path) -> None:
        for path in paths:
            self._journal["outputs"][path.relative_to(self.folder).as_posix()] = digest(path)
        self._write()

    def _shown(self, kind: str, name: str, caption: str) -> None:
        self._journal["shown"].append({"kind": kind, "name": name, "caption": caption})

    def _write(self) -> None:
        self._journal["seconds"] = round(time.monotonic() - self._started, 2)
        self._journal["peak_mib"] = _peak_mib()
        write_json(self.artifacts / "journal" / f"{self.notebook}.json", self._journal)


def _maker(name: str) -> str:
    """Return the notebook whose source saves that artefact."""
    saves = re.compile(rf"""\.save\(\s*\\?["']{re.escape(name)}\\?["']""")
    for notebook in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        if saves.search(notebook.read_text("utf-8")):
            return notebook.stem
    return "an earlier notebook"
