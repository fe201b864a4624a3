// Requests to the server: JSON, raw pixels, and the one error a user sees.

export class Told extends Error {
  constructor(text, status) { super(text); this.status = status; }
}

export function address(path, query = {}) {
  const words = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) words.set(key, value);
  const text = words.toString();
  return text ? `${path}?${text}` : path;
}

async function answered(promise) {
  let answer;
  try { answer = await promise; } catch { throw new Told("The page cannot reach its program. Is it still running?", 0); }
  if (answer.ok) return answer;
  let text = `${answer.status}`;
  try { text = (await answer.json()).error || text; } catch { if (answer.status === 401) text = "Open the address that the command printed, with its token."; }
  throw new Told(text, answer.status);
}

export async function get(path, query) { return (await answered(fetch(address(path, query)))).json(); }

export async function send(path, body, method = "POST") {
  const headers = { "Content-Type": "application/json" };
  return (await answered(fetch(path, { method, headers, body: JSON.stringify(body) }))).json();
}

export async function pixels(path, query) {
  const answer = await answered(fetch(address(path, query)));
  const data = new Uint8Array(await answer.arrayBuffer());
  const window = (answer.headers.get("x-window") || "0,0,0,0").split(",").map(Number);
  return { data, window, channels: Number(answer.headers.get("x-channels") || 1), revision: answer.headers.get("x-revision") };
}

export async function put(path, query, data) {
  return (await answered(fetch(address(path, query), { method: "PUT", body: data, headers: { "Content-Type": "application/octet-stream" } }))).json();
}

export function upload(path, query, file, onProgress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address(path, query));
    request.upload.onprogress = (event) => onProgress(event.loaded / Math.max(1, event.total));
    request.onload = () => {
      let told = {};
      try { told = JSON.parse(request.responseText); } catch { /* no JSON */ }
      if (request.status < 300) resolve(told); else reject(new Told(told.error || `${request.status}`, request.status));
    };
    request.onerror = () => reject(new Told(`${file.name} could not be sent.`, 0));
    request.send(file);
  });
}
