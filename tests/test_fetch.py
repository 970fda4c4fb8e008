"""Downloads from a server on loopback that is slow, lies, breaks off or sends one elsewhere."""

import errno
import hashlib
import io
import tarfile
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from unittest.mock import Mock

import pooch
import pytest

from repro.__main__ import main
from repro.data import files


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        answer = self.server.answers.get(self.path[1:])
        if callable(answer):
            return answer(self)
        self.give(answer) if answer is not None else self.send_error(404)

    def give(self, content, length=None, sent_to=""):
        self.send_response(302 if sent_to else 200)
        self.send_header("Content-Length", str(length or len(content)))
        self.send_header("Location", sent_to)
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch):
    """Answer every name as ``answers`` says; ``asked`` has what was asked for."""
    monkeypatch.setattr(pooch.core, "time", Mock())  # which waits before it tries again
    monkeypatch.setattr(files, "_TIMEOUT", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.answers, server.asked, server.daemon_threads = {}, [], True
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield server
        server.shutdown()


BUFFER = io.BytesIO()
with zipfile.ZipFile(BUFFER, "w") as archive:
    archive.writestr("artists.dat", "id\tname\n1\tAnn\n" * 4000)
GOOD = BUFFER.getvalue()
MD5 = f"md5:{hashlib.md5(GOOD, usedforsecurity=False).hexdigest()}"


def source(folder, name, digest=""):
    """Return what is asked for; of an archive a folder."""
    path = folder / "data" / name.replace("subset.tar.gz", "MillionSongSubset")
    about = "tags", "example.org", "3 MB", "research", f"https://files.grouplens.org/{name}"
    return files.Source(path, *about, digest)


@pytest.fixture
def wanted(tmp_path):
    return source(tmp_path, "tags.zip", MD5)


def get(wanted, server):
    return files.fetch(wanted, mirror=server.url, progress=False)


def left(wanted):
    """Return what is in the folder."""
    return sorted(path.name for path in wanted.path.parent.iterdir())


@pytest.mark.fault("a file that is there but is not the one that was meant", "said; it stays")
def test_a_file_comes_whole_and_is_compared(server, wanted):
    server.answers["tags.zip"] = GOOD
    assert get(wanted, server) is True and wanted.path.read_bytes() == GOOD
    assert left(wanted) == ["tags.zip"]
    server.asked.clear()
    assert get(wanted, server) is False and not server.asked
    wanted.path.write_bytes(GOOD + b"x")
    with pytest.raises(files.FetchError, match=r"tags.zip: not the file of md5:.*take it away"):
        get(wanted, server)
    assert wanted.path.exists() and get(replace(wanted, digest=""), server) is False


def packed(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if not content:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def pieces(pause, *ends):
    """Return an answer that gives the file up to each of ``ends``, and then pauses."""

    def answer(handler):
        handler.give(b"", length=len(GOOD))
        for start, end in pairwise((0, *ends)):
            handler.wfile.write(GOOD[start:end])
            time.sleep(pause)

    return answer


ONE, TWO, THREE = (f"A/A/A/TRAAAAW128F429D53{number}.h5" for number in (7, 8, 9))
TREE = packed({f"MillionSongSubset/{ONE}": b"\x89HDF", "x": bytes(range(256)) * 400})
# the digest where it is known, the file, what comes, what is said
BROKEN = {
    "cut short": (MD5, "tags.zip", pieces(0, 9_000), "IncompleteRead"),
    "stalled": (MD5, "tags.zip", pieces(1, 9_000), "timed out"),
    "corrupt": (MD5, "tags.zip", GOOD[:50] + b"x" + GOOD[51:], "hash"),
    "a page": (MD5, "tags.zip", b"<html>Please log in</html>", "hash"),
    "in a circle": (MD5, "tags.zip", lambda h: h.give(b"", sent_to="/tags.zip"), "redirects"),
    "missing": (MD5, "tags.zip", None, "404"),
    "an empty zip": ("", "tags.zip", b"", "another kind"),
    "no database": ("", "tags.db", b"text", "another kind"),
    "a page for ids": ("", "ids.txt", b"<!DOCTYPE html>", "another kind"),
    "an archive cut": ("", "subset.tar.gz", TREE[:-200], "unpacked and is removed"),
    "no tracks": ("", "subset.tar.gz", packed({"README": b"hello"}), "holds no track"),
    "an archive of a wrong checksum": ("", "subset.tar.gz", TREE[:-8] + bytes(8), "CRC"),
}


@pytest.mark.parametrize(("digest", "name", "answer", "said"), BROKEN.values(), ids=BROKEN)
@pytest.mark.fault(
    "a download cut short, stalled, missing, corrupt", "tried again; nothing is left"
)
@pytest.mark.fault("a page or another kind of file in its place", "stops; nothing is left")
@pytest.mark.fault("an archive that is broken", "stops and removes it; nothing is left")
def test_what_is_broken_leaves_nothing(server, tmp_path, digest, name, answer, said):
    server.answers[name] = answer
    wanted = source(tmp_path, name, digest)
    with pytest.raises(files.FetchError, match=f"{name}.*{said}"):
        get(wanted, server)
    assert not left(wanted)


@pytest.mark.fault("a download that breaks off once", "tried again")
@pytest.mark.fault("a download that is slow", "waited for as long as bytes come")
def test_patience_is_rewarded(server, wanted):
    slow = pieces(0.2, *range(100, 500, 100), len(GOOD))  # each in time, all of them not

    def broken_off(handler):
        server.answers["tags.zip"] = slow
        pieces(0, 9_000)(handler)

    server.answers["tags.zip"] = broken_off
    assert get(wanted, server) and wanted.path.read_bytes() == GOOD


@pytest.mark.fault("a download sent elsewhere", "followed to the listed hosts alone")
def test_redirections_are_followed_to_trusted_hosts_alone(server, wanted, monkeypatch):
    trusted = [f"{server.url}/tags.zip", f"{server.url}/other/tags.zip"]
    server.answers["tags.zip"] = lambda handler: handler.give(b"", sent_to=trusted[1])
    server.answers["other/tags.zip"] = GOOD
    wanted = replace(wanted, url=trusted[0])
    monkeypatch.setattr(files, "HOSTS", (f"{server.url}/tags",))
    with pytest.raises(files.FetchError, match="not one of the listed hosts"):
        files.fetch(wanted, progress=False)
    assert set(server.asked) == {"/tags.zip"} and not wanted.path.exists()
    monkeypatch.setattr(files, "HOSTS", tuple(trusted))
    assert files.fetch(wanted, progress=False)


def test_our_own_addresses_are_of_listed_hosts(tmp_path):
    urls = [files.find(name, tmp_path).url for name in files.NAMES]
    assert all(url.startswith((*files.HOSTS, "by hand: ")) for url in urls)
    for host in files.HOSTS:  # whole, so that host@elsewhere and host.elsewhere are not of it
        assert host.startswith("https://") and host.endswith("/")


@pytest.mark.fault("an archive with paths that lead out, links", "tracks alone, in their folder")
def test_a_tree_is_unpacked_in_its_place_and_nowhere_else(server, tmp_path):
    tree = source(tmp_path, "subset.tar.gz")
    members = {
        f"MillionSongSubset/{ONE}": b"one",
        f"MillionSongSubset/data/{TWO}": b"two",  # as an older archive has it
        **{f"../../../{THREE}": b"three", "../../escaped.txt": b"no"},
        "/tmp/absolute.h5": b"no",  # noqa: S108 - a member's name
        f"MillionSongSubset/{ONE.replace('7', '6')}": b"",  # a link
        "MillionSongSubset/README": b"hello",
    }
    server.answers["subset.tar.gz"] = packed(members)
    get(tree, server)
    assert left(tree) == ["MillionSongSubset"]
    unpacked = sorted(path for path in tree.path.rglob("*") if path.is_file())
    assert unpacked == [tree.path / name for name in (ONE, TWO, THREE)]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_full_disk_keeps_the_archive(server, tmp_path, monkeypatch):
    tree, server.answers["subset.tar.gz"] = source(tmp_path, "subset.tar.gz"), TREE
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
        patch.setattr(files.Path, "write_bytes", full)
        get(tree, server)
    assert left(tree) == ["subset.tar.gz"]
    server.asked.clear()
    assert get(tree, server) and not server.asked and (tree.path / ONE).exists()
    assert left(tree) == ["MillionSongSubset"]


def command(capsys, *words):
    """Return the exit status of ``fetch`` and what it told."""
    return main(["fetch", *words]), capsys.readouterr().out


def test_the_command_fetches_what_a_profile_reads_and_says_what_it_cannot(server, tmp_path, capsys):
    server.answers["hetrec2011-lastfm-2k.zip"] = GOOD  # not the genuine one
    where = ["--data", str(tmp_path)]
    status, told = command(capsys, "lastfm", *where, "--mirror", server.url)
    assert status == 1 and "hash" in told and "log in to kaggle.com" in told
    assert command(capsys, "no such", *where)[0] == 2
    status, told = command(capsys, "--list", *where)
    licences = [files.find(name, tmp_path).licence for name in files.NAMES]
    assert status == 0 and all(said in told for said in (*files.NAMES, *licences))
