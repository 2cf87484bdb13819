// One picture: copy its recipe, draw it again, go to its neighbours.

import { $, ask, copy, say, shown } from "./page.js";

document.addEventListener("click", shown(async (event) => {
  const button = event.target.closest?.("[data-copy], [data-copy-from]");
  if (!button) return;
  const { copy: where, copyFrom: from } = button.dataset;
  await copy(where ? $(where).textContent : await (await ask(from)).text());
  say("Copied");
  const label = (button.dataset.label ??= button.textContent);
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
}));

$("#again")?.addEventListener("click", shown(async (event) => {
  const button = event.currentTarget;
  button.disabled = true;
  try {
    const recipe = await (await ask(button.dataset.recipe)).text();
    const wanted = JSON.parse(recipe);
    delete wanted.seed;
    const answer = await ask("/jobs", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: "sameSeed" in button.dataset ? recipe : JSON.stringify(wanted),
    });
    const { id } = await answer.json();
    location.assign(`/pictures/${encodeURIComponent(id)}`);
  } finally {
    button.disabled = false;
  }
}));

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  if (event.target.closest?.("input, textarea, select, pre")) return;
  const link = { ArrowLeft: $("#newer"), ArrowRight: $("#older"), Escape: $(".crumbs a") }[event.key];
  if (link) {
    event.preventDefault();
    link.click();
  }
});

for (const time of document.querySelectorAll("time")) {
  const moment = new Date(time.dateTime);
  if (!Number.isNaN(moment.valueOf())) time.textContent = moment.toLocaleString();
}
