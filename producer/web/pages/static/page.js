// What every page needs: announcements, error messages, and requests to the server.

export const $ = (selector, root = document) => root.querySelector(selector);

/** Announce what happened to users of screen readers. */
export function announce(text) {
  const announcer = $("#announcer");
  announcer.textContent = announcer.textContent === text ? `${text}\u00a0` : text; // a repeated text must change
}

/** A response that is not ok as an error with the server's message; `fields` are the names of the wrong fields. */
export async function errorOf(response) {
  let text = `The server answered ${response.status}.`;
  let fields = [];
  try {
    const { detail } = await response.json();
    if (typeof detail === "string") text = detail;
    else if (Array.isArray(detail)) {
      text = detail.map(({ msg, ctx }) => (ctx?.line && !/^line /i.test(msg) ? `Line ${ctx.line}: ${msg}` : msg)).join("; ");
      fields = detail.map((entry) => String(entry.loc?.at(-1) ?? ""));
    }
  } catch {
    // not JSON: only the status is known
  }
  const wait = response.headers.get("Retry-After");
  if (response.status === 503 && wait) text += ` (Try again in ${wait} s.)`;
  return Object.assign(new Error(text), { fields });
}

/** `fetch` that throws every failure as an Error whose message can be shown. `timeout` is in milliseconds. */
export async function request(url, { timeout = 60_000, ...options } = {}) {
  let response;
  try {
    response = await fetch(url, { signal: AbortSignal.timeout(timeout), ...options });
  } catch (error) {
    throw new Error(error.name === "TimeoutError" ? "The server took too long to answer." : "The server does not answer.");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** Show an error beside the form; null hides it. */
export function showError(error) {
  const box = $("#problem");
  if (!box) {
    if (error) announce(error.message);
    return;
  }
  box.hidden = !error;
  box.textContent = error ? error.message : "";
}

/** An event handler whose errors are shown. */
export const showingErrors = (handler) => async (event) => {
  showError(null);
  try {
    await handler(event);
  } catch (error) {
    showError(error);
  }
};

/** Copy a text to the clipboard; on an insecure origin only the old way works. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("The browser blocked copying.");
}

/** An id as a part of a URL's path. */
export const pathOf = (id) => id.split("/").map(encodeURIComponent).join("/");
