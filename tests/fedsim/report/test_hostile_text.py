"""No text of a run becomes markup, wherever it stands: names of clients are hostile input."""

import re
from typing import Any

from fedsim.files import read_json, read_lines, replace_json
from fedsim.report.page import build
from tests.fedsim.conftest import MadeRun, Make

HOSTILE = "\"><img src=x onerror=alert(1)><script>alert(1)</script>{{7*7}}'"


def test_no_text_of_a_run_becomes_markup_wherever_it_stands(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=2, failing=(2,)))
    told = {"reason", "message", "summary", "meaning", "gpu", "platform", "description", "note"}
    changed = 0

    def hostile(value: Any, key: str = "") -> Any:
        nonlocal changed
        if isinstance(value, dict):
            return {name: hostile(one, name) for name, one in value.items()}
        if isinstance(value, list):
            return [hostile(one, key) for one in value]
        if isinstance(value, str) and key in told:
            changed += 1
            return value + HOSTILE
        return value

    for path in run.root.glob("*.json"):
        replace_json(path, hostile(read_json(path)))
    for name in ("rounds", "scores", "events"):
        run.rewrite_log(name, [hostile(one) for one in read_lines(run.root / f"{name}.jsonl")])
    run.append_event(f"kind{HOSTILE}", HOSTILE, client=HOSTILE)

    page = build(run).read_text()

    assert changed > 3
    assert "<script" not in page
    assert "<img src=x" not in page
    assert not re.search(r"<[^>]*\son\w+=", page)
    assert "49'" not in page  # a template in a template
    assert "&lt;script&gt;" in page
