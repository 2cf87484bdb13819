// A live page asks the server for itself and takes over what changed; requests that are being drawn
// tell their steps by server-sent events in between.

import { $, ask, say, shown } from "./page.js";

const BUSY = 1000; // milliseconds between two looks while something is being drawn
const IDLE = 2500;
const STREAMS = 2; // a browser has six connections to a server, for all tabs together

const root = $("[data-live]");
const streams = new Map(); // id to EventSource
let timer = 0;
let looking = false;
let changed = false; // something was sent or ended: what the server remembers of a moment ago will not do

/** Look now, and then again and again. */
export async function refresh() {
  clearTimeout(timer);
  if (looking) return;
  looking = true;
  const url = root.dataset.live + (changed ? "?now=1" : "");
  changed = false;
  try {
    const answer = await ask(url, { headers: { Accept: "text/html" }, patience: 20_000 });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of root.querySelectorAll("[data-part]")) {
      const to = fresh.getElementById(part.id);
      if (to) morph(part, to);
    }
    $("#offline").hidden = true;
  } catch {
    $("#offline").hidden = false;
  }
  looking = false;
  if (isOver()) return;
  stream();
  if (document.hidden) return;
  timer = setTimeout(refresh, changed ? 0 : isBusy() ? BUSY : IDLE);
}

/** The same after something has changed. */
export function refreshNow() {
  changed = true;
  return refresh();
}

const isBusy = () => [...root.querySelectorAll("[data-busy]")].some((part) => Number(part.dataset.busy) > 0);

function isOver() {
  if (!("untilOver" in root.dataset) || !$('[data-over="yes"]', root)) return false;
  close();
  location.reload(); // the finished page has more to offer than its parts
  return true;
}

/** Make an element like another one, keeping those that are the same: focus and loaded pictures stay. */
function morph(from, to) {
  if (from.isEqualNode(to)) return;
  if (from.dataset?.streamed && from.dataset.status === to.dataset?.status) return; // it knows better
  const keep = new Set(["open", "data-keep", ...(from.dataset?.keep ?? "").split(" ")]); // the reader's own choices
  for (const { name } of [...from.attributes])
    if (!keep.has(name) && !to.hasAttribute(name)) from.removeAttribute(name);
  for (const { name, value } of to.attributes)
    if (!keep.has(name) && from.getAttribute(name) !== value) from.setAttribute(name, value);
  const known = new Map([...from.children].filter((child) => child.id).map((child) => [child.id, child]));
  let at = from.firstChild;
  for (const child of [...to.childNodes]) {
    const same = child.id ? known.get(child.id) : fits(at, child) ? at : null;
    if (same) {
      if (same === at) at = at.nextSibling;
      else from.insertBefore(same, at);
      if (same.nodeType === Node.ELEMENT_NODE) morph(same, child);
      else if (same.data !== child.data) same.data = child.data;
    } else {
      from.insertBefore(document.importNode(child, true), at);
      arrived(child);
    }
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

const fits = (node, other) => node && node.nodeName === other.nodeName && !node.id && !other.id;

function arrived(child) {
  if (child.dataset?.new === undefined) return;
  say(child.classList.contains("empty") ? `Failed: ${child.dataset.new}` : `Finished: ${child.dataset.new}`);
}

/** Listen to the first requests that are not over. */
function stream() {
  const rows = [...root.querySelectorAll("li[data-id]")];
  const wanted = document.hidden ? [] : rows.slice(0, STREAMS).map((row) => row.dataset.id);
  for (const [id, source] of streams) if (!wanted.includes(id)) end(id, source);
  for (const id of wanted) if (!streams.has(id)) listen(id);
}

function end(id, source) {
  source.close();
  streams.delete(id);
  delete document.getElementById(`job-${id}`)?.dataset.streamed;
}

function close() {
  for (const [id, source] of streams) end(id, source);
}

function listen(id) {
  const source = new EventSource(`/jobs/${id.split("/").map(encodeURIComponent).join("/")}/events`);
  streams.set(id, source);
  source.addEventListener("job", (event) => {
    const job = JSON.parse(event.data);
    const row = document.getElementById(`job-${id}`);
    if (!["queued", "processing"].includes(job.status)) {
      end(id, source);
      refreshNow();
    } else if (row && job.progress?.steps_total) tell(row, job);
  });
  source.addEventListener("error", () => {
    end(id, source); // the next look opens it again, if the request is still there
  });
}

/** A request's steps, time that remains and preview. */
function tell(row, { status, progress: p }) {
  row.dataset.status = status;
  row.dataset.streamed = "yes";
  const bar = $(".bar", row);
  let meter = $("progress", bar);
  let facts = $(".facts", bar);
  if (!meter || !facts) {
    meter = document.createElement("progress");
    meter.setAttribute("aria-label", "Steps");
    facts = Object.assign(document.createElement("span"), { className: "facts" });
    bar.replaceChildren(meter, facts);
  }
  meter.max = p.steps_total;
  meter.value = p.steps_done ?? 0;
  const words = [`step ${p.steps_done ?? 0} of ${p.steps_total}`];
  if (p.images_total > 1) words.push(`${p.images_done ?? 0} of ${p.images_total} images`);
  if (p.eta) words.push(`about ${p.eta > 100 ? `${Math.round(p.eta / 60)} min` : `${Math.ceil(p.eta)} s`} left`);
  facts.textContent = words.join(" · ");
  if (p.preview?.startsWith("data:image/")) $(".preview", row).src = p.preview;
}

document.addEventListener(
  "click",
  shown(async (event) => {
    const button = event.target.closest?.("[data-cancel]");
    if (!button) return;
    button.disabled = true;
    const next = button.closest("li")?.nextElementSibling ?? button.closest("li")?.previousElementSibling;
    try {
      const answer = await ask(button.dataset.cancel, { method: "DELETE" });
      const { status } = await answer.json();
      say(status === "canceled" ? "Cancelled" : `It was over before: ${status}`);
    } finally {
      button.disabled = false;
    }
    ((next && $("button", next)) ?? $("#prompt") ?? $("#main"))?.focus();
    await refreshNow();
  }),
);
document.addEventListener("visibilitychange", () => (document.hidden ? close() : refresh()));
addEventListener("pagehide", close);
addEventListener("pageshow", (event) => event.persisted && refresh());
if (root) timer = setTimeout(refresh, 100);

