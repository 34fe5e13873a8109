// What is folded since it is large is fetched when it is opened, and a link to a line of it opens it. Without us the link
// in its place leads to a page of its own, which is also what we fetch.
async function fill(file) {
  const link = file.open && file.querySelector(".body > p > a.fetch");
  if (!link || link.dataset.asked) return;
  link.dataset.asked = "yes";
  const said = link.textContent;
  link.textContent = "Its lines are being fetched…";
  try {
    const answer = await fetch(link.href, { headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(`${answer.status}`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    link.closest(".body").replaceChildren(...page.getElementById(file.id).querySelector(".body").childNodes);
  } catch {
    link.textContent = said;
    delete link.dataset.asked;
  }
}

async function follow() {
  const place = location.hash.slice(1);
  const file = document.getElementById(place.slice(0, 11));
  if (!file?.matches("details.file")) return;
  if (file.open && document.getElementById(place)) return;
  file.open = true;
  await fill(file);
  if (document.getElementById(place)) location.replace(location.hash); // :target is looked for anew
}

document.addEventListener("toggle", (event) => event.target.matches("details.file") && fill(event.target), true);
document.addEventListener("refreshed", () => document.querySelectorAll("details.file[open]").forEach(fill));
window.addEventListener("hashchange", follow);
follow();
