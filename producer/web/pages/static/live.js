// A live page fetches itself again and takes over the parts that changed. In between, server-sent events report the
// steps of the first requests in the queue.

import { $, announce, pathOf, request, showingErrors } from "./page.js";

const BUSY = 1000; // milliseconds between two fetches while something is being drawn
const IDLE = 2500; // and while nothing is
const STREAMS = 2; // a browser allows six connections to a server, for all its tabs together

const root = $("[data-live]");
const streams = new Map(); // id to EventSource
const title = document.title;
let timer = 0;
let fetching = false;
let changed = false; // a request was sent or has finished: ask the server not to use its cache

/** Fetch now, and then at intervals. */
export async function refresh() {
  clearTimeout(timer);
  if (fetching) return;
  fetching = true;
  const url = root.dataset.live + (changed ? (root.dataset.live.includes("?") ? "&now=1" : "?now=1") : "");
  changed = false;
  try {
    const response = await request(url, { headers: { Accept: "text/html" }, timeout: 20_000 });
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const part of root.querySelectorAll("[data-part]")) {
      const to = fresh.getElementById(part.id);
      if (to) morph(part, to);
    }
    $("#offline").hidden = true;
  } catch {
    $("#offline").hidden = false;
  }
  fetching = false;
  if (isFinished()) return;
  showInTitle();
  updateStreams();
  if (document.hidden) return;
  timer = setTimeout(refresh, changed ? 0 : isBusy() ? BUSY : IDLE);
}

/** Fetch after a change, past the server's cache. */
export function refreshNow() {
  changed = true;
  return refresh();
}

const busyParts = () => [...root.querySelectorAll("[data-busy]")].map((part) => Number(part.dataset.busy));
const isBusy = () => busyParts().some((count) => count > 0);

/** Say in the tab's title how many requests are not finished, for people who look at another tab. */
function showInTitle() {
  const count = busyParts().reduce((sum, each) => sum + each, 0);
  document.title = (count ? `(${count}) ` : "") + title;
}

function isFinished() {
  if (!("untilFinished" in root.dataset) || !$('[data-finished="yes"]', root)) return false;
  closeStreams();
  location.reload(); // the finished page has more than the live parts
  return true;
}

/** Make an element equal to another one and keep what is equal already, so that focus and loaded pictures stay. */
function morph(from, to) {
  if (from.isEqualNode(to)) return;
  if (from.dataset?.streamed && from.dataset.status === to.dataset?.status) return; // events are newer than the page
  const keep = new Set(["open", "data-keep", ...(from.dataset?.keep ?? "").split(" ")]); // the user's own choices
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
      announceItem(child);
    }
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

const fits = (node, other) => node && node.nodeName === other.nodeName && !node.id && !other.id;

function announceItem(child) {
  const text = child.dataset?.announce;
  if (text !== undefined) announce(text);
}

/** Listen to the first unfinished requests, and to no others. */
function updateStreams() {
  const rows = [...root.querySelectorAll("li[data-id]")];
  const wanted = document.hidden ? [] : rows.slice(0, STREAMS).map((row) => row.dataset.id);
  for (const [id, source] of streams) if (!wanted.includes(id)) closeStream(id, source);
  for (const id of wanted) if (!streams.has(id)) listen(id);
}

function closeStream(id, source) {
  source.close();
  streams.delete(id);
  delete document.getElementById(`job-${id}`)?.dataset.streamed;
}

function closeStreams() {
  for (const [id, source] of streams) closeStream(id, source);
}

function listen(id) {
  const source = new EventSource(`/jobs/${pathOf(id)}/events`);
  streams.set(id, source);
  source.addEventListener("job", (event) => {
    const job = JSON.parse(event.data);
    const row = document.getElementById(`job-${id}`);
    if (!["queued", "processing"].includes(job.status)) {
      closeStream(id, source);
      refreshNow();
    } else if (row && job.progress?.steps_total) showProgress(row, job);
  });
  source.addEventListener("error", () => {
    closeStream(id, source); // the next fetch opens it again if the request is still there
  });
}

/** Show a request's steps, remaining time and preview. */
function showProgress(row, { status, progress: p }) {
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
  const parts = [`step ${p.steps_done ?? 0} of ${p.steps_total}`];
  if (p.images_total > 1) parts.push(`${p.images_done ?? 0} of ${p.images_total} images`);
  if (p.eta) parts.push(`about ${p.eta > 100 ? `${Math.round(p.eta / 60)} min` : `${Math.ceil(p.eta)} s`} left`);
  facts.textContent = parts.join(" · ");
  if (p.preview?.startsWith("data:image/")) $(".preview", row).src = p.preview;
}

document.addEventListener(
  "click",
  showingErrors(async (event) => {
    const button = event.target.closest?.("[data-cancel]");
    if (!button) return;
    button.disabled = true;
    const next = button.closest("li")?.nextElementSibling ?? button.closest("li")?.previousElementSibling;
    try {
      const response = await request(button.dataset.cancel, { method: "DELETE" });
      const { status } = await response.json();
      announce(status === "canceled" ? "Cancelled" : `It had already finished: ${status}`);
    } finally {
      button.disabled = false;
    }
    ((next && $("button", next)) ?? $("#prompt") ?? $("#main"))?.focus();
    await refreshNow();
  }),
);
document.addEventListener("visibilitychange", () => (document.hidden ? closeStreams() : refresh()));
addEventListener("pagehide", closeStreams);
addEventListener("pageshow", (event) => event.persisted && refresh());
if (root) {
  showInTitle();
  timer = setTimeout(refresh, 100);
}

