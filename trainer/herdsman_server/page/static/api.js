// Talks to this server, or to a second one, through OpenAI's API.

import { keyOf } from "./store.js";

/** This server; behind an Ingress the page may have a path before it. */
export const HERE = new URL(".", document.baseURI).href;

/** What a server said against a request, or that it was not reached (status 0). */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The root of a server's address, without /v1; null for what is no address. */
export function serverOf(address) {
  if (!URL.canParse(address)) return null;
  const url = new URL(address);
  if (!/^https?:$/.test(url.protocol)) return null;
  return url.origin + url.pathname.replace(/\/*(v1\/*)?$/, "/");
}

async function request(server, path, options = {}) {
  const key = keyOf(server);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(`${server}v1/${path}`, { ...options, headers, credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, error.message);
  }
  if (!response.ok) {
    const said = await response.json().catch(() => null);
    throw new ApiError(response.status, said?.error?.message ?? `${response.status} ${response.statusText}`);
  }
  return response;
}

/** The names of the models of a server. */
export async function models(server) {
  const body = await (await request(server, "models")).json();
  return body.data.map((each) => each.id);
}

/** Yield {text} as the answer comes, and {reason} or {tokens} at its end; aborting the signal ends it. */
export async function* answer(server, body, signal) {
  const response = await request(server, "chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let complete = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      complete = true;
      continue;
    }
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(500, event.error.message);
    const choice = event.choices?.[0];
    if (choice?.delta?.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { reason: choice.finish_reason };
    if (event.usage) yield { tokens: event.usage.completion_tokens };
  }
  if (!complete) throw new ApiError(0, "");
}

/** The data of server-sent events, as far as they are used here: one line each. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
