"""The report of a run: one HTML file that holds its pictures and its numbers."""

import base64
from html import escape
from pathlib import Path

from pyro_vae.files import write_whole
from pyro_vae.training import COLUMNS, History, Row

TITLES = {
    "train_loss": "negative bound, train",
    "test_loss": "negative bound, test",
    "test_reconstruction": "reconstruction, test",
    "test_kl": "KL, test",
    "test_loss_at_mean": "test at the posterior mean (no bound)",
}
FORMS = {"epoch": ".0f", "learning_rate": ".3g"}  # of columns; of others ".3f"
BEGIN, END = "<!-- evaluation -->", "<!-- end of evaluation -->"
PLACE = BEGIN + END  # of the section about an evaluation
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
img { max-width: 100%; display: block; margin: .6rem auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; font-weight: normal; }
th { color: #666; } .rows td { text-align: right; } .rows th { text-align: right; }
.numbers { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.number { border: 1px solid #ddd; border-radius: .5rem; padding: .6rem 1rem; }
.number b { display: block; font-size: 1.5rem; font-weight: 600; } .number span { color: #666; font-size: .85rem; }
h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; } .figures td { text-align: right; }
.scroll { overflow-x: auto; } summary { cursor: pointer; margin-top: 2rem; }
"""


def write_report(folder: Path, facts: dict[str, str], history: History, row: Row, pictures: list[str]) -> Path:
    """Write ``report.html`` into a run's folder: self-contained, with every picture inside.

    Arguments:
        folder: the run's folder, which holds the pictures as ``NAME.png``.
        facts: the run in words, as `pyro_vae.runs.facts` describes it.
        history: what `fit` measured.
        row: that of the epoch whose weights the run has.
        pictures: the pictures' names, in the order of the report.

    Returns:
        The report's path.
    """
    rename = ("negative bound", "loss" if "no bound" in facts else "negative bound")
    numbers = "".join(
        f'<div class="number"><b>{row[name]:.2f}</b><span>{escape(title.replace(*rename))}</span></div>'
        for name, title in TITLES.items()
    )
    seconds = sum(history.column("seconds"))
    body = [
        f"<h1>{escape(folder.resolve().name)}</h1>",
        f"<p>Epoch {row['epoch']:.0f}, {seconds:.1f} seconds of training; nats per datum, lower is better.</p>",
        f'<div class="numbers">{numbers}</div>',
        table([[f"<th>{escape(name)}</th>", f"<td>{escape(text)}</td>"] for name, text in facts.items()]),
        *(picture(folder / f"{name}.png") for name in pictures),
        PLACE,
        "<details><summary>All epochs</summary><div class='scroll'>",
        table(
            [
                [f"<th>{name}</th>" for name in COLUMNS],
                *([f"<td>{row[name]:{FORMS.get(name, '.3f')}}</td>" for name in COLUMNS] for row in history),
            ],
            "rows",
        ),
        "</div></details>",
    ]
    head = f"<title>{escape(folder.resolve().name)}</title><style>{STYLE}</style>"
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    html = f'<!doctype html><html lang="en"><head>{meta}{head}</head><body>{"".join(body)}</body></html>'
    path = folder / "report.html"
    write_whole(path, html.encode("utf-8", "backslashreplace"))  # a path may hold bytes that are not text
    return path


def with_evaluation(html: str, section: str) -> str:
    """Return a report with a section about an evaluation in its place; without a place, return nothing.

    Example:
        >>> html = with_evaluation(f"<p>{PLACE}</p>", "first")
        >>> with_evaluation(html, "second")
        '<p><!-- evaluation -->second<!-- end of evaluation --></p>'
    """
    before, found, rest = html.partition(BEGIN)
    _, ended, after = rest.partition(END)
    return f"{before}{BEGIN}{section}{END}{after}" if found and ended else ""


def picture(path: Path, *, heading: bool = True) -> str:
    """Return a picture in HTML, with its name as a heading."""
    title = escape(path.stem.replace("_", " ").capitalize().replace("Kl", "KL"))
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"<h2>{title}</h2>" * heading + f'<img alt="{title}" src="data:image/png;base64,{data}">'


def table(rows: list[list[str]], kind: str = "") -> str:
    """Return a table in HTML, from rows of cells in HTML."""
    lines = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f'<table class="{kind}">{lines}</table>'
