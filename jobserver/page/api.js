// Requests to the JobServer, with the token. It lives in this tab only, and never in an address that is sent.

const KEY = "edl-token";
let refuse = () => {};

/** Take a token out of the address (#token=...), so that it is in no history. */
export function takeToken() {
  const found = /^#token=([^&]+)/.exec(location.hash);
  if (!found) return;
  setToken(decodeURIComponent(found[1]));
  history.replaceState(null, "", "#/jobs");
}

export const token = () => sessionStorage.getItem(KEY);
export const setToken = (value) => sessionStorage.setItem(KEY, value.trim());
export const forgetToken = () => sessionStorage.removeItem(KEY);

/** `then` is called when the server refuses the token. */
export function onRefused(then) {
  refuse = then;
}

export class Refused extends Error {}

/** The response. Throws Refused with the server's sentence, TypeError when it cannot be reached. */
export async function ask(method, path, { body, signal, headers } = {}) {
  const answer = await fetch(`/api/v1${path}`, {
    method, signal, cache: "no-store", credentials: "omit", redirect: "error",
    headers: { Authorization: `Bearer ${token() ?? ""}`, ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (answer.ok) return answer;
  const sentence = await answer.json().then((value) => value.error, () => `the server answered ${answer.status}`);
  if (answer.status === 401) refuse(sentence);
  throw new Refused(sentence);
}

export const jobPath = (job) => `/jobs/${encodeURIComponent(job)}`;
