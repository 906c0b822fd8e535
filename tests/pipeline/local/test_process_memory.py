from __future__ import annotations

import subprocess
import sys
import threading
import time

from pipeline.local.memory import MemoryWatch

MEGABYTE = 1 << 20
CHILD = """
held = bytearray(200 << 20)
print("held", flush=True)
input()
"""


def test_memory_that_is_held_for_a_moment_is_seen() -> None:
    with MemoryWatch() as watch:
        watch.begin()
        before = watch.peak()
        held = bytearray(200 * MEGABYTE)
        time.sleep(0.3)
        del held
        assert watch.peak() - before > 150 * MEGABYTE
        watch.begin()
        assert watch.peak() - before < 100 * MEGABYTE, "what ran before is forgotten"


def test_children_and_theirs_count_while_they_live() -> None:
    with MemoryWatch() as watch:
        watch.begin()
        before = watch.peak()
        command = [sys.executable, "-c", CHILD]
        child = subprocess.Popen(
            ["sh", "-c", '"$@"; true', "sh", *command],  # a grandchild of this process
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        time.sleep(1.3)  # children are looked for every second
        assert watch.peak() - before > 150 * MEGABYTE
        child.communicate("go\n")
        watch.begin()
        assert watch.peak() - before < 100 * MEGABYTE


def test_the_thread_ends_with_the_watch() -> None:
    before = threading.active_count()
    with MemoryWatch():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
