// Colour the log of a job page, and let it grow while the job runs. Without this the page shows the same lines plain.
import { AnsiUp } from "/static/vendor/ansi_up.js";

const log = document.getElementById("log");

// Links in a log (OSC 8) are shown as their text only; ansi_up would drop the text of a link it does not allow.
const LINKS = /\x1b\]8;[^\x07\x1b]*(?:\x07|\x1b\\)/g;

function painter() {
  const ansi = new AnsiUp();
  ansi.use_classes = true;
  ansi.url_allowlist = {};
  return (text, unfinished) => {
    const before = unfinished && { ...ansi };
    const holder = document.createElement("template");
    // the content security policy takes styles that a script sets, not those in markup; all text in it is escaped
    holder.innerHTML = ansi.ansi_to_html(text).replaceAll('<span style="', '<span data-style="');
    for (const element of holder.content.querySelectorAll("[data-style]")) {
      element.style.cssText = element.dataset.style;
      delete element.dataset.style;
    }
    if (unfinished) Object.assign(ansi, before); // it is painted again when more of it is there
    return holder.content;
  };
}

async function show() {
  const paint = painter();
  const decoder = new TextDecoder("utf-8");
  let offset = Number(log.dataset.offset);
  let number = Number(log.dataset.line);
  let rest = "";
  let row = null;
  let fresh = true;
  let open = false; // whether the last row is a line that has not ended yet

  const put = (text, unfinished) => {
    // what overwrites itself with \r is shown as it would stand in the end
    const shown = text.replace(LINKS, "").replace(/\r+$/, "").split("\r").pop().replace(/[\x00-\x08\x0b-\x1a\x1c-\x1f]/g, "");
    row.lastChild.replaceChildren(paint(shown, unfinished));
  };
  const begin = (into) => {
    row = document.createElement("div");
    row.className = "line";
    row.id = `L${number}`;
    const link = document.createElement("a");
    link.href = `#L${number}`;
    link.textContent = number;
    row.append(link, document.createElement("span"));
    into.append(row);
    number += 1;
  };

  for (;;) {
    let answer;
    try {
      answer = await fetch(`${log.dataset.src}?offset=${offset}`, { headers: { Accept: "text/plain" } });
    } catch {
      await new Promise((done) => setTimeout(done, 1000));
      continue; // the server restarts; the page goes on when it is back
    }
    if (!answer.ok) return;
    const status = answer.headers.get("X-Job-Status");
    const bytes = await answer.arrayBuffer();
    offset += bytes.byteLength;
    if (bytes.byteLength) {
      const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
      rest = lines.pop();
      const all = document.createDocumentFragment();
      for (const line of lines) {
        if (!open) begin(all);
        open = false;
        put(line);
      }
      if (rest) {
        if (!open) begin(all);
        open = true;
        put(rest, true);
      }
      const tail = window.innerHeight + window.scrollY >= document.body.offsetHeight - 40;
      const inner = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      if (fresh) log.replaceChildren();
      fresh = false;
      log.append(all);
      document.getElementById("nolog")?.remove();
      if (log.dataset.live === "yes" && inner) log.scrollTop = log.scrollHeight;
      if (log.dataset.live === "yes" && tail) window.scrollTo(0, document.body.scrollHeight);
      continue;
    }
    if (status !== "pending" && status !== "running") break;
    await new Promise((done) => setTimeout(done, 700));
  }
  if (log.dataset.live === "yes") location.reload();
  else if (/^#L\d+$/.test(location.hash)) document.querySelector(location.hash)?.scrollIntoView({ block: "center" });
}

if (log) show();
