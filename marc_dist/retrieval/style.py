"""The report's style sheet: one column, light and dark, from 320 px up."""

CSS = """
:root { --ink:#1b2129; --faint:#5a6572; --paper:#fbfbf9; --card:#ffffff; --line:#dfe3e6; --dim:#cdd3d8;
  --trained:#0b6e75; --untrained:#b98b3e; --good:#1a7f4b; --bad:#b3372f; --same:#d6efe2; --same-ink:#0f5532; }
@media (prefers-color-scheme: dark) { :root { --ink:#e7eaed; --faint:#a0abb6; --paper:#14181d; --card:#1c2229;
  --line:#323b45; --dim:#3d4752; --trained:#4cc0c8; --untrained:#d8ac62; --good:#5cc78f; --bad:#f08379; --same:#1d4733;
  --same-ink:#b7ecd0; } }
* { box-sizing:border-box; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue","DejaVu Sans",sans-serif; overflow-wrap:anywhere; }
main { max-width:1120px; margin:0 auto; padding:32px 24px 64px; }
header { border-bottom:1px solid var(--line); padding-bottom:20px; }
.kicker { margin:0; color:var(--faint); font-size:14px; letter-spacing:.02em; }
h1 { margin:2px 0 12px; font-size:34px; line-height:1.15; letter-spacing:-.01em; }
h2 { margin:44px 0 6px; font-size:22px; }
h3 { margin:0; font-size:14px; font-weight:600; color:var(--faint); }
.lead { margin:0 0 16px; color:var(--faint); max-width:76ch; }
ul,ol { list-style:none; margin:0; padding:0; }
.facts { display:flex; flex-wrap:wrap; gap:6px 20px; color:var(--faint); font-size:15px; }
.cards { display:grid; grid-template-columns:repeat(auto-fit,minmax(150px,1fr)); gap:12px; margin-bottom:20px; }
.card { background:var(--card); border:1px solid var(--line); border-radius:10px; padding:14px 16px; }
.card strong { display:block; font-size:30px; line-height:1.25; font-variant-numeric:tabular-nums; }
.card p { display:flex; flex-wrap:wrap; justify-content:space-between; gap:0 8px; margin:0;
  font-size:13px; color:var(--faint); font-variant-numeric:tabular-nums; }
.card b { white-space:nowrap; } b { font-weight:500; } .better { color:var(--good); font-weight:600; }
.worse { color:var(--bad); font-weight:600; }
.scale { display:grid; grid-template-columns:auto 1fr auto; gap:8px; align-items:center; margin:6px 0 8px;
  font-size:12px; line-height:1; color:var(--faint); }
.scale svg { width:100%; overflow:visible; display:block; }
.reach,.dot { stroke:var(--trained); stroke-width:2; stroke-linecap:round; vector-effect:non-scaling-stroke; }
.dot { stroke-width:7; } .untrained .reach,.untrained .dot { stroke:var(--untrained); }
table { width:100%; border-collapse:collapse; }
th,td { text-align:left; padding:7px 10px 7px 0; border-bottom:1px solid var(--line); vertical-align:top;
  font-weight:400; }
thead th { color:var(--faint); font-size:13px; }
th small,td small { display:block; color:var(--faint); font-size:12.5px; line-height:1.35; }
.num { text-align:right; font-variant-numeric:tabular-nums; padding-right:0; padding-left:12px; overflow-wrap:normal; }
.scores th[scope=row] { padding-right:24px; } .scores .num { width:150px; white-space:nowrap; }
th.group { padding-top:22px; font-weight:600; } .note { margin:10px 0 0; font-size:13px; color:var(--faint); }
.labels th { width:30%; } .labels td { padding-right:0; vertical-align:middle; }
.labels td.num { width:142px; font-size:14px; white-space:nowrap; }
.unseen { position:absolute; width:1px; height:1px; overflow:hidden; clip-path:inset(50%); }
.legend { display:flex; flex-wrap:wrap; gap:2px 18px; font-size:14px; color:var(--faint); margin-bottom:10px; }
.legend li::before { content:""; display:inline-block; width:12px; height:12px; border-radius:3px; margin-right:7px;
  background:var(--trained); vertical-align:-1px; } .legend .untrained::before { background:var(--untrained); }
.legend .random::before { height:0; width:18px; border-radius:0; border-top:2px dashed var(--faint); background:none;
  vertical-align:4px; }
.bar { display:grid; grid-template-columns:1fr 52px; gap:8px; align-items:center; font-size:13px; line-height:17px;
  font-variant-numeric:tabular-nums; } .bar span { text-align:right; }
.bar.absent { display:block; color:var(--faint); }
.bar svg { width:100%; height:11px; display:block; }
.bar.untrained span { color:var(--faint); } .track { fill:var(--line); opacity:.55; } .fill { fill:var(--trained); }
.bar.untrained .fill { fill:var(--untrained); }
.whisker { stroke:var(--ink); stroke-width:1.5; vector-effect:non-scaling-stroke; }
.halo { stroke:var(--card); stroke-width:4; vector-effect:non-scaling-stroke; }
.panel { display:grid; grid-template-columns:148px 1fr; gap:22px; padding:18px 0; border-top:1px solid var(--line); }
.panel > * { min-width:0; }
.panel img { width:100%; aspect-ratio:1; object-fit:cover; display:block; border-radius:6px; }
.query h3 { margin-bottom:6px; color:var(--ink); } .query h3::first-letter { text-transform:uppercase; }
.query p,.rank { margin:5px 0 4px; font-size:13px; font-variant-numeric:tabular-nums; }
.answers { display:grid; grid-template-columns:repeat(6,minmax(0,1fr)); gap:12px; }
.panel > div:last-child { padding-top:27px; }
.views { border:0; padding:6px 0; align-items:center; } .panel.views > div:last-child { padding-top:0; }
.tile img { outline:3px solid var(--good); outline-offset:-3px; } .miss img { outline-color:var(--bad); }
.rank span { color:var(--good); font-weight:600; } .miss .rank span { color:var(--bad); }
.chips { display:flex; flex-wrap:wrap; align-content:flex-start; gap:3px; }
.chips li { font-size:12px; line-height:1.3; padding:1px 6px;
  border-radius:9px; } .same { background:var(--same); color:var(--same-ink); }
.chips .other { padding-left:3px; color:var(--faint); text-decoration:line-through; }
.none { margin:0; font-size:12px; color:var(--faint); }
details { margin-top:12px; } summary { cursor:pointer; color:var(--faint); font-size:14px; margin-bottom:8px; }
.charts { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,380px),1fr)); gap:16px; }
.chart { margin:0; background:var(--card); border:1px solid var(--line); border-radius:10px; padding:12px 16px; }
figcaption { display:flex; justify-content:space-between; font-size:14px; margin-bottom:12px; color:var(--faint); }
figcaption b { color:var(--ink); font-variant-numeric:tabular-nums; }
.plot { display:grid; grid-template-columns:52px 1fr; height:150px; }
.plot svg { width:100%; height:150px; overflow:visible; }
.ylabels { position:relative; font-size:12px; color:var(--faint); } .ylabels span { position:absolute; right:9px;
  transform:translateY(-50%); } .xlabels { display:flex; justify-content:space-between; margin:6px 0 0 52px;
  font-size:12px; color:var(--faint); }
.grid { stroke:var(--line); vector-effect:non-scaling-stroke; } .curve { fill:none; stroke:var(--trained);
  stroke-width:2; stroke-linejoin:round; stroke-linecap:round; vector-effect:non-scaling-stroke; }
.curve.untrained { stroke:var(--untrained); } .chance { fill:none; stroke:var(--faint); stroke-width:1.5;
  stroke-dasharray:5 4; vector-effect:non-scaling-stroke; }
.recalls { display:grid; grid-template-columns:repeat(auto-fit,minmax(136px,1fr)); gap:16px; }
.recall .plot { grid-template-columns:32px 1fr; height:190px; } .recall .plot svg { height:190px; }
.recall .xlabels { margin-left:32px; }
.maps { display:grid; gap:22px 20px; align-items:end; }
.pairs { grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr)); }
.singles { grid-template-columns:repeat(auto-fill,minmax(300px,1fr)); }
.maps figure { margin:0; min-width:0; }
.maps figcaption { margin-bottom:6px; color:var(--ink); } .maps figcaption span { color:var(--faint);
  white-space:nowrap; padding-left:12px; }
.pairs figure div { display:grid; grid-template-columns:1fr 1fr; gap:6px; }
.maps svg { width:100%; aspect-ratio:4/3; display:block; background:var(--card); border:1px solid var(--line);
  border-radius:8px; }
.all,.some { fill:none; stroke:var(--dim); stroke-width:2; stroke-linecap:round; vector-effect:non-scaling-stroke; }
.some { stroke:var(--trained); stroke-width:3; }
.untrained .some { stroke:var(--untrained); }
#settings th { width:38%; font-family:ui-monospace,"DejaVu Sans Mono",monospace; font-size:13px; }
#settings td { font-family:ui-monospace,"DejaVu Sans Mono",monospace; font-size:13px; }
@media (max-width:720px) { main { padding:20px 14px 48px; } h1 { font-size:27px; } .panel { grid-template-columns:1fr;
  gap:10px; } .query { display:grid; grid-template-columns:112px 1fr; gap:2px 14px; grid-template-rows:auto auto 1fr; }
  .views .query { grid-template-rows:auto; }
  .query img { grid-row:1 / 4; } .query h3 { grid-column:2; grid-row:1; margin:0; }
  .query p { grid-column:2; margin:0; }
  .panel > div:last-child { padding-top:0; } .answers { grid-template-columns:repeat(3,minmax(0,1fr)); }
  .rank { font-size:12px; } .rank span { font-weight:500; }
  .num { padding-left:8px; font-size:14px; } .cards { grid-template-columns:1fr 1fr; } .recalls { gap:10px; }
  .recalls .chart { padding:10px; } .recall .plot { height:120px; } .recall .plot svg { height:120px; }
  .pair tr { display:grid; grid-template-columns:repeat(3,1fr); }
  .pair th:first-child { grid-column:1 / -1; border:0; padding:9px 0 0; }
  .pair thead th:first-child { display:none; }
  .pair .num { width:auto; text-align:left; padding:3px 0 9px; } .pair td.num small { white-space:normal; }
  .labels th { width:36%; } .labels td.num { width:74px; } .labels td.num small { display:none; }
  .bar { grid-template-columns:1fr 40px; gap:6px; } .singles { grid-template-columns:1fr 1fr; gap:16px 10px; }
  .card { padding:12px; } .card strong { font-size:26px; } }
"""
