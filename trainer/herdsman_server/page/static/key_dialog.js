// Asks for an API key where a server answers 401.

import { say } from "./texts.js";
import { keyOf, setKey } from "./store.js";

const dialog = document.getElementById("key");
let asking = null;

/** Do something with a server; where it wants a key, ask for one and do it again. */
export async function withKey(server, attempt) {
  for (;;) {
    const used = keyOf(server);
    try {
      return await attempt();
    } catch (error) {
      if (error.status !== 401) throw error;
      if (keyOf(server) !== used) continue; // the other model's question brought it meanwhile
      asking ??= ask(server, used).finally(() => (asking = null));
      if (!(await asking)) throw error;
    }
  }
}

function ask(server, used) {
  const form = dialog.querySelector("form");
  dialog.querySelector("h2").textContent = say(used ? "keyWrong" : "keyTitle");
  document.getElementById("key-server").textContent = server;
  form.elements.key.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  form.elements.key.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "use" && form.elements.key.value.trim();
      form.elements.key.value = "";
      if (given) setKey(server, given);
      resolve(Boolean(given));
    }, { once: true });
  });
}

// Enter in the field uses the key; without this the first button of the form, which cancels, would be pressed.
dialog.querySelector("input").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.isComposing) return;
  event.preventDefault();
  dialog.querySelector("button[value=use]").click();
});
