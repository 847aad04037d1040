"""The page's style sheet: one text, light and dark, readable in print and without colour."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --card: #f6f7f9; --ink: #1b1f24; --quiet: #59636e; --rule: #d5dae0; --grid: #e6e9ed;
  --s0: #0063a8; --s1: #b84a00; --s2: #00785a; --s3: #9a3d78;
  --good: #10713c; --good-paper: #dff3e6; --warn: #8a5200; --warn-paper: #fbeed3; --bad: #b3202a; --bad-paper: #fbe3e4;
  --node: #eef3f9; --node-rule: #8fa9c4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1c2026; --ink: #e7eaee; --quiet: #a0a9b4; --rule: #3a424c; --grid: #2a3037;
    --s0: #5db3f2; --s1: #f2a04c; --s2: #46c79b; --s3: #e398c6;
    --good: #6fd39a; --good-paper: #173626; --warn: #f0bd62; --warn-paper: #3a2c12;
    --bad: #ff8d90; --bad-paper: #43191d; --node: #1f2a36; --node-rule: #56728f;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main, header.top, footer { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header.top { padding-top: 32px; }
h1 { font-size: 1.9rem; margin: 0 0 6px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 44px 0 12px; padding-top: 12px; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 24px 0 8px; }
p { max-width: 78ch; }
.quiet { color: var(--quiet); }
.bad { color: var(--bad); font-weight: 600; }
.lead { font-size: 1.08rem; margin: 6px 0 0; }
.state { display: inline-block; border-radius: 999px; padding: 2px 12px; font-weight: 600; font-size: .92rem;
  vertical-align: middle; white-space: nowrap; }
.state.good { background: var(--good-paper); color: var(--good); }
.state.warn { background: var(--warn-paper); color: var(--warn); }
.state.bad { background: var(--bad-paper); color: var(--bad); }
.state.idle { background: var(--card); color: var(--quiet); border: 1px solid var(--rule); }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; margin: 18px 0 0; }
a { color: var(--s0); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
.box { border-left: 4px solid var(--rule); background: var(--card); padding: 10px 18px; border-radius: 0 8px 8px 0;
  margin: 18px 0; }
.box.bad { border-color: var(--bad); background: var(--bad-paper); color: var(--ink); font-weight: 400; }
.box.warn { border-color: var(--warn); background: var(--warn-paper); }
.box p { margin: 6px 0; overflow-wrap: anywhere; white-space: pre-line; }
.cards { display: grid; gap: 16px; margin: 24px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 320px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 18px; }
.card h2 { border: 0; margin: 0 0 4px; padding: 0; font-size: .95rem; font-weight: 600; color: var(--quiet); }
.card table { width: 100%; font-size: .88rem; }
.card table.numbers td, .card table.numbers thead th:not(:first-child) { padding-left: 4px; }
 .unbroken { white-space: nowrap; } .card td, .card th { padding-right: 6px; }
.card p { margin: 4px 0; font-size: .93rem; } .card p.figure { font-size: 2rem; line-height: 1.2; margin: 0; }
.scroll { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--quiet); font-size: .87rem; padding: 2px 0 6px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { font-weight: 600; color: var(--quiet); font-size: .87rem; }
tbody th { font-weight: 500; }
table.numbers td, table.numbers thead th:not(:first-child) { text-align: right; padding-left: 14px; }
table.wide { width: 100%; }
code, pre { font-size: .86rem;
  font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
td code, li code, p code { overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; overflow-x: auto;
  white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 8px 0; }
summary { cursor: pointer; color: var(--s0); }
details details { margin-left: 16px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 12px 14px; }
figcaption { font-weight: 600; margin-bottom: 6px; }
figcaption .quiet { font-weight: 400; }
.charts { display: grid; gap: 16px; margin: 12px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; fill: var(--ink); }
svg text.tick { fill: var(--quiet); font-size: 11px; }
svg text.end { text-anchor: end; } svg text.center { text-anchor: middle; } svg text.mid { dominant-baseline: middle; }
svg text.strong { font-weight: 600; }
svg text.small { font-size: 11px; fill: var(--quiet); }
.grid { stroke: var(--grid); } .axis { stroke: var(--quiet); }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.s0 { stroke: var(--s0); } .s1 { stroke: var(--s1); stroke-dasharray: 6 3; }
.s2 { stroke: var(--s2); stroke-dasharray: 2 3; } .s3 { stroke: var(--s3); stroke-dasharray: 8 3 2 3; }
.dot { stroke-dasharray: none; } .dot.s0 { fill: var(--s0); } .dot.s1 { fill: var(--s1); }
.dot.s2 { fill: var(--s2); } .dot.s3 { fill: var(--s3); }
.mark { stroke-width: 1; stroke-dasharray: 3 3; }
.mark.skipped { stroke: var(--bad); } .mark.resumed { stroke: var(--warn); }
.sign { stroke-width: 1.6; fill: none; } .sign.skipped { stroke: var(--bad); }
.sign.resumed { stroke: var(--warn); fill: var(--warn); } .sign.saved { stroke: var(--quiet); fill: var(--quiet); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0; margin: 6px 0 0;
  font-size: .87rem; }
.legend .skipped { color: var(--bad); } .legend .resumed { color: var(--warn); } .legend .saved { color: var(--quiet); }
svg.key { display: inline-block; width: 26px; height: 12px; margin-right: 6px; vertical-align: middle; }
.bar { stroke-width: 1; } .bar.good { fill: var(--good-paper); stroke: var(--good); }
.bar.warn { fill: var(--warn-paper); stroke: var(--warn); } .bar.bad { fill: var(--bad-paper); stroke: var(--bad); }
.bar.idle { fill: var(--card); stroke: var(--quiet); }
.node { fill: var(--node); stroke: var(--node-rule); } .node.outside { stroke-dasharray: 5 3; }
.edge { stroke: var(--quiet); stroke-width: 1.4; fill: none; } .arrow { fill: var(--quiet); }
.pictures { display: grid; gap: 16px;
  grid-template-columns: repeat(auto-fill, minmax(max(320px, (100% - 32px) / 3), 1fr)); }
.pictures figure { padding: 10px; scroll-margin-top: 10px; }
.pictures figure.wide { grid-column: 1 / -1; }
.pictures figcaption { margin: 8px 0 0; font-weight: 500; font-size: .93rem; overflow-wrap: anywhere; }
.pictures img { display: block; width: 100%; height: auto; border-radius: 4px; }
.pictures video { display: block; max-width: 100%; border-radius: 4px; }
.pictures img.small { image-rendering: pixelated; }
.full .open { display: block; cursor: zoom-in; } .full .close { display: none; }
.full:target { position: fixed; inset: 0; z-index: 9; overflow: auto; padding: 16px; background: var(--paper); }
.full:target .open { width: 100%; height: 100%; }
.full:target img { width: 100%; height: 100%; object-fit: contain; border-radius: 0; }
.full.large:target img { width: auto; height: auto; max-width: none; }
.full:target .close { display: block; position: fixed; inset: 0; padding: 12px 18px; text-align: right;
  cursor: zoom-out; text-decoration: none; font-weight: 600; }
.full .close span { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 6px 12px; }
h4 { font-size: 1rem; margin: 20px 0 8px; overflow-wrap: anywhere; }
.missing { margin-top: 44px; border-top: 1px solid var(--rule); padding-top: 12px; }
svg.narrow { display: none; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 12px 0; }
dl.facts dt { color: var(--quiet); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 48px; padding-bottom: 32px; color: var(--quiet); font-size: .87rem; }
@media (max-width: 640px) {
  main, header.top, footer { padding: 0 12px; }
  figure { padding: 10px 8px; } .card { padding: 10px 12px; } .box { padding: 8px 12px; }
  dl.facts { grid-template-columns: 1fr; } dl.facts dd { margin-bottom: 6px; }
  svg.wide { display: none; } svg.narrow { display: block; }
  .charts svg.chart text { font-size: 17px; } .charts svg.chart text.name { display: none; }
  .lineage svg { min-width: 640px; }
  table { font-size: .84rem; } thead th { font-size: .8rem; }
  th, td { padding: 4px 8px 4px 0; overflow-wrap: break-word; }
  tbody th { min-width: 7.5em; overflow-wrap: anywhere; }
  table.numbers td, table.numbers thead th:not(:first-child) { padding-left: 4px; }
  table.numbers th:first-child { position: sticky; left: 0; background: var(--paper); }
  .card table.numbers th:first-child, figure table.numbers th:first-child { background: var(--card); }
  table.wide, table.wide tbody, table.wide tr, table.wide th, table.wide td, table.wide caption { display: block; }
  table.wide thead { display: none; }
  table.wide tr { border-bottom: 1px solid var(--rule); padding: 6px 0; }
  table.wide th { font-weight: 600; }
  table.wide th, table.wide td { border: 0; padding: 2px 0; overflow-wrap: anywhere; }
  table.wide td:empty { display: none; }
  table.wide td::before { content: attr(data-label) ": "; color: var(--quiet); }
}
@media (max-width: 600px) { .pictures { grid-template-columns: 1fr; } }
@media print { details { break-inside: avoid; } nav { display: none; } }
"""
