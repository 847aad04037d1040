"""Pictures fetched over loopback: whole or not at all."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stageline.errors import BusyError, DataError
from stageline.families.panorama_vlm.data.rows import cached_name, read_rows
from stageline.families.panorama_vlm.fetching import Fetched, Limits, _locked, check_fetched, fetch_images, main

QUICK = Limits(max_bytes=200_000, timeout_seconds=60, attempts=2, pause_seconds=0)


def picture_bytes(seed: int, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 128, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


@dataclass
class Site:
    """What the server has, and what it was asked."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    stops: dict[str, list[int]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    """Ranges, tags, redirects, connections that end early; `/busy` is busy once."""

    site: Site

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        site, path = self.site, self.path
        wanted = self.headers.get("Range", "")
        first_time = path not in [asked for asked, _ in site.asked]
        site.asked.append((path, wanted))
        if path in site.moved:
            self._answer(302, {"Location": site.moved[path], "Content-Length": "0"})
        elif path == "/busy.jpg" and first_time:
            self._answer(503, {"Content-Length": "0"})
        elif path not in site.files:
            self._answer(404, {"Content-Length": "0"})
        else:
            self._send(path, wanted)

    def _send(self, path: str, wanted: str) -> None:
        data, tag = self.site.files[path], self.site.tags.get(path, "")
        headers = {"ETag": tag} if tag else {}
        start = int(wanted[len("bytes=") : -1]) if wanted and self.headers.get("If-Range") == tag else 0
        if start >= len(data) and start:
            self._answer(416, {"Content-Length": "0"})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if not path.startswith("/unsized"):
            headers["Content-Length"] = str(len(data) - start)
        self._answer(206 if start else 200, headers)
        stops = self.site.stops.get(path, [])
        self.wfile.write(data[start : stops.pop(0) if stops else len(data)])

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    found = Site()
    handler = type("SiteHandler", (Handler,), {"site": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        found.address = f"http://127.0.0.1:{server.server_address[1]}"
        yield found
        server.shutdown()
        thread.join()


def whole_files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".fetching"}


def one(site: Site, path: str, folder: Path, limits: Limits = QUICK) -> Fetched:
    (result,) = fetch_images([site.address + path], folder, limits)
    return result


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_fetched_once_and_found_by_prepare(site: Site, tmp_path: Path, kind: str) -> None:
    site.files["/a.jpg"] = picture_bytes(0, kind)
    url = site.address + "/a.jpg"
    assert one(site, "/a.jpg", tmp_path / "cache").status == "fetched"
    assert (tmp_path / "cache" / cached_name(url)).read_bytes() == site.files["/a.jpg"]
    assert one(site, "/a.jpg", tmp_path / "cache").status == "there"
    assert len(site.asked) == 1
    (tmp_path / "rows.csv").write_text(f"url\n{url}\n")
    table = read_rows([tmp_path / "rows.csv"], lambda *_: None, with_text=False, url_cache=tmp_path / "cache")
    assert [row.path.name for row in table.rows] == [cached_name(url)]


def test_an_interrupted_picture_is_continued(site: Site, tmp_path: Path) -> None:
    site.files["/a.png"], site.tags["/a.png"] = picture_bytes(0, "PNG"), '"one"'
    site.stops["/a.png"] = [1000, 3000]
    first = one(site, "/a.png", tmp_path)
    assert (first.status, first.num_bytes) == ("failed", 3000)
    assert "ended after 3,000 of" in first.reason
    assert not (tmp_path / cached_name(first.url)).exists()
    second = one(site, "/a.png", tmp_path)
    assert (second.status, second.num_bytes) == ("continued", len(site.files["/a.png"]))
    assert [wanted for _, wanted in site.asked] == ["", "bytes=1000-", "bytes=3000-"]
    assert second.path.read_bytes() == site.files["/a.png"]
    assert whole_files(tmp_path) == {second.path.name}


def test_a_part_of_another_content_is_not_continued(site: Site, tmp_path: Path) -> None:
    site.files["/a.png"], site.tags["/a.png"], site.stops["/a.png"] = picture_bytes(0, "PNG"), '"one"', [1000, 1000]
    assert one(site, "/a.png", tmp_path).status == "failed"
    site.files["/a.png"], site.tags["/a.png"] = picture_bytes(1, "PNG"), '"two"'
    result = one(site, "/a.png", tmp_path)
    assert result.status == "fetched"
    assert result.path.read_bytes() == site.files["/a.png"]


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_a_strong_tag_a_part_begins_anew(site: Site, tmp_path: Path, tag: str) -> None:
    site.files["/a.png"], site.tags["/a.png"], site.stops["/a.png"] = picture_bytes(0, "PNG"), tag, [1000]
    assert one(site, "/a.png", tmp_path).status == "fetched"
    assert [wanted for _, wanted in site.asked] == ["", ""]


def test_a_part_longer_than_the_file_begins_anew(site: Site, tmp_path: Path) -> None:
    site.files["/a.jpg"], site.tags["/a.jpg"] = picture_bytes(0), '"one"'
    path = tmp_path / cached_name(site.address + "/a.jpg")
    path.with_name(path.name + ".part").write_bytes(site.files["/a.jpg"] + b"more")
    path.with_name(path.name + ".part.tag").write_text('"one"')
    assert one(site, "/a.jpg", tmp_path).status == "fetched"
    assert path.read_bytes() == site.files["/a.jpg"]


def test_failures_are_reported_at_once_and_leave_nothing(site: Site, tmp_path: Path) -> None:
    site.files |= {
        "/good.jpg": picture_bytes(0),
        "/page.jpg": b"<html>not found</html>",
        "/cut.jpg": picture_bytes(1)[:900],
        "/unsized.jpg": picture_bytes(2),
        "/large.jpg": bytes(200_001),
        "/unsized-large.jpg": bytes(200_001),
        "/empty.jpg": b"",
        "/busy.jpg": picture_bytes(3),
        "/moved-to.jpg": picture_bytes(4),
    }
    site.moved = {"/moved.jpg": "/moved-to.jpg", "/round.jpg": "/round.jpg", "/away.jpg": "ftp://127.0.0.1/a.jpg"}
    site.moved["/file.jpg"] = "file:///etc/hostname"
    names = [*site.files, *site.moved, "/gone.jpg"]
    addresses = [*(site.address + name for name in names), "http://127.0.0.1:1/refused.jpg", "http://a b/"]
    results = fetch_images([*addresses, addresses[0]], tmp_path, QUICK)
    assert [result.url for result in results] == addresses
    failed = {result.url.rpartition("/")[2]: result.reason for result in results if result.status == "failed"}
    assert set(names) - {"/" + name for name in failed} == {
        "/good.jpg",
        "/unsized.jpg",
        "/busy.jpg",
        "/moved.jpg",
        "/moved-to.jpg",
    }
    for name, words in {
        "page.jpg": "no readable JPEG, PNG or WEBP",
        "cut.jpg": "no readable",
        "empty.jpg": "no readable",
        "large.jpg": "200,001 bytes, at most 200,000",
        "unsized-large.jpg": "more than 200,000",
        "round.jpg": "redirect",
        "away.jpg": "not followed",
        "file.jpg": "not allowed",
        "gone.jpg": "404",
        "refused.jpg": "refused",
    }.items():
        assert words in failed[name], name
    moved = results[names.index("/moved.jpg")]
    assert moved.redirected_to == site.address + "/moved-to.jpg"
    assert whole_files(tmp_path) == {result.path.name for result in results if result.status == "fetched"}
    with pytest.raises(DataError, match=rf"(?s){len(failed)} faults.*page\.jpg.*gone\.jpg"):
        check_fetched(results)


def test_a_damaged_picture_is_fetched_again(site: Site, tmp_path: Path) -> None:
    site.files["/a.jpg"] = picture_bytes(0)
    path = tmp_path / cached_name(site.address + "/a.jpg")
    path.write_bytes(site.files["/a.jpg"][:500])
    assert one(site, "/a.jpg", tmp_path).status == "fetched"
    assert path.read_bytes() == site.files["/a.jpg"]


def test_two_processes_do_not_fetch_into_one_folder(site: Site, tmp_path: Path) -> None:
    with _locked(tmp_path), pytest.raises(BusyError, match="another process"):
        fetch_images([], tmp_path)
    assert fetch_images([], tmp_path) == []


def test_the_program_says_what_it_did(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.files["/a.jpg"] = picture_bytes(0)
    rows = tmp_path / "rows.csv"
    rows.write_text(f"url,question\n{site.address}/a.jpg,q\nlocal.jpg,q\n{site.address}/a.jpg,r\n")
    assert main([str(rows), "--cache-dir", str(tmp_path / "cache")]) == 0
    said = capsys.readouterr().out
    assert "fetched" in said
    assert "0 there, 1 fetched, 0 continued of 1" in said
    rows.write_text(f"url\n{site.address}/a.jpg\n{site.address}/gone.jpg\n")
    assert main([str(rows), "--cache-dir", str(tmp_path / "cache")]) == DataError.exit_code
    found = capsys.readouterr()
    assert "1 there, 0 fetched, 0 continued of 2" in found.out
    assert "gone.jpg: HTTP status 404" in found.err
