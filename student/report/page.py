"""The page around a report: one HTML file, no script, nothing loaded from anywhere; light and dark; phone to laptop."""

import html
from collections.abc import Sequence
from typing import NamedTuple

from student.report.charts import DASHES, Series

CSS = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#14181f;--muted:#5a6473;--grid:#e3e7ed;--line:#c6cdd8;
--accent:#0b6a80;--bad:#b3261e;--good:#1a6b3c;--warn:#8a5a00;
--s0:#0072b2;--s1:#c8501a;--s2:#00805c;--s3:#a8447f;--s4:#8a6d00;--s5:#5b4bb5;--s6:#3d7fa6;--s7:#5a6473}
@media(prefers-color-scheme:dark){:root{--bg:#10141a;--card:#181e26;--ink:#e8ecf2;--muted:#9aa6b6;--grid:#2a323e;
--line:#414c5c;--accent:#5cc4dc;--bad:#ff9b90;--good:#7fd6a1;--warn:#f0c05a;
--s0:#56b4e9;--s1:#f08a4b;--s2:#3ecf9f;--s3:#e08fc0;--s4:#e0c34a;--s5:#a99bf5;--s6:#8fc7e8;--s7:#9aa6b6}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:1280px;margin:0 auto;padding:20px 20px 48px}
h1{font-size:1.55rem;line-height:1.2;margin:6px 0 2px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:1.1rem;margin:34px 0 4px;letter-spacing:-.005em}h3{font-size:.95rem;margin:0 0 6px}
p{margin:4px 0 10px;max-width:92ch}.sub,.note,figcaption{color:var(--muted)}.note,figcaption{font-size:.86rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:10px;margin:16px 0 4px;padding:0}
.tile{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:11px 13px}
.tile b{display:block;white-space:nowrap;font-size:1.42rem;line-height:1.25;font-variant-numeric:tabular-nums;
letter-spacing:-.01em}
.tile span{display:block;color:var(--muted);font-size:.83rem;line-height:1.35}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,330px),1fr));gap:14px;align-items:start}
section{min-width:0}.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,540px),1fr))}
.card{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:13px 14px;margin:0;min-width:0}
svg.c{display:block;width:100%;height:auto;max-width:560px;font:12px system-ui,-apple-system,"Segoe UI",sans-serif}
svg text{fill:var(--muted)}svg .e{text-anchor:end}svg .m{text-anchor:middle}svg .l{fill:var(--ink)}
svg .g{stroke:var(--grid);fill:none}svg .a{stroke:var(--line);fill:none}
svg .s{fill:none;stroke-width:2;stroke-linejoin:round}
svg .h{fill:transparent}svg .h:hover{fill:var(--ink);fill-opacity:.35}
ul.key{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;padding:0;margin:6px 0 0;font-size:.84rem}
ul.key svg{display:inline-block;width:26px;height:8px;margin-right:5px;vertical-align:middle}
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.scroll:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88rem;width:100%}
th,td{padding:5px 9px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{font-weight:600}thead th{color:var(--muted);border-bottom-color:var(--line);vertical-align:bottom;
white-space:normal}.wide table:not(.map) tbody th{white-space:normal}
th:first-child,td:first-child,td.t,th.t{text-align:left}td.w{white-space:normal;text-align:left;min-width:16ch;max-width:52ch;
overflow-wrap:anywhere}
tbody tr:last-child>*{border-bottom:0}tr.best>*{font-weight:700}
table.map{border-collapse:separate;border-spacing:3px;width:100%;table-layout:fixed;min-width:0}
table.map th,table.map td{border:0;text-align:center;padding:4px 2px;white-space:normal}
table.map td{border-radius:6px;padding:9px 2px;line-height:1.2;font-weight:600}
table.map td small{display:block;font-weight:400;font-size:.78rem}
table.map td.none{background:repeating-linear-gradient(45deg,var(--grid) 0 4px,transparent 4px 8px);color:var(--muted);
font-weight:400}
table.map td.best{outline:3px solid var(--ink);outline-offset:-1px}
table.map tfoot th,table.map tfoot td{color:var(--ink);font-size:.82rem;font-weight:400;padding:5px 2px}
table.map tfoot tr.w>*{padding-top:0}
.ramp{height:9px;border-radius:5px;margin:10px 0 2px}.ends{display:flex;justify-content:space-between}
.ok{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}
details{margin-top:10px}summary{cursor:pointer;color:var(--accent);font-size:.9rem;padding:3px 0}
code,pre{font:.84rem/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}pre{overflow-x:auto;margin:6px 0}
.empty{color:var(--muted);padding:24px 0;text-align:center}
@media(max-width:480px){main{padding:14px 12px 36px}.tiles{grid-template-columns:1fr 1fr}.tile b{font-size:1.2rem}
.card{padding:11px 9px}table.map{border-spacing:2px;font-size:.8rem}table.map td small{font-size:.7rem}
table.map tfoot th,table.map tfoot td{font-size:.74rem}th,td{padding:5px 6px}
tbody th{white-space:normal;min-width:11ch}table.map tbody th{min-width:0}}
@media print{body{background:#fff}.card,.tile{break-inside:avoid}}
"""


class Tile(NamedTuple):
    """A number that matters, and what it is."""

    value: str
    label: str


def page(title: str, subtitle: str, body: str) -> str:
    """A whole document; `title` and `subtitle` are text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body><main>"
        f'<h1>{escape(title)}</h1><p class="sub">{escape(subtitle)}</p>\n{body}\n</main></body></html>\n'
    )


def escape(text: object) -> str:
    """Text as HTML, quotes included."""
    return html.escape(str(text))


def tiles(items: Sequence[Tile]) -> str:
    """A row of tiles."""
    cells = "".join(
        f'<div class="tile"><b>{escape(item.value)}</b><span>{escape(item.label)}</span></div>' for item in items
    )
    return f'<div class="tiles">{cells}</div>'


def section(title: str, body: str, note: str = "") -> str:
    """A heading, a sentence of explanation, and HTML."""
    note_html = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note_html}{body}</section>\n"


def figure(title: str, chart: str, caption: str = "", *, key: str = "") -> str:
    """A card with a chart, its legend and a caption."""
    text = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="card"><h3>{escape(title)}</h3>{chart}{key}{text}</figure>'


def legend(series: Sequence[Series]) -> str:
    """The lines of a chart by colour and dash."""
    items = []
    for line in series:
        dash = DASHES[line.colour % len(DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        stroke = f'<path d="M0 4H26" stroke="var(--s{line.colour % 8})" stroke-width="2.5"{style}/>'
        items.append(f'<li><svg viewBox="0 0 26 8" aria-hidden="true">{stroke}</svg>{escape(line.name)}</li>')
    return f'<ul class="key">{"".join(items)}</ul>'


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    caption: str,
    text_columns: Sequence[int] = (0,),
    wrap_columns: Sequence[int] = (),
    best_row: int = -1,
) -> str:
    """A table that scrolls sideways on a narrow screen and can be reached by keyboard; cells are text."""

    def kind(column: int) -> str:
        if column in wrap_columns:
            return ' class="w"'
        return ' class="t"' if column in text_columns else ""

    header = "".join(
        f'<th scope="col"{" class=t" if i in (*text_columns, *wrap_columns) else ""}>{escape(name)}</th>'
        for i, name in enumerate(head)
    )
    body = ""
    for number, row in enumerate(rows):
        cells = "".join(f"<td{kind(i)}>{escape(cell)}</td>" for i, cell in enumerate(row[1:], start=1))
        mark = ' class="best"' if number == best_row else ""
        body += f'<tr{mark}><th scope="row">{escape(row[0])}</th>{cells}</tr>'
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption hidden>{escape(caption)}</caption><thead><tr>{header}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def details(summary: str, body: str, *, is_open: bool = False) -> str:
    """A part of the page that opens on demand."""
    return f"<details{' open' if is_open else ''}><summary>{escape(summary)}</summary>{body}</details>"
