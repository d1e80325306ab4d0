// The service's routes. What it refuses becomes a `Problem`, with what its problem document says.

export const ROOT = "/api/v1";

export class Problem extends Error {
  constructor(status, document) {
    super(document.detail || document.title || `the service answered ${status}`);
    this.status = status;
    this.nearest = document.nearest || [];
  }
}

async function answered(path, signal) {
  let response;
  try {
    response = await fetch(path, { signal, credentials: "same-origin", cache: "no-cache" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The service cannot be reached." });
  }
  if (response.ok) return response;
  if (response.status === 401) document.dispatchEvent(new Event("session-ended"));
  throw new Problem(response.status, await response.json().catch(() => ({})));
}

export async function getJson(path, signal) {
  return (await answered(path, signal)).json();
}

export async function getText(path, signal) {
  return (await answered(path, signal)).text();
}

/** The pixels of a picture as they are stored. */
export async function getPicture(path, signal) {
  const blob = await (await answered(path, signal)).blob();
  return createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
}

/** What `ask` gives, or `otherwise` where there is no such thing. */
export async function orWithout(ask, otherwise) {
  try {
    return await ask;
  } catch (error) {
    if (error instanceof Problem && error.status === 404) return otherwise;
    throw error;
  }
}

/** Every entry called `key` of an answer that comes in pages. */
export async function getAll(path, key, signal) {
  const found = [];
  for (let next = `${path}?limit=100`; next;) {
    const page = await getJson(next, signal);
    found.push(...page[key]);
    next = page.next;
  }
  return found;
}

export const studyPath = (id) => `${ROOT}/studies/${id}`;
export const casePath = (id, policy, number) => `${studyPath(id)}/policies/${policy}/cases/${number}`;
