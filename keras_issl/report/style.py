"""The look of pages and charts: colours, and the style sheet of a page."""

__all__ = ["ACCENT", "LEVEL_COLORS", "PALETTE", "STYLE"]

# Okabe and Ito's colours, which the colour-blind tell apart, and two more. Pages and charts share them.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4f9a", "#6b6b6b")
ACCENT = PALETTE[0]
LEVEL_COLORS = {"good": "#00704f", "warning": "#8f5400", "problem": "#b3261e"}  # dark enough to read

STYLE = """
:root { --ink: #1d2530; --pale: #5a6675; --line: #dde2e8; --soft: #f5f7f9; --accent: ACCENT;
  LEVELS; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: #fff; color: var(--ink); line-height: 1.55; font-size: 16px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", Arial, sans-serif;
  overflow-wrap: break-word; }
main, header, footer { max-width: 64rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 3.5rem; }
header::before { content: ""; display: block; width: 3.5rem; height: 4px; background: var(--accent);
  margin-bottom: 1.25rem; }
h1 { font-size: 2.1rem; line-height: 1.2; font-weight: 650; letter-spacing: -0.015em; margin: 0; }
.subtitle { color: var(--pale); font-size: 1.1rem; margin: 0.5rem 0 0; max-width: 46rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.25rem 1.4rem; list-style: none; margin: 1.5rem 0 0; padding: 0;
  font-size: 0.9rem; }
a { color: var(--accent); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
section { margin-top: 3rem; }
h2 { font-size: 1.35rem; line-height: 1.3; font-weight: 650; margin: 0 0 0.9rem; padding-top: 1.1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; font-weight: 650; margin: 2rem 0 0.5rem; }
p { margin: 0.7rem 0; max-width: 46rem; }
.note { color: var(--pale); font-size: 0.9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; margin: 1.25rem 0; }
.tile { background: var(--soft); border-radius: 8px; padding: 1rem 1.15rem; }
.tile:only-child { max-width: 16rem; }
.tile b { display: block; font-size: 2rem; line-height: 1.15; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tile span { display: block; margin-top: 0.3rem; font-weight: 550; font-size: 0.95rem; }
.tile small, td small, th small { display: block; color: var(--pale); font-size: 0.85em; font-weight: 400;
  line-height: 1.45; }
.tile:first-child b { color: var(--accent); }
.verdict { border: 1px solid var(--line); border-left: 5px solid; border-radius: 6px; padding: 0.85rem 1.15rem;
  margin: 0.8rem 0; break-inside: avoid; }
.verdict p { margin: 0.3rem 0 0; max-width: 50rem; }
.verdict .title { margin: 0; font-weight: 650; color: var(--ink); }
.verdict .level { display: inline-block; margin-right: 0.6rem; font-size: 0.8rem; font-weight: 650; color: #fff;
  border-radius: 4px; padding: 0.08rem 0.5rem; vertical-align: 0.08em; }
.good { border-left-color: var(--good); } .good .level { background: var(--good); }
.warning { border-left-color: var(--warning); } .warning .level { background: var(--warning); }
.problem { border-left-color: var(--problem); } .problem .level { background: var(--problem); }
.scroll { overflow-x: auto; margin: 1.1rem 0; }
table { border-collapse: collapse; font-size: 0.93em; min-width: 16rem; max-width: 100%; }
tbody th { min-width: 7rem; }
caption { text-align: left; color: var(--pale); font-size: 0.95em; padding-bottom: 0.4rem; }
th, td { padding: 0.5rem 1.5rem 0.5rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  unicode-bidi: isolate; }
table:has(th:nth-child(10)) :is(th, td) { padding-right: 0.95rem; }
table:has(th:nth-child(10)) tbody th { min-width: 10rem; }
tr > :last-child, table:has(th:nth-child(10)) tr > :last-child { padding-right: 0.4rem; }
thead th { color: var(--pale); font-weight: 550; font-size: 0.92em; border-bottom: 1.5px solid var(--ink);
  vertical-align: bottom; }
tbody th { font-weight: 550; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead .number { white-space: normal; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0.5rem 2rem;
  align-items: start; }
figure { margin: 1.1rem 0; min-width: 0; break-inside: avoid; }
figure svg, figure img { display: block; max-width: 100%; height: auto; }
figure svg { overflow: visible; stroke-linejoin: round; stroke-linecap: butt; font-family: inherit; }
.wide .scroll { margin: 0; }
figcaption { color: var(--pale); font-size: 0.88rem; margin-top: 0.5rem; max-width: 46rem; line-height: 1.5; }
dl { display: grid; grid-template-columns: minmax(8rem, max-content) 1fr; gap: 0.35rem 1.75rem; margin: 1.1rem 0;
  font-size: 0.93rem; }
dt { color: var(--pale); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; unicode-bidi: isolate; }
details { margin: 1.1rem 0; } summary { cursor: pointer; color: var(--accent); font-weight: 550; }
pre { background: var(--soft); border-radius: 6px; padding: 1rem; overflow-x: auto; font-size: 0.78rem;
  line-height: 1.45; font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, "Liberation Mono", monospace; }
footer { color: var(--pale); font-size: 0.85rem; padding-top: 3rem; padding-bottom: 2.5rem; }
@media (max-width: 40rem) {
  main, header, footer { padding-left: 1.1rem; padding-right: 1.1rem; } header { padding-top: 2rem; }
  h1 { font-size: 1.6rem; } dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: 0.6rem; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); } .tile b { font-size: 1.6rem; }
  th, td { padding-right: 0.8rem; } .wide svg, .wide img { min-width: 44rem; }
}
@page { size: A4; margin: 17mm 15mm; }
@media print {
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  html, body { font-size: 10pt; } main, header, footer { max-width: none; padding-left: 0; padding-right: 0; }
  header { padding-top: 0; } nav { display: none; } section { margin-top: 1.6rem; }
  h2, h3, summary, caption, thead { break-after: avoid; } p { orphans: 3; widows: 3; }
  tr, .tile, dl > * { break-inside: avoid; } thead { display: table-header-group; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(7rem, 1fr)); gap: 0.6rem; }
  .tile { padding: 0.7rem 0.8rem; } .tile b { font-size: 1.45rem; white-space: nowrap; }
  .figures { grid-template-columns: 1fr 1fr; gap: 0.5rem 1.25rem; }
  .figures > :only-child { grid-column: 1 / -1; }
  .scroll { overflow: visible; } table { min-width: 0; } th, td { padding-right: 0.9rem; }
  table:has(th:nth-child(10)) { font-size: 0.72em; }
  table:has(th:nth-child(10)) :is(th, td) { padding-right: 0.6rem; }
  table:has(th:nth-child(10)) tbody th { min-width: 0; }
  figure svg, figure img { max-height: 235mm; width: auto; }
  details.raw { display: none; }
  details:not(.raw)::details-content { content-visibility: visible; display: block; height: auto; }
}
""".replace("ACCENT", ACCENT).replace("LEVELS", "; ".join(f"--{name}: {color}" for name, color in LEVEL_COLORS.items()))
