"""The file of a benchmark's results, and the page that is made from it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from benchmarks import report
from benchmarks._processes import spent
from benchmarks._results import Results, read
from benchmarks._tables import Ratio, Table


def table() -> Table:
    made = Table("Time of ls", "s", "ports", [Ratio("ours", "theirs"), Ratio("ours", "nothing")])
    for value in (4.0, 1.0, 2.0):
        made.add(64, "ours", value)
    made.add(1, "ours", 0.5)
    made.add(64, "theirs", 4)
    made.add(64, "nothing", 0)
    return made


def results() -> Results:
    return Results("a machine", "2026-01-02", {"memory": [table()]})


def test_rows_have_medians_and_quotients() -> None:
    assert table().rows() == [
        ["ports", "ours", "theirs", "nothing", "ours / theirs", "ours / nothing"],
        ["1", "0.5", "", "", "", ""],
        ["64", "2", "4", "0", "0.50", ""],
    ]


def test_a_file_keeps_all_results(tmp_path: Path) -> None:
    results().write(tmp_path / "there/results.json")
    assert read(tmp_path / "there/results.json") == results()


def test_the_page_says_machine_date_and_figures() -> None:
    page = report.page(results())
    assert "on 2026-01-02, on this machine:\na machine." in page
    assert "| 64 | 2 | 4 | 0 | 0.50 |  |" in page
    assert "(benchmarks/memory.svg)" in page


def test_plots_are_pictures_with_each_peer(tmp_path: Path) -> None:
    report.write(results(), tmp_path)
    picture = (tmp_path / "benchmarks/memory.svg").read_text()
    assert {"ours", "theirs"} <= set(re.findall(r">(\w+)</text>", picture))


def test_a_process_that_worked_and_slept_has_cost_something() -> None:
    command = ["sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; echo; read end"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            cost = spent([process.pid])
        finally:
            process.kill()
    assert cost.seconds > 0
    assert cost.switches > 0
