import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scaling import all_reduce, last_that_pays

SCALING = (Path(__file__).parent.parent / "docs" / "scaling.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```python\n(.*?)```", SCALING, re.DOTALL)


def test_a_ring_sends_each_part_to_every_rank_twice():
    assert all_reduce(1, 8e6, 1e9, 1e-4) == 0
    assert all_reduce(2, 8e6, 1e9, 1e-4) == pytest.approx(8e-3 + 2e-4)
    assert all_reduce(4, 8e6, 1e9, 1e-4) == pytest.approx(6 * (2e6 / 1e9 + 1e-4))  # six messages of a fourth


@pytest.mark.parametrize("last", [1, 2, 3, 100, 1000, 2**20])
def test_where_it_stops_paying_is_found(last):
    assert last_that_pays(lambda ranks: 1.0 if ranks <= last else 0.49) == last


def test_the_table_is_of_the_command_that_stands_above_it():
    table = re.search(r"<!-- scaling -->\n(.*)<!-- end of scaling -->", SCALING, re.DOTALL).group(1)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")][2:]
    assert [row[:2] for row in rows] == [
        ["1", "measured"],
        ["2", "measured"],
        ["8", "model"],
        ["64", "model"],
        ["1,024", "model"],
    ]
    for row in rows:
        ranks, step, one = int(row[0].replace(",", "")), float(row[5]), float(rows[0][5])
        assert float(row[7]) == pytest.approx(ranks * one / step, rel=0.02)
        assert float(row[8]) == pytest.approx(one / step, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_a_script_of_the_document_runs(number, tmp_path):
    (tmp_path / "script.py").write_text(f"{SCRIPTS[number]}\nif 'history' in dir(): print(history[-1]['train_loss'])")
    command = [sys.executable, tmp_path / "script.py"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert 20 < float(found.stdout) < 50
