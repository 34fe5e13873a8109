"""A forge whose journal fails when it is told to, for ``test_faults.py``: ``python failing_server.py FILE … serve``.

When FILE holds a number n, the n-th write or fsync of the journal from then on fails once, and FILE is removed. Every
second write that fails has written part of its bytes before, as a disk does that becomes full.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import forge

order = Path(sys.argv[1])
write, fsync = os.write, os.fsync


def fails(file: int) -> bool:
    """Whether this call is the one that is to fail. The engine's lock makes it one at a time."""
    if file < 0 or not os.readlink(f"/proc/self/fd/{file}").endswith(".jsonl") or not order.exists():
        return False
    left = int(order.read_text()) - 1
    if left:
        order.write_text(str(left))
    else:
        order.unlink()
    return not left


def failing_write(file: int, text: bytes) -> int:
    if fails(file):
        write(file, text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")
    return write(file, text)


def failing_fsync(file: int) -> None:
    if fails(file):
        raise OSError(errno.ENOSPC, "No space left on device")
    fsync(file)


os.write, os.fsync = failing_write, failing_fsync
sys.exit(forge.main(sys.argv[-1:]))
