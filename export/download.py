"""Downloads the official checkpoint: resumable, bounded in time, and checked against ChatTTS's own list of sha256."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import requests
from tqdm import tqdm

from chattts_serving.errors import ConfigError
from export.chattts_package import sha256_map

REPOSITORY = "2Noise/ChatTTS"
DEFAULT_HUB_URL = "https://huggingface.co"
HUB_URL_VARIABLE = "CHATTTS_HUB_URL"  # environment variable: another host that serves the same paths

CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 60.0  # seconds between two pieces of a file
ATTEMPTS = 5  # in a row that bring no new bytes
RETRY_DELAY = 1.0  # seconds before the second attempt; doubles with every further one
CHUNK_BYTES = 1 << 16  # what a broken connection costs at most


def download_checkpoint(
    folder: Path,
    hub_url: str | None = None,
    hashes: Mapping[str, str] | None = None,
    retry_delay: float = RETRY_DELAY,
) -> None:
    """Make `folder` a complete and verified copy of the official checkpoint.

    Files that are there and verified are left alone. A file gets its final name only once its sha256 is right; what a
    broken connection left (`*.part`) is continued by the next call.

    Args:
        folder: gets `asset/...`.
        hub_url: e.g. "https://huggingface.co"; default is $CHATTTS_HUB_URL, else DEFAULT_HUB_URL.
        hashes: {path: sha256} of the files; default is the list in the ChatTTS package.
        retry_delay: seconds before a second attempt.

    Raises:
        ConfigError: a file cannot be had, or is not the one that the list means.
    """
    base = (hub_url or os.environ.get(HUB_URL_VARIABLE) or DEFAULT_HUB_URL).rstrip("/")
    with requests.Session() as session:
        for name, sha256 in (sha256_map() if hashes is None else hashes).items():
            path = folder / name
            if path.is_file() and _sha256(path) == sha256:
                continue
            path.unlink(missing_ok=True)  # altered since, or cut off by another tool
            _download_file(session, f"{base}/{REPOSITORY}/resolve/main/{name}", path, sha256, retry_delay)


def _download_file(session: requests.Session, url: str, path: Path, sha256: str, retry_delay: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    _fetch(session, url, part, retry_delay)
    found = _sha256(part)
    if found != sha256:
        part.unlink()
        raise ConfigError(f"{url} has sha256 {found}, but ChatTTS expects {sha256}; the download was removed")
    part.replace(path)


def _fetch(session: requests.Session, url: str, part: Path, retry_delay: float) -> None:
    """Complete `part` from `url`, trying again after a broken connection for as long as that brings new bytes."""
    failures = 0
    while True:
        bytes_before = _size(part)
        try:
            _continue(session, url, part)
        except requests.RequestException as error:
            failures = 1 if _size(part) > bytes_before else failures + 1
            if failures == ATTEMPTS or not _worth_retrying(error):
                raise ConfigError(f"cannot download {url} ({_size(part):,} bytes so far): {error}") from error
            time.sleep(retry_delay * 2 ** (failures - 1))
        else:
            return


def _worth_retrying(error: requests.RequestException) -> bool:
    """Whether the next attempt may do better: not where the server has refused (403, 404), but where it is busy."""
    if error.response is None:
        return not isinstance(error, (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema))
    return error.response.status_code >= 500 or error.response.status_code in (408, 429)


def _continue(session: requests.Session, url: str, part: Path) -> None:
    """Append to `part` what `url` holds behind its end; one attempt.

    Raises:
        requests.RequestException: also where the connection ends before the announced length.
    """
    start = _size(part)
    headers = {"Accept-Encoding": "identity"}  # compressed, the lengths would not be those of the file
    if start:
        headers["Range"] = f"bytes={start}-"
    with session.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT)) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing behind the end: complete, or too long, which its sha256 will tell
        response.raise_for_status()
        resumed = response.status_code == requests.codes.partial_content
        start = start if resumed else 0  # a server without ranges sends it all again
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, unit_divisor=1024) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and _size(part) < total:
            raise requests.ConnectionError(f"connection ended after {_size(part):,} of {total:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
