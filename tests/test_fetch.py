"""Downloads from a server on loopback that is slow, lies, breaks off or sends one elsewhere."""

import errno
import hashlib
import io
import json
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import h5py
import pooch
import pytest
from folders import write_subset

from repro.__main__ import main
from repro.config import PROFILES
from repro.data import files
from repro.data.files import Source


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in members.items():
            archive.writestr(f"{name}.dat", text)
    return file.getvalue()


GOOD = zipped(artists="id\tname\n1\tAnn\n" * 4000)


class Server(ThreadingHTTPServer):
    """Answers every path as ``answers`` says; ``asked`` has what was asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.asked = {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        answer = self.server.answers.get(self.path)
        if callable(answer):
            return answer(self)
        self.give(answer) if answer is not None else self.send_error(404)

    def give(self, content, length=None, kind=200, **headers):
        self.send_response(kind)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(files, "_TIMEOUT", 1.0)


@pytest.fixture
def wanted(tmp_path):
    digest = f"md5:{hashlib.md5(GOOD, usedforsecurity=False).hexdigest()}"
    about = "tags", "example.org", "3 MB", "research"
    url = "https://files.grouplens.org/tags.zip"
    return Source(tmp_path / "data" / "tags.zip", *about, url, digest=digest)


def get(source, server):
    return files.fetch(source, mirror=server.url, progress=False)


def left(source):
    """Return the names of all files in the folder."""
    names = {path.name for path in source.path.parent.rglob("*") if path.is_file()}
    return sorted(names - {".fetching.lock"})


def test_a_file_comes_whole_and_is_noted(server, wanted):
    server.answers["/tags.zip"] = GOOD
    assert get(wanted, server) is True
    assert wanted.path.read_bytes() == GOOD
    assert left(wanted) == [files.NOTES, "tags.zip"]
    note = json.loads(wanted.path.with_name(files.NOTES).read_text())["tags.zip"]
    assert note["sha256"] == hashlib.sha256(GOOD).hexdigest() and note["from"].endswith("/tags.zip")
    server.asked.clear()
    assert get(wanted, server) is False and not server.asked


def cut(handler):
    handler.give(GOOD[: len(GOOD) // 2], length=len(GOOD))


def stalled(handler):
    handler.give(GOOD[:100], length=len(GOOD))
    handler.wfile.flush()
    time.sleep(3)


def in_a_circle(handler):
    handler.give(b"", kind=302, Location="/tags.zip")


FAULTS = {
    "truncated": (cut, "IncompleteRead"),
    "stalled": (stalled, "timed out"),
    "corrupted": (GOOD[:50] + b"x" + GOOD[51:], "hash"),
    "a page in its place": (b"<html>Please log in</html>", "hash"),
    "in a circle": (in_a_circle, "redirects"),
    "missing": (None, "404"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.fault(
    "a download cut short, stalled, corrupt, in a circle, missing, or a page instead",
    "tried again where that may help, then stops, naming file and address; nothing is left",
)
def test_what_is_broken_is_tried_again_and_leaves_nothing(server, wanted, fault):
    answer, said = FAULTS[fault]
    server.answers["/tags.zip"] = answer
    with pytest.raises(files.FetchError, match=said) as caught:
        get(wanted, server)
    assert "tags.zip" in str(caught.value)
    assert left(wanted) == []


def once(handler):
    handler.server.answers["/tags.zip"] = GOOD
    cut(handler)


def drop_by_drop(handler):
    handler.give(GOOD[:10], length=len(GOOD))
    for part in range(4):
        time.sleep(0.4)  # less than the patience each, more in all
        handler.wfile.write(GOOD[10 + part * 100 : 110 + part * 100])
    handler.wfile.write(GOOD[410:])


@pytest.mark.parametrize("answer", [once, drop_by_drop])
@pytest.mark.fault("a download that breaks off once", "tried again")
@pytest.mark.fault("a download that is slow", "waited for as long as bytes come")
def test_patience_is_rewarded(server, wanted, answer):
    server.answers["/tags.zip"] = answer
    get(wanted, server)
    assert wanted.path.read_bytes() == GOOD


@pytest.mark.fault("a download sent elsewhere", "followed to the listed hosts alone")
def test_redirections_are_followed_to_trusted_hosts_alone(server, wanted, monkeypatch):
    other = Server()
    other.answers["/tags.zip"] = GOOD

    def elsewhere(handler):
        handler.give(b"", kind=302, Location=f"{other.url}/tags.zip")

    server.answers["/tags.zip"] = elsewhere
    trusted = {server.url, other.url}
    monkeypatch.setattr(files, "_is_listed", lambda url: url.removesuffix("/tags.zip") in trusted)
    source = Source(**vars(wanted) | {"url": f"{server.url}/tags.zip"})
    assert files.fetch(source, progress=False)
    source.path.unlink()
    trusted.remove(other.url)
    other.asked.clear()
    with pytest.raises(files.FetchError, match="not one of the listed hosts"):
        files.fetch(source, progress=False)
    assert not other.asked and not source.path.exists()


@pytest.mark.parametrize(
    "url", ["http://files.grouplens.org/a.zip", "https://example.org/a.zip", "file:///etc/passwd"]
)
@pytest.mark.fault("an address of another host, or without TLS", "refused, nothing read")
def test_other_hosts_and_plain_http_are_refused(wanted, url):
    with pytest.raises(files.FetchError, match="not one of the listed hosts over https"):
        files.fetch(Source(**vars(wanted) | {"url": url}), progress=False)


def test_every_address_of_ours_is_on_a_listed_host(tmp_path):
    found = [files.find(name, tmp_path) for name in files.NAMES]
    assert all(s.url.startswith("by hand: ") or files._is_listed(s.url) for s in found)


DAMAGED = bytearray(zipped(artists="".join(f"{i}\tSO{i}\t1\n" for i in range(5000))))
DAMAGED[len(DAMAGED) // 2] ^= 255
WRONG = [
    *(("tags.zip", content) for content in (GOOD[:-30], bytes(DAMAGED), b"")),
    *(("tags.db", b"<html>"), ("summary.h5", b"\x89HDX")),
    *(("ids.txt", content) for content in (b"<!DOCTYPE html>", b"")),
]


@pytest.mark.parametrize(("name", "content"), WRONG)
@pytest.mark.fault(
    "a download of the wrong kind or damaged, its digest unknown", "stops; nothing is left"
)
def test_without_a_known_digest_the_kind_is_checked(server, wanted, name, content):
    server.answers[f"/{name}"] = content
    path, url = wanted.path.with_name(name), wanted.url.replace("tags.zip", name)
    source = Source(**vars(wanted) | {"path": path, "url": url, "digest": ""})
    with pytest.raises(files.FetchError, match=name):
        get(source, server)
    assert left(source) == []


# --- archives of tracks


def track():
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        h5["analysis/segments_timbre"] = [[0.0] * 12]
    return file.getvalue()


def packed(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return file.getvalue()


ONE, TWO = "A/A/A/TRAAAAW128F429D538.h5", "A/B/C/TRABCAW128F429D538.h5"


@pytest.fixture
def tree(wanted):
    changes = {"path": wanted.path.with_name("MillionSongSubset"), "digest": ""}
    url = "https://labrosa.ee.columbia.edu/subset.tar.gz"
    return Source(**vars(wanted) | changes | {"url": url})


@pytest.mark.fault(
    "an archive with paths that lead out, links or strangers",
    "only tracks are unpacked, only into their folder",
)
def test_a_tree_is_unpacked_in_its_place_and_nowhere_else(server, tree):
    members = {
        f"MillionSongSubset/{ONE}": track(),
        f"MillionSongSubset/data/{TWO}": track(),  # as an older archive has it
        "../../escaped.txt": b"no",
        f"../../../{ONE.replace('538', '539')}": track(),
        "/tmp/absolute.h5": b"no",  # noqa: S108 - a member's name
        f"MillionSongSubset/{ONE.replace('538', '540')}": None,  # a link
        "MillionSongSubset/README": b"hello",
    }
    server.answers["/subset.tar.gz"] = packed(members)
    get(tree, server)
    here = tree.path.parent
    made = sorted(p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file())
    inside = [ONE, ONE.replace("538", "539"), TWO]
    whole = [".fetching.lock", *(f"MillionSongSubset/{name}" for name in inside), files.NOTES]
    assert made == whole
    assert not list(here.parent.glob("escaped*"))


@pytest.mark.parametrize("fault", ["cut", "without tracks", "a wrong checksum"])
@pytest.mark.fault("an archive that is broken", "stops and removes it; nothing is left")
def test_a_broken_archive_leaves_nothing(server, tree, fault):
    whole = packed({f"MillionSongSubset/{ONE}": track(), "x": bytes(range(256)) * 400})
    given = {"cut": whole[: len(whole) - 200], "without tracks": packed({"README": b"hello"})}
    given["a wrong checksum"] = whole[:-8] + bytes(8)
    server.answers["/subset.tar.gz"] = given[fault]
    with pytest.raises(files.FetchError, match=r"subset\.tar\.gz"):
        get(tree, server)
    assert left(tree) in ([], [files.NOTES])


def test_a_full_disk_keeps_the_archive(server, tree, monkeypatch):
    server.answers["/subset.tar.gz"] = packed({f"MillionSongSubset/{ONE}": track()})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(tarfile.TarFile, "extract", full)
        get(tree, server)
    assert left(tree) == [files.NOTES, "subset.tar.gz"]
    server.asked.clear()
    assert get(tree, server) and not server.asked and left(tree) == [ONE[6:], files.NOTES]


@pytest.mark.fault("a second download into the same folder", "refused in one line")
def test_two_downloads_do_not_meet(server, wanted):
    def meanwhile(handler):
        with pytest.raises(BlockingIOError, match="another download is at work in"):
            get(wanted, server)
        handler.give(GOOD)

    server.answers["/tags.zip"] = meanwhile
    assert get(wanted, server) and wanted.path.read_bytes() == GOOD


@pytest.mark.fault("a file that is there but is not the one that was meant", "said; it stays")
def test_a_file_that_is_there_is_compared(server, wanted):
    server.answers["/tags.zip"] = GOOD
    unknown = replace(wanted, digest="")
    get(unknown, server)
    wanted.path.write_bytes(GOOD + b"x")
    for source, kind in (wanted, "md5"), (unknown, "sha256"):
        with pytest.raises(files.FetchError, match=f"expected {kind} .* take it away"):
            get(source, server)
    assert wanted.path.exists()


# --- the command


def test_the_command_fetches_what_a_profile_reads_and_says_what_it_cannot(server, tmp_path, capsys):
    content = zipped(artists="id\n1\n")
    server.answers["/hetrec2011-lastfm-2k.zip"] = content  # not the genuine one
    words = ["fetch", "lastfm", "--data", str(tmp_path), "--mirror", server.url]
    assert main(words) == 1
    told = capsys.readouterr().out
    assert "hash" in told and "log in to kaggle.com" in told
    assert main(["fetch", "lastfm", "--data", str(tmp_path), "--offline"]) == 1
    assert "missing hetrec2011-lastfm-2k.zip" in capsys.readouterr().out
    assert main(["fetch", "no such", "--data", str(tmp_path)]) == 2
    assert main(["fetch", "--list", "--data", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    for name in files.NAMES:
        assert files.find(name, tmp_path).licence in told and name in told


def test_the_command_reads_what_is_there_when_nothing_is_missing(tmp_path, monkeypatch, capsys):
    write_subset(tmp_path)
    words = ["fetch", "subset", "--data", str(tmp_path)]
    assert main(words) == 1  # six tracks are too few for the profile's tags
    assert capsys.readouterr().out.endswith("which profile subset asks for\n")
    monkeypatch.setitem(PROFILES, "subset", replace(PROFILES["subset"], min_songs_per_tag=2))
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "  6 triplets read\n" in told
    assert told.endswith("  of 2 tried, 0 whose content cannot be read\n")
    with h5py.File(tmp_path / "MillionSongSubset/A/A/B/TRAAB03.h5", "a") as file:
        file["analysis/segments_timbre"][0, 0] = float("nan")
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "  of 2 tried, 1 whose content cannot be read\n" in told and "TRAAB03.h5: " in told
