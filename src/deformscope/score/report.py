"""The report of a run: one self-contained HTML file with a verdict on each claim, plots, photos and tables."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import Analysis
from ..files import write_text
from . import plots
from .mask_scores import BARS, MaskScores
from .masks import NUMBERS, read_masks
from .records import MEANING, NAMES, Table, read_records, table
from .runner import AT_RANDOM, SHOWN, WEIGHTS, kept
from .scores import HEADINGS, HOLDS, METRICS, VIEWS, Part, Scores, Verdict, caption, caveat, headline, row_cells, title

REPORT = "report.html"

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:1180px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;line-height:1.25;margin-bottom:.2rem;overflow-wrap:anywhere}
h2{margin-top:2.4rem;border-bottom:1px solid #ddd;padding-bottom:.2rem}
.claims{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(20rem,100%),1fr));gap:1rem;margin:1.4rem 0}
.claims article{border:1px solid #ddd;border-radius:8px;padding:.8rem 1rem;min-width:0}
.claims h2{font-size:1.05rem;margin:0;border:0;padding:0}
.claims img{width:100%}
.answer{font-size:1.35rem;font-weight:600;margin:.1rem 0}
.number{margin:.2rem 0}.number b{font-size:1.35rem}
.claims dl{font-size:13px;margin:.4rem 0 0}.claims dt{font-weight:600}.claims dd{margin:0 0 .3rem}
table{border-collapse:collapse;font-size:13px;margin:.6rem 0}
td,th{padding:.25rem .5rem;text-align:right;border-bottom:1px solid #eee;white-space:nowrap}
td:first-child,th:first-child,td:last-child,th:last-child{text-align:left;white-space:normal}
td:first-child,th:first-child{min-width:11rem}td:last-child,th:last-child{min-width:9rem}
tr.claim td{font-weight:600;background:#f6f6f6;text-align:left}
.good{color:#137333}.bad{color:#9a5b00}.faint{color:#666;font-size:13px;overflow-wrap:anywhere}.wide{overflow-x:auto}
.plots{display:flex;flex-wrap:wrap;align-items:flex-start;gap:1rem}.plots img{max-width:100%;width:560px}
.photos img{max-width:49%;vertical-align:top}figure{margin:.6rem 0 1.4rem}figcaption{font-size:13px;color:#444}
@media(max-width:600px){.photos img{max-width:100%}}
"""


def write_report(scores: Scores, out: Path | str) -> Path:
    """Write ``report.html`` into the folder of a run; returns its path.

    ``scores`` is what :func:`deformscope.score.score` returned, or what :func:`deformscope.score.read_scores` reads
    from that folder later. Photos are those that the run kept in ``out``; the detector is not needed. Where masks were
    measured into ``out`` too, the report has a section on them. Raises DeformscopeError where their file is damaged.

    Example:
        >>> from deformscope.score import read_scores
        >>> write_report(read_scores("DIR"), "DIR").name
        'report.html'
    """
    folder = Path(out)
    layer = _layer(scores)
    parts = [_head(scores), _claims(scores)]
    if layer:
        whole = scores.views.get("whole") or table(read_records(folder, scores.run["records"]), "whole")
        parts += [_plots(whole, layer), _photos(whole, layer, folder)]
    if (folder / NUMBERS).exists():
        parts.append(_masks(read_masks(folder), folder, layer))
    parts.append(_nulls())
    for name in ("whole", "crop", "several objects"):
        part = scores.part(name)
        if part is not None:
            parts.append(_table(part, layer))
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
    """The layer in plots and photos: that with the best AUROC at equal distance from the photo's centre."""
    whole = scores.part("whole")
    values = {r.layer: r.sources["field"].value for r in (whole.rows if whole else ()) if r.metric.name == "auroc_ring"}
    finite = {layer: value for layer, value in values.items() if math.isfinite(value)}
    return max(finite or values, key=lambda name: (finite or dict.fromkeys(values, 0))[name], default="")


def _head(scores: Scores) -> str:
    run = scores.run
    return (
        f"<h1>Do the offsets of {_text(run['detector'])} show what the paper says?</h1>"
        f"<p class=faint>{_text(scores.title())} · deformscope {_text(run['deformscope'])} · "
        f"weights {_text(_weights(run))}</p>"
    )


def _weights(run: dict[str, Any]) -> str:
    """The sha256 of the file of the weights, if there is one."""
    digest = run.get(WEIGHTS)
    return f"sha256 {digest[:12]}…" if digest else "of no file"


def _claims(scores: Scores) -> str:
    """A verdict, a number and a picture for each claim."""
    cards = "".join(_card(verdict) for verdict in scores.verdicts)
    return (
        f"<div class=claims>{cards}</div><p class=faint>The claims are those of Zhang et al. (ICPRAM 2021). A claim "
        "holds if the offsets beat every null, that is, if the 95 % interval of the paired difference (bootstrap over "
        "photos) lies above zero; it holds in part if they do so on whole photos only, or on off-centre crops only. If "
        "some of the photos have masks, metrics that compare places are of those photos only."
        f" {_text(caveat(scores.verdicts))}</p>"
    )


def _card(verdict: Verdict) -> str:
    parts = [f"<article><h2>{_text(verdict.claim)}</h2>"]
    shade = "good" if verdict.answer == HOLDS else "bad"
    parts.append(f"<p class='answer {shade}'>{verdict.answer}</p>")
    if verdict.rows:
        row = next(iter(verdict.rows.values()))
        one = row.sources["field"]
        parts.append(
            f"<p class=number><b>{one.text(interval=False)}</b> {one.text().partition(' ')[2]}<br>"
            f"<span class=faint>{_text(row.metric.text)}; {row.n} {row.metric.of}, {_text(row.layer)}</span></p>"
        )
        url = plots.data_url(plots.against_nulls(verdict.rows), dpi=160)
        words = "; ".join(f"{VIEWS[view]}: {one.sources['field'].text()}" for view, one in verdict.rows.items())
        parts.append(f"<img alt='{_text(row.metric.text)}, offsets and nulls. {_text(words)}' src='{url}'><dl>")
        parts += [f"<dt>{VIEWS[view]}</dt><dd>{_text(verdict.reason(view))}</dd>" for view in verdict.rows]
        parts.append("</dl>")
    return "".join(parts) + "</article>"


def _nulls() -> str:
    listed = "".join(f"<li><b>{_text(name)}</b>: {_text(MEANING[name])}" for name in NAMES if name != "field")
    return (
        "<h2>All metrics</h2><p>Each metric of the offsets is compared with that of every null. The detected boxes are "
        f"shown for comparison only: the detector was trained to find them.</p><ul>{listed}</ul>"
    )


def _table(part: Part, layer: str) -> str:
    rows = headline(part) if part.best else [row for row in headline(part) if row.layer == layer]
    lines, claim = [], ""
    for row in rows:
        if row.metric.claim != claim:
            claim = row.metric.claim
            lines.append(f"<tr class=claim><td colspan={len(HEADINGS)}>{_text(claim)}</td></tr>")
        *cells, verdict = row_cells(row)
        shade = "good" if row.gains and not row.unbeaten else "bad"
        intervals = "&#10;".join(f"{_text(k)}: {_text(v.text())}" for k, v in row.sources.items())
        lines.append(
            f'<tr title="{intervals}">'
            + "".join(f"<td>{_text(c)}</td>" for c in cells)
            + f"<td class={shade}>{_text(verdict)}</td></tr>"
        )
    head = "".join(f"<th>{_text(heading)}</th>" for heading in HEADINGS)
    return (
        f"<h3>{_text(title(part).capitalize())}</h3><p class=faint>{_text(caption(part).capitalize())}. "
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
    return f"<h2>Plots, {_text(layer)}</h2><div class=plots>{images}</div>"


def _photos(whole: Table, layer: str, folder: Path) -> str:
    """Figures 2 and 3 of the photos with the best and worst AUROC, and of some at random nearest to the median."""
    column = whole.column(layer, "field")
    assert column is not None
    # If some photos have masks, the AUROC of those without, which is against boxes, is not comparable.
    values = np.where(whole.masked | ~whole.masked.any(), column.image["auroc"], np.nan)
    order = np.argsort(-np.nan_to_num(values, nan=-1.0), kind="stable")[: int(np.isfinite(values).sum())].tolist()
    if not order:
        return ""
    worst = [place for place in order[::-1][:SHOWN] if place not in order[:SHOWN]]
    some = [place for place in order if whole.index[place] < AT_RANDOM and place not in order[:SHOWN] + worst]
    median = float(np.median(values[order]))
    middle = sorted(some, key=lambda place: abs(values[place] - median))[:SHOWN]
    parts = []
    for words, chosen in (("Best", order[:SHOWN]), (f"Middle, of {AT_RANDOM} at random", middle), ("Worst", worst)):
        shown = [
            _photo(
                whole.names[place],
                kept(folder, int(whole.index[place]), layer),
                layer,
                values[place],
                column.image["pointing"][place],
            )
            for place in chosen
        ]
        if any(shown):
            parts.append(f"<h3>{words}</h3>{''.join(shown)}")
    if not parts:
        return ""
    return f"<h2>Photos, by AUROC of −divergence at {_text(layer)}</h2>{''.join(parts)}"


def _photo(name: str, analysis: Analysis | None, layer: str, auroc: float, pointing: float) -> str:
    if analysis is None:
        return ""
    urls = [plots.data_url(panel, "jpeg") for panel in plots.photo_panels(analysis, layer)]
    alts = ("d_f and its divergence", "circles")
    images = "".join(f"<img alt='{alt}' src='{url}'>" for alt, url in zip(alts, urls, strict=True))
    note = f"{name}: AUROC {auroc:.3f}, sink on an object: {'yes' if pointing > 0.5 else 'no'}"
    return f"<figure class=photos>{images}<figcaption>{_text(note)}</figcaption></figure>"


def _masks(masks: MaskScores, folder: Path, layer: str) -> str:
    """The section as HTML; examples are photos that the run kept in ``folder`` with the field of ``layer``."""
    bars = masks.bars
    drawn = [row for row in masks.rows if "ap" in row.values]
    pictures = []
    if drawn:
        pictures.append(("AP of masks", plots.mask_ap(drawn)))
    if bars and len(drawn) > 1:
        pictures.append((f"AP of masks over {BARS[bars[-1]]}", plots.mask_gains(drawn, bars[-1])))
    lines = ["".join(f"<td>{_text(cell)}</td>" for cell in masks.cells(row)) for row in masks.rows]
    head = "".join(f"<th>{_text(one)}</th>" for one in masks.headings())
    table = f"<div class=wide><table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"
    images = "".join(f"<img alt='{_text(words)}' src='{plots.data_url(one)}'>" for words, one in pictures)
    classes = ", ".join(masks.classes)
    return (
        f"<h2>Masks, {masks.photos} photos, {masks.objects} objects</h2><p>All are made of the same detected boxes "
        "with the same scores, so that differences are those of the masks alone. Masks that were learned should beat "
        f"GrabCut in the box, which needs no training.</p><div class=plots>{images}</div>{table}"
        f"<p class=faint>AP in percent: mean of {_text(classes)}. IoU: with the objects that the boxes find; in true "
        "boxes: of masks that are made in the annotated ones. Intervals: 95 %, bootstrap over photos, those of "
        f"differences paired. Segments are grown from offsets and have no class.</p>{_examples(folder, layer)}"
    )


def _examples(folder: Path, layer: str) -> str:
    parts: list[str] = []
    for index in range(AT_RANDOM):
        analysis = kept(folder, index, layer) if layer and len(parts) < plots.EXAMPLES else None
        if analysis is not None and plots.has_masks(analysis):
            parts.append(f"<img alt='masks of a photo' src='{plots.data_url(plots.masks_on_photo(analysis), 'jpeg')}'>")
    if not parts:
        return ""
    return f"<h3>The detector's masks, first photos at random</h3><div class=photos>{''.join(parts)}</div>"


def _breakdown(scores: Scores, layer: str) -> str:
    names = ("pointing", "sink_distance", "cosine", "iou", "auroc", "auroc_ring", "spearman_centre", "error_centre")
    words = {metric.name: metric.text for metric in METRICS}
    lines = []
    for part in scores.parts:
        if not part.name.startswith(("size ", "class ")):
            continue
        found = {row.metric.name: row for row in part.rows if row.layer == layer}
        cells = [part.name, str(part.photos), str(part.objects)]
        for name in names:
            row = found.get(name)
            cells.append(f"{row.sources['field'].text()}" if row else "–")
        lines.append("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>")
    if not lines:
        return ""
    head = "".join(f"<th>{_text(h)}</th>" for h in ("part", "photos", "objects", *(words[name] for name in names)))
    return (
        f"<h3>By size and class, {_text(layer)}</h3><p class=faint>Photos go by their largest object. All layers and "
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
