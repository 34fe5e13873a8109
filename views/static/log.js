// The log of a job's page: coloured, as it grows, by pieces, searched. Without this script the page shows a piece of it plain.
//
// `rows` are the lines in the page, whole and in order, never more than MOST of them. `edge` is the offset after the last of
// them, `tail` the offset up to which the log is known; while both are the same, what the job writes is put into the page.
import { AnsiUp } from "/static/vendor/ansi_up.js";
import { refresh } from "/static/live.js";

const POLL = 500, HIDDEN = 5000, AGAIN = 1000; // milliseconds between two looks; of a tab nobody looks at; at a server that is gone
const MOST = 4000, PIECE = 1000, LONG = 20000; // lines in the page, lines that are put in at a time, bytes that are shown of one
const FULL = 1 << 20, BEHIND = 4 << 20; // bytes of the longest answer; what is skipped to show the end of a log that grows fast
const LIVE = ["pending", "running"];
const ERRORS = ["error:", "fatal:", "panicked", "traceback", "error", "failed"]; // what a first error looks like, best first

const $ = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const log = $("log");

// -- a line, as it is shown

const LINK = /\x1b\]8;[^;\x07\x1b]*;([^\x07\x1b]*)(?:\x07|\x1b\\)/; // OSC 8: its target, "" at its end
const NO_COLOUR = /\x1b(?:\[[0-?]*[ -/]*[@-ln-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[()][0-9AB]|[@-Z\\^_])/g;
const NO_LINK = /\x1b+(?=\])/g; // where something was taken out between
const UNSEEN = /[\x00-\x08\x0a-\x1a\x1c-\x1f\x7f]/g;
const PLAIN = { bold: false, faint: false, italic: false, underline: false, fg: null, bg: null };
const decoder = new TextDecoder();
const ansi = new AnsiUp();
ansi.use_classes = true;

const colours = () => Object.fromEntries(Object.keys(PLAIN).map((name) => [name, ansi[name]]));

function coloured(text) {
  const plain = text.replace(NO_COLOUR, "").replace(UNSEEN, "").replace(NO_LINK, "");
  const codes = plain.replace(/\x1b\[[\d:;]+m/g, (code) => code.replace(/([34]8:2):\d*(:\d+:\d+:\d+)/, "$1$2").replaceAll(":", ";"));
  const holder = document.createElement("template");
  // the content security policy takes styles that a script sets, not those in markup; all text in it is escaped
  holder.innerHTML = ansi.ansi_to_html(codes).replaceAll('<span style="', '<span data-style="');
  ansi._buffer = ""; // a sequence that has no end ends with its line
  for (const element of holder.content.querySelectorAll("[data-style]")) {
    element.style.cssText = element.dataset.style;
    delete element.dataset.style;
  }
  return holder.content;
}

// The address of a link that may be clicked, else null: nothing but http(s), and no name before the host that could pass for it.
function address(text) {
  try {
    const url = new URL(text);
    return /^https?:$/.test(url.protocol) && !url.username && !url.password ? url.href : null;
  } catch {
    return null;
  }
}

function anchor(href, ...inside) {
  const made = document.createElement("a");
  made.href = href;
  made.rel = "noreferrer noopener nofollow";
  made.append(...inside);
  return made;
}

function spell(size) {
  const power = Math.min(3, Math.floor(Math.log10(Math.max(1, size)) / 3));
  return `${power ? (size / 1000 ** power).toFixed(1) : size} ${["B", "kB", "MB", "GB"][power]}`;
}

const leftOut = (offset, words) => Object.assign(anchor(`${log.dataset.src}?offset=${offset}`, words), { className: "cut" });

function contentOf(row) {
  const shown = [];
  if (row.skipped) shown.push(leftOut(row.offset - row.skipped, `${spell(row.skipped)} of this line left out`), " ");
  decoder.decode(row.bytes).replace(/\r+$/, "").split(LINK).forEach((part, place, parts) => {
    if (place % 2) return;
    const words = coloured(part), target = place ? address(parts[place - 1]) : null;
    const text = words.textContent;
    if (!target || !text) return shown.push(words);
    shown.push(anchor(target, words));
    if (text !== target) shown.push(` (${target.length > 200 ? `${target.slice(0, 200)}…` : target})`);
  });
  if (row.cut) shown.push(" ", leftOut(row.offset, `${spell(row.cut)} of this line left out`));
  return shown;
}

function element(number) {
  const line = document.createElement("div");
  line.className = "line";
  const link = document.createElement("a");
  link.href = `#L${number}`;
  link.textContent = number;
  line.append(link, document.createElement("span"));
  return line;
}

function paint(row) {
  if (!row.element) {
    row.element = element(row.number);
    row.element.id = `L${row.number}`;
    row.colours = colours(); // those in which it begins, to paint it again when more of it is there
  }
  Object.assign(ansi, row.colours);
  row.element.lastChild.replaceChildren(...contentOf(row));
  row.element.classList.toggle("marked", row.number >= marked[0] && row.number <= marked[1]);
  row.element.classList.toggle("current", row.number === search.matches[search.at]?.line);
  if (search.text) markText(row.element.lastChild);
}

// -- bytes into lines

function extend(row, part) {
  row.whole = part.at(-1) === 10;
  const text = row.whole ? part.subarray(0, -1) : part;
  let bytes = new Uint8Array(row.bytes.length + text.length);
  bytes.set(row.bytes);
  bytes.set(text, row.bytes.length);
  let last = bytes.length;
  while (last && bytes[last - 1] === 13) last -= 1;
  const back = bytes.subarray(0, last).lastIndexOf(13);
  if (back >= 0) [bytes, row.cut] = [bytes.subarray(back + 1), 0]; // what overwrites itself is shown as it stands
  row.cut += Math.max(0, bytes.length - LONG);
  row.bytes = bytes.slice(0, LONG);
}

// The lines in some bytes; the first goes on with `open` when there is one, and is not among them then.
function linesIn(bytes, offset, number, open) {
  const made = [];
  let row = open;
  for (let from = 0; from < bytes.length; ) {
    const stop = bytes.indexOf(10, from) + 1 || bytes.length;
    if (!row) made.push((row = { number: number++, offset: offset + from, bytes: new Uint8Array(), cut: 0, skipped: 0 }));
    extend(row, bytes.subarray(from, stop));
    from = stop;
    if (row.whole) row = null;
  }
  return made;
}

// -- what is in the page

let rows = [];
let edge = 0, next = 1; // the offset and the number of the line after the last one in the page
let tail = 0;
let following = true;
let unseen = 0; // lines that came while the reader looked elsewhere
let marked = [0, -1];

const attached = () => edge === tail;
const first = () => (rows.length ? rows[0].offset - rows[0].skipped : 0);
const live = () => LIVE.includes(log.dataset.status);
const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 30;
const toBottom = () => (log.scrollTop = log.scrollHeight);

// The column of numbers is as wide as the longest of them.
function fitNumbers(number) {
  const digits = String(Math.max(number, rows.at(-1)?.number ?? 0));
  if (log.dataset.digits !== `${digits.length}`) log.dataset.digits = digits.length;
}

function put(made, before) {
  made.forEach(paint);
  if (made.length) fitNumbers(made.at(-1).number);
  $("rows")[before ? "prepend" : "append"](...made.map((row) => row.element));
}

function append(bytes, skipped = 0) {
  const open = rows.length && !rows.at(-1).whole ? rows.at(-1) : null;
  const made = linesIn(bytes, edge, next, open);
  if (made.length) made[0].skipped = skipped;
  if (open) paint(open);
  next += made.length;
  edge += bytes.length;
  const fit = made.slice(-MOST); // what comes faster than anybody reads is not painted
  put(fit);
  rows.push(...fit);
  for (const row of open ? [open, ...fit] : fit) noteMatch(row);
  const height = log.scrollHeight;
  for (const row of rows.splice(0, Math.max(0, rows.length - MOST))) row.element.remove();
  if (!following) log.scrollTop += log.scrollHeight - height;
  return made.length;
}

// The page shows another part of the log.
function replace(piece) {
  rows = [];
  $("rows").replaceChildren();
  [edge, next] = [piece.start, piece.line];
  Object.assign(ansi, PLAIN);
  append(piece.bytes, piece.skipped);
}

function prepend(piece) {
  const kept = colours(), height = log.scrollHeight;
  Object.assign(ansi, PLAIN);
  const made = linesIn(piece.bytes, piece.start, piece.line, null);
  if (made.length) made[0].skipped = piece.skipped;
  put(made, true);
  Object.assign(ansi, kept);
  log.scrollTop += log.scrollHeight - height;
  rows.unshift(...made);
  const over = rows.splice(MOST);
  if (over.length) {
    [edge, next] = [over[0].offset, over[0].number];
    Object.assign(ansi, over[0].colours);
    for (const row of over) row.element.remove();
  }
}

async function fetchPiece(query) {
  const answer = await fetch(`${log.dataset.src}?${query}`, { headers: { Accept: "text/plain" } });
  if (!answer.ok) throw Object.assign(new Error(`the server answered ${answer.status}`), { status: answer.status });
  const number = (name) => Number(answer.headers.get(`X-Log-${name}`));
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const [start, line, skipped, size] = ["Offset", "Line", "Skipped", "Size"].map(number);
  return { bytes, start, line, skipped, size, status: answer.headers.get("X-Job-Status") };
}

// At most PIECE whole lines of a piece that goes forward.
function shortened(piece) {
  let stop = 0;
  for (let count = 0; count < PIECE && stop < piece.bytes.length; count += 1) stop = piece.bytes.indexOf(10, stop) + 1 || piece.bytes.length;
  return { ...piece, bytes: piece.bytes.subarray(0, stop) };
}

let loading = false;

// One load at a time; what fails is said, and can be asked for again.
async function load(work) {
  if (loading) return;
  loading = true;
  try {
    await work();
  } catch (error) {
    say(`That part of the log cannot be had: ${error.message}.`);
  } finally {
    loading = false;
    showState();
  }
}

const earlier = () =>
  load(async () => {
    if (first() > 0) prepend(await fetchPiece(`before=${first()}`));
  });

const later = () =>
  load(async () => {
    const last = rows.at(-1), piece = shortened(await fetchPiece(`line=${next}&most=100000`));
    if (last && !last.whole) {
      last.cut += piece.start - edge; // it is too long to be shown
      last.whole = piece.bytes.length > 0;
      paint(last);
    }
    [edge, next] = [piece.start, piece.bytes.length ? piece.line : next];
    append(piece.bytes);
    tail = Math.max(tail, edge);
  });

const end = () =>
  load(async () => {
    const piece = await fetchPiece("before=999999999999999");
    replace(piece);
    tail = edge;
    unseen = 0;
    following = true;
    toBottom();
    if (search.text) find(false);
  });

async function follow() {
  if (!attached()) return end();
  following = true;
  unseen = 0;
  toBottom();
  showState();
}

const rowOf = (number) => rows.find((row) => row.number === number);

// Bring a line into view, from wherever it is.
async function show(number) {
  following = false;
  if (!rowOf(number)) {
    await load(async () => {
      const piece = shortened(await fetchPiece(`line=${number}&most=100000`));
      if (!piece.bytes.length) return say(`The log has no line ${number}.`);
      replace(piece);
      if (first() > 0) prepend(await fetchPiece(`before=${first()}`));
    });
  }
  rowOf(number)?.element.scrollIntoView({ block: "center" });
  showState();
}

let words = "";

function say(text) {
  words = text;
  showState();
}

function showState() {
  const lost = !attached() || (live() && !following);
  $("earlier-line").hidden = first() === 0 || filtered();
  $("later-line").hidden = attached() || filtered();
  $("follow").hidden = !lost || filtered();
  const news = `${unseen.toLocaleString("en")} new line${unseen === 1 ? "" : "s"}`;
  $("follow").textContent = live() ? `Follow the log${unseen ? ` (${news})` : ""}` : "Go to the end";
  const said = words || (next === 1 && !tail ? (live() ? "It has printed nothing yet." : "It printed nothing.") : "");
  if ($("state").textContent.trim() !== said) $("state").textContent = said;
}

// -- as it grows

function take(got) {
  const fresh = attached();
  tail += got.bytes.length;
  if (!fresh || (rows.length >= MOST && !following)) {
    unseen += got.bytes.reduce((count, byte) => count + (byte === 10), 0);
  } else {
    const count = append(got.bytes);
    if (following) toBottom();
    else unseen += count;
  }
  showState();
}

async function watch() {
  for (;;) {
    const from = tail;
    let got;
    try {
      got = await fetchPiece(`offset=${from}`);
    } catch (error) {
      if (error.status === 410) return say("The log was pruned to save room.");
      say("The server does not answer; trying again…");
      await pause(AGAIN);
      continue;
    }
    if (words.startsWith("The server")) say("");
    if (got.status !== log.dataset.status && (await refresh().catch(() => false))) log.dataset.status = got.status;
    if (from === tail && got.bytes.length) {
      if (following && attached() && got.size - from > BEHIND) await end();
      else take(got);
    }
    if (!live() && got.bytes.length < FULL) return showState();
    await pause(got.bytes.length === FULL ? 0 : document.hidden ? HIDDEN : POLL);
  }
}

// -- lines by number

function lines(hash) {
  const found = /^#L(\d{1,15})(?:-L(\d{1,15}))?$/.exec(hash);
  return found && [Number(found[1]), Number(found[2] ?? found[1])].sort((a, b) => a - b);
}

function mark(range) {
  marked = range;
  for (const row of rows) row.element.classList.toggle("marked", row.number >= range[0] && row.number <= range[1]);
}

async function goTo(range) {
  if (filtered()) setFilter(false);
  mark(range);
  await show(range[0]);
}

log.addEventListener("click", (event) => {
  const link = event.target.closest(".line > a");
  if (!link || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const number = Number(link.textContent), from = event.shiftKey && marked[0] ? marked[0] : number;
  const range = [Math.min(from, number), Math.max(from, number)];
  history.replaceState(null, "", `#L${range[0]}${range[1] > range[0] ? `-L${range[1]}` : ""}`);
  if (filtered()) goTo(range);
  else mark(range);
});
window.addEventListener("hashchange", () => lines(location.hash) && goTo(lines(location.hash)));

// -- search

const search = { text: "", at: -1, matches: [], count: 0, complete: true, lines: 0 };
const filtered = () => $("filter").checked && search.text !== "";

function markText(span) {
  for (const old of span.querySelectorAll("mark")) old.replaceWith(...old.childNodes);
  span.normalize();
  const text = span.textContent, folded = text.toLowerCase();
  const wanted = search.text.toLowerCase(), source = folded.length === text.length ? folded : text;
  const size = wanted.length;
  for (let place = size ? source.lastIndexOf(wanted) : -1, count = 0; place >= 0 && count < 100; count += 1) {
    wrap(span, place, place + size);
    place = place < size ? -1 : source.lastIndexOf(wanted, place - size);
  }
}

// A match may lie in several spans of colour: each part gets a mark of its own.
function wrap(span, from, to) {
  const parts = [];
  const walker = document.createTreeWalker(span, NodeFilter.SHOW_TEXT);
  for (let at = 0; walker.nextNode() && at < to; at += walker.currentNode.length) {
    const begin = Math.max(from - at, 0), stop = Math.min(to - at, walker.currentNode.length);
    if (begin < stop) parts.push([walker.currentNode, begin, stop]);
  }
  for (const [node, begin, stop] of parts) {
    const inside = node.splitText(begin), made = document.createElement("mark");
    inside.splitText(stop - begin);
    inside.replaceWith(made);
    made.append(inside);
  }
}

const ask = async (text) => (await fetch(`${log.dataset.src}?find=${encodeURIComponent(text)}`)).json();

// Search the whole log on the server; with `jump` the first match is brought into view.
async function find(jump = true) {
  const text = $("find").value;
  search.text = text;
  const answer = text ? await ask(text).catch(() => ({ error: "the server does not answer" })) : { matches: [], count: 0, complete: true };
  if (text !== $("find").value) return; // it was typed on meanwhile
  Object.assign(search, { at: -1, matches: [], count: 0, complete: true, lines: 0 }, answer);
  for (const row of rows) markText(row.element.lastChild);
  if (answer.error) $("count").textContent = `The search failed: ${answer.error}.`;
  else if (jump && search.matches.length) await goMatch(1);
  showMatches();
  if (!answer.error) showCount();
}

function showCount() {
  const number = (value) => value.toLocaleString("en");
  const { text, at, count, matches, complete, lines } = search;
  const more = count > matches.length ? `; the first ${number(matches.length)} can be visited` : "";
  const stopped = complete ? "" : `; it took too long and stopped in line ${number(lines + 1)}`;
  $("count").textContent = text ? `${at < 0 ? "" : `${number(at + 1)} of `}${count ? number(count) : "no match"}${more}${stopped}` : "";
  for (const line of log.querySelectorAll(".current")) line.classList.remove("current");
  const line = matches[at]?.line;
  if (line) for (const shown of [rowOf(line)?.element, matchElement(line)]) shown?.classList.add("current");
}

const matchElement = (line) => $("matches")?.querySelector(`[data-line="${line}"]`);

async function goMatch(step) {
  const { matches } = search;
  if (!matches.length) return;
  search.at = search.at < 0 && step < 0 ? matches.length - 1 : (search.at + step + matches.length) % matches.length;
  const { line } = matches[search.at];
  if (filtered()) matchElement(line)?.scrollIntoView({ block: "center" });
  else await show(line);
  showCount();
}

// A line that the job wrote after the search.
function noteMatch(row) {
  if (!search.text || row.number <= Math.max(search.lines, search.matches.at(-1)?.line ?? 0)) return;
  const text = row.element.lastChild.textContent;
  if (!text.toLowerCase().includes(search.text.toLowerCase())) return;
  search.count += 1;
  search.matches.push({ line: row.number, text });
  if (filtered()) $("matches").append(shownMatch(search.matches.at(-1)));
  showCount();
}

function shownMatch({ line, text }) {
  const shown = rowOf(line)?.element.cloneNode(true) ?? element(line);
  shown.removeAttribute("id");
  shown.dataset.line = line;
  if (!shown.lastChild.firstChild) {
    shown.lastChild.textContent = text;
    markText(shown.lastChild);
  }
  return shown;
}

function showMatches() {
  let place = $("matches");
  if (!place) {
    place = document.createElement("div");
    place.id = "matches";
    log.append(place);
  }
  const only = filtered();
  if (only && search.matches.length) fitNumbers(search.matches.at(-1).line);
  place.replaceChildren(...(only ? search.matches.map(shownMatch) : []));
  place.hidden = !only;
  $("rows").hidden = only;
  showState();
}

function setFilter(on) {
  $("filter").checked = on;
  showMatches();
  showCount();
  const line = search.matches[search.at]?.line, shown = filtered() ? matchElement(line) : rowOf(line)?.element;
  if (!on && following) toBottom();
  else shown?.scrollIntoView({ block: "center" });
}

async function endSearch() {
  $("find").value = "";
  $("filter").checked = false;
  await find(false);
}

async function firstError() {
  const named = document.querySelector(".digest a[href^='#L']");
  let line = named && Number(named.hash.slice(2));
  for (const word of ERRORS) line ||= (await ask(word).catch(() => ({}))).matches?.[0]?.line;
  if (!line) return say("No line of this log looks like an error.");
  history.replaceState(null, "", `#L${line}`);
  await goTo([line, line]);
}

let typing = null;

$("find").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(find, 200);
});
$("find").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" && event.key !== "Escape") return;
  event.preventDefault();
  log.focus({ preventScroll: true });
});
$("next").addEventListener("click", () => goMatch(1));
$("previous").addEventListener("click", () => goMatch(-1));
$("filter").addEventListener("change", () => setFilter($("filter").checked));
$("first-error").addEventListener("click", firstError);

// -- keys, and what is left

const KEYS = {
  "/": () => $("find").select(),
  n: () => goMatch(1),
  N: () => goMatch(-1),
  "?": () => $("keys").showModal(),
  Escape: endSearch,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || $("keys").open) return;
  if (event.target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]") || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
$("show-keys").addEventListener("click", KEYS["?"]);
$("hide-keys").addEventListener("click", () => $("keys").close());

function setWrap(on) {
  $("wrap").checked = on;
  log.classList.toggle("wrap", on);
  if (following) toBottom();
}

$("wrap").addEventListener("change", () => {
  setWrap($("wrap").checked);
  localStorage.setItem("forge-wrap", $("wrap").checked ? "yes" : "no");
});
for (const [id, work] of [["earlier", earlier], ["later", later], ["follow", follow]]) {
  $(id).addEventListener("click", (event) => {
    event.preventDefault();
    work();
  });
}
log.addEventListener("scroll", () => {
  if (filtered() || loading) return;
  following = atEnd() && attached();
  if (following) unseen = 0;
  else if (log.scrollTop < 100 && first() > 0) earlier();
  else if (atEnd() && !attached()) later();
  showState();
});
new ResizeObserver(() => following && toBottom()).observe(log);

async function begin() {
  if (live()) document.body.classList.add("watched");
  $("logtools").hidden = false;
  setWrap(localStorage.getItem("forge-wrap") === "yes");
  const { offset, line, skipped, size } = log.dataset, range = lines(location.hash);
  const at = new URLSearchParams(location.search).has("line") || new URLSearchParams(location.search).has("before");
  tail = edge = Number(offset);
  next = Number(line);
  if (at || (range && range[0] < next)) {
    tail = Number(size);
    edge = -1; // what is there yet is not of the end
    if (range) await goTo(range);
    else await show(next);
  } else {
    let piece = null;
    while (!piece) piece = await fetchPiece(`offset=${offset}`).catch(() => pause(AGAIN));
    replace({ ...piece, start: Number(offset), line: Number(line), skipped: Number(skipped) });
    tail = edge;
    if (range) await goTo(range);
    else if (following) toBottom(); // the reader may have scrolled meanwhile
  }
  showState();
  await watch();
}

if (log) begin();
