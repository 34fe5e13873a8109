// Keep a page up to date while it is looked at: fetch it again, and change only what has changed, so that the focus,
// what is being typed, what is folded out and where the reader has scrolled to stay. What carries data-keep belongs to
// another script and is left alone.
// What carries data-refresh names where the page is without it, so that it is not sent again.
const BUSY = 1500, QUIET = 5000; // milliseconds between two looks
let tag = null;

const keyOf = (node) => (node.nodeType === Node.ELEMENT_NODE && (node.id || node.dataset.key)) || null;

function copyAttributes(old, fresh) {
  for (const { name } of [...old.attributes]) if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (name !== "open" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}

function morph(old, fresh) {
  if (old.isEqualNode(fresh) || old.dataset?.keep !== undefined) return;
  if (old.nodeName !== fresh.nodeName || keyOf(old) !== keyOf(fresh)) return old.replaceWith(fresh);
  if (old.nodeType !== Node.ELEMENT_NODE) return void (old.nodeValue = fresh.nodeValue);
  copyAttributes(old, fresh);
  const known = new Map([...old.childNodes].filter(keyOf).map((child) => [keyOf(child), child]));
  let at = old.firstChild;
  for (const child of [...fresh.childNodes]) {
    const same = known.get(keyOf(child));
    if (same && same !== at) old.insertBefore(same, at);
    if (same || (at && !keyOf(at) && !keyOf(child))) {
      const next = same && same !== at ? at : at.nextSibling;
      morph(same ?? at, child);
      at = next;
    } else old.insertBefore(child, at);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

// Look once; false when there is no answer to use. A page that says otherwise (a branch that was merged) is shown as well.
export async function refresh() {
  const headers = { Accept: "text/html", ...(tag && { "If-None-Match": tag }) };
  const lean = document.querySelector("[data-refresh]")?.dataset.refresh;
  const answer = await fetch(lean ?? location.pathname + location.search, { headers });
  if (answer.status === 304) return true;
  if (answer.status >= 500 || answer.status === 429) return false;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  tag = answer.headers.get("ETag");
  document.title = fresh.title;
  for (const place of ["link[rel=icon]", "main"]) morph(document.querySelector(place), fresh.querySelector(place));
  document.body.dataset.busy = fresh.body.dataset.busy;
  document.dispatchEvent(new Event("refreshed"));
  return true;
}

async function watch() {
  for (;;) {
    const busy = document.body.dataset.busy === "yes" && !document.querySelector("[data-refresh]"); // whose script looks itself
    await new Promise((done) => setTimeout(done, busy ? BUSY : QUIET));
    if (document.hidden) await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
    await refresh().catch(() => false); // the server restarts; the next look may find it
  }
}

watch();
