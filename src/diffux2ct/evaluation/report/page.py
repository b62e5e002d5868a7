"""Stylesheet and script of the evaluation report, kept apart so that `report` holds only its content."""

STYLE = """
:root { --ink: #1c2330; --soft: #5d6777; --line: #e1e5eb; --paper: #fff; --ground: #f4f6f8; }
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1180px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 16px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 0 0 12px; overflow-wrap: anywhere; }
h2 em {
  font-style: normal; font-weight: 600; font-size: 12px; color: var(--soft); background: var(--ground);
  border-radius: 99px; padding: 3px 10px; margin-left: 8px; vertical-align: 2px; white-space: nowrap;
}
h3 { font-size: 13px; margin: 0 0 6px; color: var(--soft); font-weight: 600; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
section { padding: 20px; margin-top: 20px; }
small { color: var(--soft); font-size: 12px; }
.kicker { margin: 0 0 4px; color: var(--soft); font-size: 13px; letter-spacing: .02em; }
.note { color: var(--soft); font-size: 13px; margin: 12px 0 0; max-width: 100ch; }
.scores { margin: -6px 0 14px; font-variant-numeric: tabular-nums; }
.control {
  background: #fff4d6; border: 1px solid #eed48a; border-radius: 10px; padding: 12px 20px; margin: 20px 0 0;
}
dl { display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 0; }
dt { color: var(--soft); font-size: 12px; }
dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 28px 6px 0; text-align: left; white-space: nowrap; }
th, td { border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; font-size: 13px; }
tbody tr:last-child > * { border-bottom: 0; }
td.about { color: var(--soft); font-size: 13px; white-space: normal; min-width: 22em; padding-right: 0; }
td.better { color: #146c43; font-weight: 600; }
td.worse { color: #a5281b; font-weight: 600; }
#cases button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
#cases button:hover { color: var(--ink); text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " ▲"; font-size: 9px; }
th[aria-sort=descending] button::after { content: " ▼"; font-size: 9px; }
.scroll { overflow-x: auto; }
.grid { display: grid; grid-template-columns: 92px repeat(5, minmax(110px, 192px)); gap: 6px; }
.col { font-weight: 600; font-size: 13px; align-self: end; }
.col small { display: block; font-weight: 400; }
.row { font-size: 12px; color: var(--soft); align-self: center; }
.row b { color: var(--ink); font-size: 13px; }
figure { margin: 0; position: relative; width: 100%; max-width: 192px; line-height: 0; border: 1px solid var(--line); }
img { width: 100%; image-rendering: pixelated; }
figure i {
  position: absolute; top: 50%; left: 4px; font: 600 11px/1 system-ui, sans-serif; color: #fff;
  text-shadow: 0 0 3px #000, 0 0 2px #000; opacity: .85;
}
figure i + i { left: auto; right: 4px; }
.foot { display: flex; flex-wrap: wrap; gap: 20px 32px; margin-top: 18px; }
.xrays { display: flex; flex-wrap: wrap; gap: 6px; }
.xrays figure { width: 192px; }
.xrays h3 { width: 100%; margin: 0; }
.xrays p { margin: 4px 0 0; font-size: 12px; color: var(--soft); }
.threes { display: grid; grid-template-columns: repeat(3, minmax(0, 192px)); align-content: start; }
.threes figure { width: auto; }
.threes h3, .threes .note, .renders h3, .renders .note { grid-column: 1 / -1; margin: 0; }
.xrays .note { width: 100%; margin: 2px 0 0; }
.floor { max-width: 600px; }
.renders { display: grid; grid-template-columns: repeat(2, minmax(0, 228px)); gap: 6px; align-content: start; }
.renders figure { max-width: none; }
.renders p { margin: 4px 0 0; font-size: 12px; color: var(--soft); }
img.smooth { image-rendering: auto; }
.link { font: inherit; font-size: 13px; color: #1d57b8; background: none; border: 0; cursor: pointer; padding: 4px; }
.link:hover { text-decoration: underline; }
.summary th, .summary td { padding-right: 20px; }
.summary em {
  font-style: normal; font-size: 12px; color: var(--soft); background: var(--ground); border-radius: 99px;
  padding: 2px 8px; margin-left: 4px;
}
.summary tr.headline > * { background: #f2f6fd; }
.summary .group th { color: var(--soft); font-size: 12px; font-weight: 600; padding-top: 14px; }
.summary tbody tr:last-child > * { border-bottom: 1px solid var(--line); }
.unavailable code { font-size: 12px; overflow-wrap: anywhere; }
.tall { max-height: 480px; overflow-y: auto; }
.tall thead th { position: sticky; top: 0; background: var(--paper); }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr)); gap: 18px 24px; }
.plot { max-width: 420px; border: 0; line-height: 1.4; font-size: 13px; }
.plot svg { width: 100%; height: auto; display: block; }
.plot .rule { stroke: var(--line); }
.plot text { font-size: 11px; fill: var(--soft); }
.plot .tick { text-anchor: middle; }
.plot .lane { text-anchor: end; }
.plot .name { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; }
.plot .box { fill: currentColor; opacity: .16; }
.plot circle { fill: currentColor; opacity: .55; }
.plot .median { stroke: currentColor; stroke-width: 2; }
.plot .run { color: #1d57b8; }
.plot .floor { color: #6b7482; }
.bar { width: 300px; margin-top: 10px; }
.bar > div { height: 14px; border: 1px solid var(--line); }
.bar p { display: flex; justify-content: space-between; margin: 4px 0 0; }
.bar p { font-size: 12px; color: var(--soft); }
.bar span:last-child { text-align: right; }
@media (max-width: 480px) { main { padding: 20px 10px 48px; } section { padding: 14px; } }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""

SCRIPT = """
const table = document.getElementById("cases"), body = table.tBodies[0];
const heads = [...table.tHead.rows[0].cells];
heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
  const up = head.getAttribute("aria-sort") === "descending", rows = [...body.rows];
  heads.forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = row => row.cells[column].dataset.v;
  // An empty cell is a metric that the case lacks; it sorts last, whichever way.
  const empty = row => value(row) === "", numeric = rows.every(row => !isNaN(value(row)));
  const order = (a, b) => numeric ? value(a) - value(b)
    : value(a).localeCompare(value(b), undefined, { numeric: true });
  rows.sort((a, b) => empty(a) - empty(b) || (up ? order(a, b) : order(b, a))).forEach(row => body.append(row));
}));
"""
