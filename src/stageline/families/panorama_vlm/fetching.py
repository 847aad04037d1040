"""Fetching the pictures that CSV files name by address: explicit, once, resumable. The trainer never does this.

A picture is written to `<name>.part` and gets its name (`cached_name`) only when it is complete and decodes as a JPEG,
PNG or WebP. A part is continued with a range request if the server still has the same file (`If-Range`), otherwise it
begins anew. Failures and redirects are all reported at the end. No torch.
"""

from __future__ import annotations

import argparse
import fcntl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from stageline.config.addresses import is_link_local, link_local_fault
from stageline.config.bounds import MAX_PIXELS
from stageline.config.connections import JudgedHandler, RefusedAddressError
from stageline.data.decoding import PHOTOGRAPHS, PictureError, open_picture
from stageline.errors import BusyError, DataError, Faults, StagelineError
from stageline.families.panorama_vlm.data.rows import cached_name, read_rows
from stageline.printing import quoted_block, say

CHUNK_BYTES = 1 << 18
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
RANGE_REFUSED = 416
SLOWEST = 1024
"""Bytes per second of a body once the silence that is allowed has passed, chosen here: fewer are a silence, too."""
AGENT = {"User-Agent": "stageline", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Limits:
    """What one picture may cost.

    max_bytes: size.  max_pixels: width times height.  timeout_seconds: silence of a server.
    attempts: connections, each continuing the last.
    pause_seconds: before the second attempt; doubled before each further one.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = MAX_PIXELS
    timeout_seconds: float = 30.0
    attempts: int = 3
    pause_seconds: float = 1.0


@dataclass(frozen=True)
class Fetched:
    """What became of one address.

    status: there (was already), fetched, continued or failed.  redirected_to: the last address, "" without redirects.
    reason: why it failed, "" otherwise.
    """

    url: str
    path: Path
    status: str
    num_bytes: int = 0
    redirected_to: str = ""
    reason: str = ""


class _FetchError(Exception):
    """A failure of one address. again: another attempt may succeed."""

    def __init__(self, reason: str, *, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, never from https to http, and five times at most."""

    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            raise _FetchError(f"redirected from {old} to {newurl!r}, which is not followed")
        if fault := link_local_fault(newurl):
            raise _FetchError(fault)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        JudgedHandler(is_link_local),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def picture_fault(path: Path, max_pixels: int = MAX_PIXELS) -> str:
    """What is wrong with a fetched file, "" for a picture that decodes to its end. max_pixels: by its header."""
    try:
        with open_picture(path, max_pixels, PHOTOGRAPHS, key="--max-pixels", count=False) as opened:
            opened.picture.draft("RGB", (1, 1))  # a JPEG is read to its end at an eighth of its size
            opened.picture.load()
    except PictureError as error:
        return error.told if error.trouble == "too_large" else f"no readable JPEG, PNG or WEBP picture ({error.told})"
    return ""


def fetch_images(
    urls: Sequence[str],
    folder: Path,
    limits: Limits | None = None,
    *,
    workers: int = 4,
    report: Callable[[Fetched], None] = lambda _: None,
) -> list[Fetched]:
    """Fetch pictures into a folder; returns what became of each address, in order, and raises for none of them.

    urls: http and https; one that stands twice is fetched once.
    folder: gets the pictures under `cached_name`.
    limits: per picture.
    workers: connections at a time.
    report: called for each address as it is done.

    Raises BusyError where another process is fetching into the folder.
    """
    limits = limits or Limits()
    wanted = list(dict.fromkeys(urls))
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Fetched] = {}
    with _locked(folder), ThreadPoolExecutor(max_workers=workers) as pool:
        futures = []
        for url in wanted:
            path = folder / cached_name(url)
            if path.is_file() and not picture_fault(path, limits.max_pixels):
                found[url] = Fetched(url, path, "there", path.stat().st_size)
                report(found[url])
            else:
                futures.append(pool.submit(_fetch, url, path, limits))
        for future in as_completed(futures):
            result = _accept(future.result(), limits)
            found[result.url] = result
            report(result)
    return [found[url] for url in wanted]


def check_fetched(results: Sequence[Fetched]) -> None:
    """Raise DataError with every address that failed."""
    faults = Faults(DataError, "pictures", "correct the addresses, or run it again: what is there stays")
    for result in results:
        if result.status == "failed":
            via = f" (redirected to {result.redirected_to})" if result.redirected_to else ""
            faults.add(f"{result.url}{via}: {result.reason}")
    faults.raise_if_any()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".fetching").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"another process is fetching into {str(folder)!r}", remedy="wait for it") from error
        yield


def _part_of(path: Path) -> tuple[Path, Path]:
    """The unfinished file and the file with the server's name for its content."""
    return path.with_name(path.name + ".part"), path.with_name(path.name + ".part.tag")


def _accept(result: Fetched, limits: Limits) -> Fetched:
    """Give a complete part its name if it is a picture; runs in one thread, as the decoder's warnings need."""
    if result.status == "failed":
        return result
    part, tag = _part_of(result.path)
    fault = picture_fault(part, limits.max_pixels)
    if fault:
        part.unlink()
    else:
        part.replace(result.path)
    tag.unlink(missing_ok=True)
    return replace(result, status="failed", reason=fault) if fault else result


def _fetch(url: str, path: Path, limits: Limits) -> Fetched:
    """Write the part of one address; another attempt continues it."""
    part, _ = _part_of(path)
    result = Fetched(url, path, "failed", reason="no attempt was made")
    for attempt in range(limits.attempts):
        if attempt:
            time.sleep(limits.pause_seconds * 2 ** (attempt - 1))
        seen: list[str] = []
        again, reason, continued = False, "", False
        try:
            continued = _receive(url, path, limits, seen)
        except _FetchError as error:
            again, reason = error.again, str(error)
        except RefusedAddressError as error:
            reason = f"{error}: a link-local one, where a machine's identity is kept"
        except urllib.error.HTTPError as error:
            error.close()
            again, reason = error.code in RETRIED_STATUS, f"HTTP status {error.code} ({error.reason})"
        except (OSError, HTTPException, ValueError) as error:
            again, reason = not isinstance(error, ValueError), f"{type(error).__name__}: {error}"
        status = "failed" if reason else "continued" if continued else "fetched"
        size = part.stat().st_size if part.is_file() else 0
        result = Fetched(url, path, status, size, "".join(seen[-1:]), reason)
        if not again:
            break
    return result


def _receive(url: str, path: Path, limits: Limits, seen: list[str]) -> bool:
    """Fill the part of one address to its end in one connection; whether the server continued what was there.

    seen: gets the address that a redirect led to.
    """
    if fault := link_local_fault(url):
        raise _FetchError(fault)
    part, tag = _part_of(path)
    have = part.stat().st_size if part.is_file() and tag.is_file() else 0
    headers = {**AGENT, **({"Range": f"bytes={have}-", "If-Range": tag.read_text()} if have else {})}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310  # the opener knows http and https only
    try:
        response = _opener().open(request, timeout=limits.timeout_seconds)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_REFUSED:
            raise
        error.close()
        part.unlink(missing_ok=True)
        raise _FetchError("the part that was there fits no longer", again=True) from error
    with response:
        if response.url != url:
            seen.append(response.url)
        start, total = _extent(response, have)
        if total is not None and total > limits.max_bytes:
            part.unlink(missing_ok=True)
            raise _FetchError(f"{total:,} bytes, at most {limits.max_bytes:,}")
        _note_tag(response.headers, tag)
        size = _copy(response, part, start, limits)
    if total is not None and size != total:
        raise _FetchError(f"the connection ended after {size:,} of {total:,} bytes", again=True)
    return start > 0


def _extent(response: Any, have: int) -> tuple[int, int | None]:
    """Where the body belongs, and how long the whole file is if the server says so."""
    length = response.headers.get("Content-Length", "")
    rest = int(length) if length.isdigit() else None
    if response.status != 206:
        return 0, rest
    unit, _, extent = response.headers.get("Content-Range", "").partition(" ")
    first = extent.partition("-")[0]
    if unit != "bytes" or not first.isdigit() or int(first) != have:
        raise _FetchError(f"asked for bytes from {have}, got {response.headers.get('Content-Range')!r}")
    total = extent.rpartition("/")[2]
    return have, int(total) if total.isdigit() else rest and have + rest


def _note_tag(headers: Any, tag: Path) -> None:
    """Keep what tells this content from another one; without it a part is never continued."""
    etag, date = headers.get("ETag", ""), headers.get("Last-Modified", "")
    name = etag if etag and not etag.startswith("W/") else date
    if name:
        tag.write_text(name)
    else:
        tag.unlink(missing_ok=True)


def _copy(response: Any, part: Path, start: int, limits: Limits) -> int:
    """Append the body to the first `start` bytes of the part; the size it has then."""
    size, begin, max_bytes = start, time.monotonic(), limits.max_bytes
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        while chunk := response.read1(CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                break
            file.write(chunk)
            seconds = time.monotonic() - begin
            if seconds > limits.timeout_seconds and size - start < seconds * SLOWEST:
                told = f"{size - start:,} bytes in {seconds:.0f} s, expected at least {SLOWEST} per second"
                raise _FetchError(told, again=True)
        file.truncate()
    if size > max_bytes:
        part.unlink()
        raise _FetchError(f"more than {max_bytes:,} bytes")
    return size


def addresses_in(files: Sequence[Path]) -> list[str]:
    """The addresses in the image columns of CSV files, each once; cells that name local files are left out."""
    table = read_rows(files, lambda *_: None, with_text=False)
    every = sorted([*table.rows, *(aside.row for aside in table.set_aside)], key=lambda row: row.index)
    return list(dict.fromkeys(row.image for row in every if urlsplit(row.image).scheme.lower() in ("http", "https")))


def main(arguments: Sequence[str] | None = None) -> int:
    """The program `fetch_images.py`: exit code 0 when every picture is there."""
    parser = argparse.ArgumentParser(prog="fetch_images.py", description="Fetch the pictures that CSV files name.")
    parser.add_argument("csv", nargs="+", type=Path, help="files with an image column of http(s) addresses")
    parser.add_argument("--cache-dir", type=Path, required=True, help="folder for the pictures (data.url_cache)")
    parser.add_argument("--max-megabytes", type=float, default=64, help="of one picture")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="of one picture (data.max_pixels)")
    parser.add_argument("--timeout", type=float, default=30, help="seconds that a server may be silent")
    parser.add_argument("--workers", type=int, default=4, help="connections at a time")
    asked = parser.parse_args(arguments)
    most = int(asked.max_megabytes * 2**20)
    limits = Limits(max_bytes=most, max_pixels=asked.max_pixels, timeout_seconds=asked.timeout)
    try:
        results = fetch_images(
            addresses_in(asked.csv), asked.cache_dir, limits, workers=max(1, asked.workers), report=_print_line
        )
        counts = {status: sum(r.status == status for r in results) for status in ("there", "fetched", "continued")}
        say(", ".join(f"{count} {status}" for status, count in counts.items()) + f" of {len(results)}")
        check_fetched(results)
    except StagelineError as error:
        say(*quoted_block(str(error)), error=True)
        return error.exit_code
    return 0


def _print_line(result: Fetched) -> None:
    moved = f" (redirected to {result.redirected_to})" if result.redirected_to else ""
    say(f"{result.status:9} {result.num_bytes:>11,} bytes  {result.url}{moved}")
