"""The conformance list is complete: checks 1 to 80."""

from __future__ import annotations

import re
from pathlib import Path

CHECKS = range(1, 81)


def test_every_check_has_a_test_with_its_number() -> None:
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    tested = {
        int(number)
        for numbers in re.findall(r"def test_check_(\d+(?:_\d+)*)_", text)
        for number in numbers.split("_")
    }
    assert tested >= set(CHECKS), f"no test: {sorted(set(CHECKS) - tested)}"
