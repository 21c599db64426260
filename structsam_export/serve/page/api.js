// Questions to the server. Only the latest answer to each kind of question counts: an earlier one is aborted.

let token = sessionStorage.getItem("token") || "";
export const setToken = (text) => { token = text; sessionStorage.setItem("token", text); };

export class Refused extends Error {
  constructor(status, reason) { super(reason); this.status = status; }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  for (let tries = 0; ; tries += 1) {
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The server does not answer. Is it still running?");
    }
    if (answer.status !== 429 || tries >= 5) break;
    const seconds = Math.min(10, Number(answer.headers.get("Retry-After")) || 1);
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    options.signal?.throwIfAborted();
  }
  if (answer.ok && options.raw) return answer.arrayBuffer();
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, body.error || `The server answered ${answer.status}.`);
  return body;
}

const asJson = (body, signal) => ({
  method: "POST", signal, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
});

export const exports = () => ask("v1/exports");
export const embed = (name, file, signal) => ask(`v1/embed?export=${encodeURIComponent(name)}`, {
  method: "POST", signal, body: file, headers: { "Content-Type": file.type || "application/octet-stream" },
});
const query = (about) => new URLSearchParams(about).toString();
export const decoder = (name) => ask(`v1/decoder?${query({ export: name })}`, { raw: true });
// float32, without a head: its shape is known.
export const embedding = (name, image, signal) => ask(`v1/embedding?${query({ export: name, image })}`, { raw: true, signal });
export const tokens = (body, signal) => ask("v1/tokens", asJson(body, signal));
export const predict = (body, signal) => ask("v1/predict", asJson(body, signal));
export const everything = (body, signal) => ask("v1/everything", asJson(body, signal));
