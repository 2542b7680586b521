"""The frame of a report's page and its style sheet."""

__all__ = ['PAGE', 'STYLE']

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<header>$header</header>
<main>
<ul class="tiles">$tiles</ul>
<nav aria-label="Sections"><ul>$links</ul></nav>
$sections</main>
</body>
</html>
"""
"""Its placeholders take HTML. The policy lets a browser load nothing and run nothing, should an escape be missing."""

STYLE = """:root { --ink: #222; --soft: #5c5c5c; --line: #dcdcdc; --page: #fff; --raised: #f6f6f4; --link: #005a8c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e6; --soft: #a9a9a6; --line: #3c3c3c; --page: #161616; --raised: #222; --link: #7cc4f0; }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; color: var(--ink); background: var(--page);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1, h2 { line-height: 1.2; overflow-wrap: anywhere; text-wrap: balance; }
h1 { font-size: 1.9rem; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; margin: 0 0 .75rem; }
p { margin: 0 0 .9rem; max-width: 42rem; }
a { color: var(--link); }
.kind { color: var(--soft); margin: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
ul, ol { list-style: none; margin: 0; padding: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: .6rem; margin: 1.75rem 0; }
.tiles li { background: var(--raised); border-top: 4px solid var(--tint); border-radius: 4px; padding: .55rem .8rem; }
.tiles span { display: block; color: var(--soft); font-size: .88rem; }
.tiles strong { font-size: 1.45rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; font-size: .92rem; }
section { margin-top: 2.75rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; margin-bottom: 1rem; }
th, td { text-align: right; padding: .3rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
td:not(.word) { white-space: nowrap; }
th:first-child, td:first-child { padding-left: .2rem; }
.word, th[scope="row"] { text-align: left; overflow-wrap: anywhere; min-width: 6rem; }
.classes th, .classes td { padding-inline: .4rem; }
.classes th:first-child { min-width: 9rem; }
.classes td:nth-last-child(4) { position: relative; min-width: 6rem; }
.bar { position: absolute; left: .7rem; right: .7rem; bottom: .15rem; height: 3px; }
.bar { background: linear-gradient(var(--tint) 0 0) left / var(--part) 100% no-repeat; }
.group { white-space: nowrap; }
.group::before {
  content: ""; display: inline-block; width: .6em; height: .6em; margin-right: .4em; border-radius: 50%;
  background: var(--tint);
}
figure { margin: 0; }
figure img { display: block; width: 100%; min-width: 32rem; height: auto; background: #fff; border-radius: 4px; }
figcaption { color: var(--soft); font-size: .88rem; margin-top: .4rem; }
.errors { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .8rem; font-size: .9rem; }
.errors > li { display: flex; gap: .8rem; background: var(--raised); border-radius: 4px; padding: .7rem; }
.errors img { width: 6rem; height: 6rem; flex: none; object-fit: contain; }
.tiny { image-rendering: pixelated; }
.errors div { min-width: 0; overflow-wrap: anywhere; line-height: 1.4; }
.errors p, .errors ol { margin: 0 0 .2rem; }
.errors ol b { font-weight: 500; }
.off, .file { color: var(--soft); }
.file { font-size: .8rem; }
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --raised: #f6f6f4; --link: #000; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .scroll { overflow: visible; }
  figure img { min-width: 0; }
  h2, section > p { break-after: avoid; }
  figure, tr, .tiles li, .errors > li { break-inside: avoid; }
  thead { display: table-header-group; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
