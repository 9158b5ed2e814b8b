"""A run's report: one HTML file with tables, plots and the best, median and worst photos; nothing is loaded from
elsewhere."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from ...files import write_text
from ..measures.annotations import open_folder
from ..measures.nulls import MEANING
from ..runner import Settings
from ..summary.columns import Table, read_records, table
from ..summary.metrics import METRICS
from ..summary.scores import Part, Scores
from ..summary.tables import HEADINGS, caption, headline, row_cells, title, with_interval
from . import plots

REPORT = "report.html"
SHOWN = 3
"""Photos shown of the best, of the middle and of the worst."""

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:.2rem}
h2{margin-top:2.4rem;border-bottom:1px solid #ddd;padding-bottom:.2rem}
table{border-collapse:collapse;font-size:13px;margin:.6rem 0}
td,th{padding:.25rem .5rem;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}
td:first-child,th:first-child,td:last-child,th:last-child{text-align:left;white-space:normal}
tr.claim td{font-weight:600;background:#f6f6f6;text-align:left}
.good{color:#137333}.bad{color:#9a5b00}.faint{color:#666;font-size:13px}.wide{overflow-x:auto}
.plots{display:flex;flex-wrap:wrap;gap:1rem}.plots img{max-width:100%;width:560px}
.photos img{max-width:49%;vertical-align:top}figure{margin:.6rem 0 1.4rem}figcaption{font-size:13px;color:#444}
"""


def write_report(scores: Scores, detector: nn.Module, data: Path | str, out: Path | str, settings: Settings) -> Path:
    """Write ``report.html`` into a run's folder, with the run's own photos in it; returns its path.

    ``data``, ``out`` and ``settings`` are those that :func:`deformscope.score.score` got.
    """
    folder = Path(out)
    whole = table(read_records(folder), "whole")
    layer = _layer(scores)
    parts = [_head(scores)]
    for name in ("whole", "crop", "several objects"):
        part = scores.part(name)
        if part is not None:
            parts.append(_figures(part, layer))
    if layer:
        parts.append(_plots(whole, layer))
        parts.append(_photos(whole, layer, detector, Path(data), settings))
    parts.append(_breakdown(scores, layer))
    parts.append(_problems(scores))
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f'<meta http-equiv=Content-Security-Policy content="{POLICY}">'
        f"<title>deformscope score: {_text(scores.run['detector'])}</title><style>{STYLE}</style>"
        f"{''.join(parts)}</html>\n"
    )
    return write_text(folder / REPORT, page)


def _layer(scores: Scores) -> str:
    """The layer that the plots show: the one with the best AUROC at equal distance from the centre."""
    whole = scores.part("whole")
    values = {r.layer: r.sources["field"].value for r in (whole.rows if whole else ()) if r.metric.name == "auroc_ring"}
    finite = {layer: value for layer, value in values.items() if math.isfinite(value)}
    return max(finite or values, key=lambda name: (finite or dict.fromkeys(values, 0))[name], default="")


def _head(scores: Scores) -> str:
    run = scores.run
    data = f"{run['data']}/{run['annotations']}, {run['records']} of {run['photos']} photos"
    nulls = "".join(f"<li><b>{_text(plots.NAMES.get(k, k))}</b>: {_text(v)}" for k, v in MEANING.items())
    return (
        f"<h1>Do the offsets of {_text(run['detector'])} show what the paper says?</h1>"
        f"<p class=faint>{_text(data)} · deformscope {_text(run['deformscope'])} · "
        f"weights sha256 {_text(run['weights'][:12])}…</p>"
        "<p>Zhang et al. (ICPRAM 2021) say: features condense on object centres, negative divergence segments objects, "
        f"circles tell their size. Each figure stands beside what it has to beat:</p><ul>{nulls}</ul>"
        "<p>A figure beats a null when the 95 % interval of the paired difference (bootstrap over photos) lies above "
        "zero. The detector's own boxes are no null in that sense: they are what it was taught.</p>"
    )


def _figures(part: Part, layer: str) -> str:
    rows = headline(part) if part.best else [row for row in headline(part) if row.layer == layer]
    lines, claim = [], ""
    for row in rows:
        if row.metric.claim != claim:
            claim = row.metric.claim
            lines.append(f"<tr class=claim><td colspan={len(HEADINGS)}>{_text(claim)}</td></tr>")
        *cells, verdict = row_cells(row)
        shade = "good" if row.gains and not row.unbeaten else "bad"
        intervals = "&#10;".join(f"{_text(k)}: {_text(with_interval(v))}" for k, v in row.sources.items())
        lines.append(
            f'<tr title="{intervals}">'
            + "".join(f"<td>{_text(c)}</td>" for c in cells)
            + f"<td class={shade}>{_text(verdict)}</td></tr>"
        )
    head = "".join(f"<th>{_text(heading)}</th>" for heading in HEADINGS)
    return (
        f"<h2>{_text(title(part).capitalize())}</h2><p class=faint>{_text(caption(part).capitalize())}. "
        f"Hover a row for the nulls' intervals.</p><div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"
    )


def _plots(whole: Table, layer: str) -> str:
    drawn = {
        "Distance of sinks from centres, cumulated": plots.distances(whole, layer),
        "Precision and recall of segments": plots.precision_recall(whole, layer),
        "Largest circles against sizes": plots.sizes(whole, layer, "largest"),
        "Circles at the centre against sizes": plots.sizes(whole, layer, "centre"),
        "AUROC by photo": plots.spread(whole, layer, "auroc", "AUROC of −divergence in a photo"),
    }
    images = "".join(f"<img alt='{words}' src='{plots.data_url(figure)}'>" for words, figure in drawn.items())
    return f"<h2>Plots</h2><div class=plots>{images}</div>"


def _photos(whole: Table, layer: str, detector: nn.Module, data: Path, settings: Settings) -> str:
    """Figures 2 and 3 of the photos with the best, the middle and the worst AUROC."""
    column = whole.column(layer, "field")
    assert column is not None
    # Where some photos have masks, those without are measured against boxes, which is another question.
    values = np.where(whole.masked | ~whole.masked.any(), column.image["auroc"], np.nan)
    order = np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable")[: int(np.isfinite(values).sum())]
    if not len(order):
        return ""
    middle = max(0, len(order) // 2 - SHOWN // 2)
    groups: Sequence[tuple[str, np.ndarray]] = (
        ("Best", order[:SHOWN]),
        ("Middle", order[middle : middle + SHOWN]),
        ("Worst", order[::-1][:SHOWN]),
    )
    folder = open_folder(data, settings.split, settings.seed, settings.broken).folder
    parts = [f"<h2>Photos, by AUROC of −divergence at {_text(layer)}</h2>"]
    for words, chosen in groups:
        parts.append(f"<h3>{words}</h3>")
        for number in chosen:
            panels = plots.photo_panels(detector, folder / whole.names[number], layer)
            urls = [plots.data_url(panel, "jpeg") for panel in panels]
            alts = ("d_f and its divergence", "circles")
            images = "".join(f"<img alt='{alt}' src='{url}'>" for alt, url in zip(alts, urls, strict=True))
            note = f"{whole.names[number]}: AUROC {values[number]:.3f}, sink on an object: "
            note += "yes" if column.image["pointing"][number] > 0.5 else "no"
            parts.append(f"<figure class=photos>{images}<figcaption>{_text(note)}</figcaption></figure>")
    return "".join(parts)


def _breakdown(scores: Scores, layer: str) -> str:
    names = ("pointing", "sink_distance", "cosine", "iou", "auroc", "auroc_ring", "spearman_centre", "error_centre")
    words = {figure.name: figure.text for figure in METRICS}
    lines = []
    for part in scores.parts:
        if not part.name.startswith(("size ", "class ")):
            continue
        found = {row.metric.name: row for row in part.rows if row.layer == layer}
        cells = [part.name, str(part.photos), str(part.objects)]
        for name in names:
            row = found.get(name)
            cells.append(f"{with_interval(row.sources['field'])}" if row else "–")
        lines.append("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>")
    if not lines:
        return ""
    head = "".join(f"<th>{_text(h)}</th>" for h in ("part", "photos", "objects", *(words[name] for name in names)))
    return (
        f"<h2>By size and class, {_text(layer)}</h2><p class=faint>Photos go by their largest object. All layers and "
        f"nulls are in scores.json.</p><div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"
    )


def _problems(scores: Scores) -> str:
    if not scores.problems:
        return ""
    parts = ["<h2>Not scored</h2>"]
    for reason, files in scores.problems.items():
        listed = "".join(f"<li>{_text(name)}" for name in files[:200])
        parts.append(f"<details><summary>{_text(reason)}: {len(files)}</summary><ul>{listed}</ul></details>")
    return "".join(parts)


def _text(value: object) -> str:
    return html.escape(str(value))
