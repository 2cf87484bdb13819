// What every page needs: say something to a screen reader, show a problem, ask the server.

export const $ = (selector, root = document) => root.querySelector(selector);

/** Tell what happened, politely, to those who cannot see it. */
export function say(text) {
  const said = $("#said");
  said.textContent = said.textContent === text ? `${text}\u00a0` : text; // the same words again are news, too
}

/** An answer that is not ok, as an error with the server's own words; `fields` are the wrong ones. */
export async function problemOf(answer) {
  let text = `The server answered ${answer.status}.`;
  let fields = [];
  try {
    const { detail } = await answer.json();
    if (typeof detail === "string") text = detail;
    else if (Array.isArray(detail)) {
      text = detail.map((fault) => (fault.ctx?.line ? `Line ${fault.ctx.line}: ${fault.msg}` : fault.msg)).join("; ");
      fields = detail.map((fault) => String(fault.loc?.at(-1) ?? ""));
    }
  } catch {
    // no JSON: the status has to do
  }
  const wait = answer.headers.get("Retry-After");
  if (answer.status === 503 && wait) text += ` (Try again in ${wait} s.)`;
  return Object.assign(new Error(text), { fields });
}

/** fetch, with every failure as an Error whose message can be shown. */
export async function ask(url, options = {}) {
  let answer;
  try {
    answer = await fetch(url, { signal: AbortSignal.timeout(options.patience ?? 60_000), ...options });
  } catch (error) {
    throw new Error(error.name === "TimeoutError" ? "The server took too long." : "The server does not answer.");
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

/** Show what went wrong beside the form, or hide it. */
export function complain(error) {
  const box = $("#problem");
  if (!box) {
    if (error) say(error.message);
    return;
  }
  box.hidden = !error;
  box.textContent = error ? error.message : "";
}

/** Run a handler; what it throws is shown. */
export const shown = (handler) => async (event) => {
  complain(null);
  try {
    await handler(event);
  } catch (error) {
    complain(error);
  }
};

/** Put a text on the clipboard; an insecure origin has the old way only. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("The browser did not let the text be copied.");
}
