// What the browser keeps: settings and conversations for ever (localStorage), keys until the tab is closed.

const SETTINGS = "herdsman.settings";
const CONVERSATION = "herdsman.conversation.";
const KEY = "herdsman.key.";

function read(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null; // somebody wrote something else there
  }
}

/** The settings: {system, temperature, ..., language, theme, second, compare, models: [choice, choice]}. */
export const settings = { models: [], ...read(SETTINGS) };

export function saveSettings() {
  localStorage.setItem(SETTINGS, JSON.stringify(settings));
}

/** A conversation: turns of a question and an answer for each model asked. */
export function newConversation() {
  return { id: crypto.getRandomValues(new Uint32Array(2)).join("-"), title: "", updated: 0, turns: [] };
}

/** All conversations, the newest first; each has an entry of its own, so that two tabs do not undo each other. */
export function conversations() {
  const names = Object.keys(localStorage).filter((name) => name.startsWith(CONVERSATION));
  const found = names.map(read).filter((each) => each?.id && Array.isArray(each.turns));
  return found.sort((one, other) => other.updated - one.updated);
}

const withoutRunning = (name, value) => (name === "running" ? undefined : value);

/** Keep a conversation; false where the browser has no room left. */
export function keep(conversation) {
  conversation.updated = Date.now();
  conversation.title = (conversation.turns[0]?.question ?? "").trim().split("\n")[0].slice(0, 80);
  try {
    localStorage.setItem(CONVERSATION + conversation.id, JSON.stringify(conversation, withoutRunning));
    return true;
  } catch {
    return false;
  }
}

export function forget(id) {
  localStorage.removeItem(CONVERSATION + id);
}

export function forgetAll() {
  for (const each of conversations()) forget(each.id);
}

export const keyOf = (server) => sessionStorage.getItem(KEY + server) ?? "";

export function setKey(server, key) {
  sessionStorage.setItem(KEY + server, key);
}
