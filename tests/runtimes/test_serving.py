"""The server that engines load files from."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path

import pytest

from edgesparse.runtimes.serving import Mailbox


@pytest.mark.parametrize("pace", [0, 1e6])
def test_files_come_whole_and_not_faster_than_their_pace(tmp_path: Path, pace: float) -> None:
    content = bytes(range(256)) * 400
    (tmp_path / "file.bin").write_bytes(content)
    box = Mailbox(tmp_path / "host.mjs", pace=pace)
    try:
        began = time.monotonic()
        with urllib.request.urlopen(f"{box.share(tmp_path)}/file.bin") as answer:
            assert answer.read() == content
        # All but the last piece have been waited for when it is sent.
        assert not pace or time.monotonic() - began >= (len(content) - (1 << 14)) / pace
    finally:
        box.close()
