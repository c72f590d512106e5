"""The style sheet of the HTML report: light and dark, one column on a phone, nothing loaded from anywhere."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --text: #1c2330; --soft: #566074; --page: #f6f7f9; --card: #ffffff; --edge: #d9dee7;
  --first: #2458c5; --second: #b4560a; --third: #6b7688; --good: #176c3a; --bad: #b3202c; --badpage: #fdecec;
  --goodpage: #e7f5ec;
  --grid: #e4e8ee }
@media (prefers-color-scheme: dark) { :root { --text: #e7ebf2; --soft: #a3adbf; --page: #12161d; --card: #1a2029;
  --edge: #333c4a;
  --first: #82aaff; --second: #f2a860; --third: #8793a8; --good: #6fd598; --bad: #ff8b90; --badpage: #3a1d22;
  --goodpage: #173024;
  --grid: #2a323e } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", "Noto Sans CJK SC", sans-serif; overflow-wrap: anywhere }
main, header { max-width: 1080px; margin: 0 auto; padding: 0 16px }
header { padding-top: 24px }
h1 { font-size: 1.45rem; line-height: 1.3; margin: 0 0 8px }
h2 { font-size: 1.15rem; margin: 32px 0 10px }
h3 { font-size: 1rem; margin: 0 0 6px }
p { margin: 0 0 8px }
.soft, figcaption, .legend, caption { color: var(--soft); font-size: .88rem }
.badge { display: inline-block; padding: 1px 10px; border-radius: 999px; font-weight: 650;
  border: 1px solid currentColor }
.pass { color: var(--good) } .fail { color: var(--bad) }
.banner { border: 1px solid var(--edge); border-left: 6px solid var(--soft); border-radius: 8px;
  padding: 14px 16px; background: var(--card) }
.banner.pass { border-left-color: var(--good); background: var(--goodpage); color: inherit }
.banner.fail { border-left-color: var(--bad); background: var(--badpage); color: inherit }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 12px 14px;
  min-width: 0; margin: 0 }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)) }
.pair { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 200px), 1fr)) }
.big { font-size: 1.5rem; font-weight: 650; line-height: 1.25 }
ol.way { list-style: none; display: flex; flex-wrap: wrap; gap: 8px; padding: 0; margin: 12px 0 0 }
ol.way li { border: 1px solid var(--edge); border-radius: 8px; padding: 4px 10px; background: var(--card);
  font-size: .92rem }
ol.way li.fail { border: 2px solid var(--bad) }
blockquote { margin: 0; padding: 6px 12px; border-left: 3px solid var(--edge); white-space: pre-wrap }
img { max-width: 100%; height: auto; border-radius: 6px; display: block; margin-bottom: 8px }
svg { width: 100%; max-width: 520px; height: auto; display: block; font: 12px system-ui, sans-serif;
  fill: var(--text) }
svg .rule { stroke: var(--grid) } svg .tick { fill: var(--soft); font-size: 11px }
svg .split { stroke: var(--soft); stroke-dasharray: 3 3 } svg .limit { stroke: var(--bad); stroke-width: 2 }
svg .one { fill: var(--first) }
svg .three { fill: var(--third) } svg .two { fill: var(--second) } svg .worst { fill: var(--bad) }
svg .line { fill: none; stroke-width: 1.6 } svg .line.one { stroke: var(--first) }
svg .line.two { stroke: var(--second); stroke-dasharray: 5 2 }
svg .ring { fill: none; stroke-width: 1.4 } svg .ring.one { stroke: var(--first) }
  svg .ring.two { stroke: var(--second) }
svg .same { fill: var(--good); opacity: .75 } svg .differs { fill: var(--bad) } svg .cross { stroke: var(--card);
  stroke-width: 2 }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; padding: 0; margin: 6px 0 0; list-style: none }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px }
.legend .one { background: var(--first) } .legend .two { background: var(--second) }
.legend .three { background: var(--third) }
.legend .limit { background: var(--bad); width: 3px; border-radius: 0 }
.scroll { overflow-x: auto; max-width: 100% } .scroll:focus { outline: 2px solid var(--first) }
table { border-collapse: collapse; font-size: .86rem; width: 100%; overflow-wrap: normal }
caption { text-align: left; padding: 4px 0 }
th, td { text-align: left; padding: 4px 10px 4px 0; border-bottom: 1px solid var(--edge); vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.long { min-width: 15rem } tr.fail td { background: var(--badpage) }
details { margin: 8px 0 } summary { cursor: pointer }
details.card > summary { font-weight: 600 }
code, pre { font: .88em ui-monospace, "DejaVu Sans Mono", monospace } pre { white-space: pre-wrap; margin: 0 }
footer { max-width: 1080px; margin: 32px auto; padding: 0 16px; color: var(--soft); font-size: .85rem }
@media print { body { background: none } .card, .banner { break-inside: avoid } }
"""
