// The explorer's own JSON API. No other host is ever asked.

export class ApiError extends Error {
  constructor(text, status) {
    super(text);
    this.status = status; // 0: the explorer itself cannot be reached
  }

  // Whether the same request may succeed in a moment.
  get passing() {
    return this.status === 0 || this.status === 202 || this.status >= 500;
  }
}

async function ask(path, options) {
  let response, body;
  try {
    response = await fetch(path, options);
    body = await response.json();
  } catch {
    throw new ApiError("The explorer itself does not answer. Is `csmf explore` still running?", 0);
  }
  if (body.error !== undefined) throw new ApiError(body.error, response.status);
  return body;
}

const query = (fields) =>
  new URLSearchParams(Object.entries(fields).filter(([, value]) => value !== null)).toString();

export const state = () => ask("/api/state");
export const users = (text, version) => ask(`/api/users?${query({ text, version })}`);
export const items = (text, version) => ask(`/api/items?${query({ text, version })}`);
export const history = (user, version) => ask(`/api/history?${query({ user, version })}`);
export const recommend = (body) =>
  ask("/api/recommend", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
