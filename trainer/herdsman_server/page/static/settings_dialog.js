// The settings, their dialogue, and what of them goes into a request.

import { HERE, serverOf } from "./api.js";
import { saveSettings, settings } from "./store.js";
import { speak } from "./texts.js";

const SAMPLING = ["temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "seed"];
const dialog = document.getElementById("settings");
const form = dialog.querySelector("form");

/** The sampling fields that are set, as a request has them. */
export function sampling() {
  const set = SAMPLING.filter((name) => typeof settings[name] === "number");
  return Object.fromEntries(set.map((name) => [name, settings[name]]));
}

/** The second server, or null. */
export const secondServer = () => serverOf(settings.second ?? "");

/** Show language and theme, and let the dialogue change the settings; `changed` is called when it closes. */
export function startSettings(changed) {
  appear();
  document.getElementById("settings-open").addEventListener("click", () => {
    for (const field of form.elements) if (field.name) field.value = settings[field.name] ?? "";
    dialog.showModal();
  });
  form.addEventListener("input", (event) => {
    const { name, type, value, validity } = event.target;
    const wanted = type === "number" && value !== "" ? Number(value) : value.trim();
    settings[name] = validity.valid ? wanted : ""; // what is out of its range is marked, and not used
    saveSettings();
    if (type.startsWith("select")) appear();
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside it
  });
  dialog.addEventListener("close", () => {
    if (!allowSecond()) changed();
  });
}

function appear() {
  speak(settings.language);
  document.documentElement.dataset.theme = settings.theme || "";
}

/**
 * The page may talk to the servers that its policy names, and to the second one only if it is in the address of the
 * page; true where the page is on its way there.
 */
export function allowSecond() {
  const server = secondServer();
  const origin = server && new URL(server).origin !== new URL(HERE).origin ? new URL(server).origin : null;
  const address = new URL(location.href);
  if (address.searchParams.get("with") === origin) return false;
  if (origin) address.searchParams.set("with", origin);
  else address.searchParams.delete("with");
  location.replace(address);
  return true;
}
