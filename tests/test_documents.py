"""What the documents say runs: README blocks, examples, and the commands that CI takes from the README."""

import ast
import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyro_vae import VAE, data, decoders, encoders, fit, priors
from pyro_vae.cli import main as command_line

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
DOCUMENTS = {
    f"{path.stem} {number}": block
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
}
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py"))
PICTURES = [name for name in EXAMPLES if 'Path("pictures")' in (ROOT / "examples" / f"{name}.py").read_text()]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def example(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_readme_block_runs(number):
    exec(compile(BLOCKS[number], f"README block {number}", "exec"), {"__name__": "readme"})  # noqa: S102


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_block_of_the_documents_runs(name):
    exec(compile(DOCUMENTS[name], name, "exec"), {"__name__": "document"})  # noqa: S102


def test_the_readme_has_its_blocks_and_commands_once():
    assert len(BLOCKS) == 6
    assert len(re.findall(r"^python -m pip install .* && pyro-vae train$", README, re.MULTILINE)) == 1
    assert len(re.findall(r"^python -m pip install .* && python -m pytest -n auto$", README, re.MULTILINE)) == 1


def test_the_table_of_parts_is_what_the_command_prints(capsys):
    table = re.search(r"<!-- parts -->\n(.*)<!-- end of parts -->", README, re.DOTALL).group(1)
    assert command_line(["list", "--markdown"]) == 0
    assert table == capsys.readouterr().out


def test_the_readme_shows_the_programs_as_they_are():
    shown = re.search(r"```text\n(def model.*?)```", README, re.DOTALL).group(1)
    tree = ast.parse((ROOT / "pyro_vae" / "vae.py").read_text(encoding="utf-8"))
    programs = [node for node in ast.walk(tree) if getattr(node, "name", "") in ("model", "guide")]
    for program in programs:
        del program.body[0]  # the docstring
        program.returns = None
        for argument in program.args.args:
            argument.annotation = None
    assert ast.unparse(ast.parse(shown)) == "\n\n".join(ast.unparse(program) for program in programs)


@pytest.mark.parametrize("name", PICTURES)
def test_an_example_draws_its_pictures(name, tmp_path, capsys):
    main = example(name)["main"]
    main(**{"epochs": 1} if "epochs" in inspect.signature(main).parameters else {}, out=tmp_path / "pictures")
    pictures = list((tmp_path / "pictures").glob("*.png"))
    assert pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert re.search(r"\d", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "epochs", "lines"),
    [("sample_quality", (1, 2), 6), pytest.param("disentanglement", 1, 3, marks=pytest.mark.slow)],
)
def test_an_example_prints_its_table(name, epochs, lines, capsys):
    example(name)["main"](epochs)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == lines
    assert all(re.search(r"\d\.\d\d", line) for line in printed[1:])


def test_the_two_vaes_to_be_read_side_by_side_print_the_same_losses():
    losses = [example(name)["main"](epochs=4) for name in ("vae_torch", "vae_pyro")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0] - 3


def test_the_two_vaes_differ_in_few_lines():
    texts = [(ROOT / "examples" / f"{name}.py").read_text().splitlines() for name in ("vae_torch", "vae_pyro")]
    assert len(set(texts[0]) & set(texts[1])) > 0.6 * len(set(texts[0]))


def test_the_plain_road_is_some_thirty_lines_and_runs(capsys):
    lines = (ROOT / "examples" / "plain_svi.py").read_text().split('"""', 2)[2].splitlines()
    assert sum(bool(line.strip()) for line in lines) <= 32
    example("plain_svi")["main"](epochs=3)
    losses = [float(value) for value in re.findall(r"([\d.]+) nats", capsys.readouterr().out)]
    assert losses[2] < losses[0]


def test_the_plain_road_and_fit_end_in_the_same_parameters_after_100_steps():
    x = data.load("digits").train[:640].double()
    road, fitted = (
        VAE(priors.Normal(3), encoders.Normal((1, 8, 8), 3), decoders.Bernoulli(3, (1, 8, 8), grey=True)).double()
        for _ in range(2)
    )
    fitted.load_state_dict(road.state_dict())
    example("plain_svi")["train"](road, x, epochs=10, batch_size=64, seed=5)
    fit(fitted.model, fitted.guide, x, epochs=10, batch_size=64, seed=5)
    for ours, theirs in zip(fitted.parameters(), road.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["speed", "published", "research"])
def test_a_benchmark_says_what_it_needs(name):
    found = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--data-root" in found.stdout


@pytest.mark.slow
def test_the_table_of_programs_says_that_they_end_where_svi_does():
    command = [sys.executable, "-m", "benchmarks.programs", "--programs", "bayesian_regression", "--rounds", "1"]
    found = subprocess.run([*command, "--engines", "eager"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.search(
        r"^\| bayesian_regression \| yes \| \de-08, 0e\+00 \| [\d.]+ \| [\d.]+ \|$", found.stdout, re.MULTILINE
    )
