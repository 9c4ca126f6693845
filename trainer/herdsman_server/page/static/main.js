// Puts the page together: whom to ask, the conversations of before, the keys of the keyboard.

import { HERE, models as modelsOf } from "./api.js";
import { Conversation, told } from "./conversation.js";
import { withKey } from "./key_dialog.js";
import { element } from "./rich_text.js";
import { allowSecond, secondServer, startSettings } from "./settings_dialog.js";
import { conversations, forget, forgetAll, newConversation, saveSettings, settings } from "./store.js";
import { label, say } from "./texts.js";
import { iconButton, sends } from "./turn_view.js";

const [prompt, send, stop, notice, history, compare] = ["prompt", "send", "stop", "notice", "history", "compare"].map(
  (id) => document.getElementById(id),
);
const selects = [0, 1].map((number) => document.getElementById(`model-${number}`));
const warn = (text) => (notice.textContent = text);

const conversation = new Conversation({
  models: () => selects.filter((each) => !each.hidden && each.value).map((each) => JSON.parse(each.value)),
  changed: drawControls,
  warn,
});

// Models

let asked = null;

async function loadModels() {
  asked = secondServer();
  const servers = [...new Set([HERE, secondServer()].filter(Boolean))];
  const problems = [];
  const lists = await Promise.all(servers.map(async (server) => {
    try {
      return (await withKey(server, () => modelsOf(server))).map((model) => ({ server, model }));
    } catch (error) {
      problems.push(told(error, { server }));
      return [];
    }
  }));
  const choices = lists.flat();
  selects.forEach((select, number) => fill(select, choices, settings.models[number] ?? JSON.stringify(choices[number])));
  warn(problems.join(" "));
  drawControls();
}

function fill(select, choices, wanted) {
  select.replaceChildren(...choices.map((choice) => {
    const where = choice.server === HERE ? "" : ` · ${new URL(choice.server).host}`;
    const option = element("option", choice.model + where);
    option.value = JSON.stringify(choice);
    return option;
  }));
  if (!choices.length) select.append(new Option(say("noModels"), ""));
  select.value = wanted;
  if (select.selectedIndex < 0) select.selectedIndex = Math.max(0, Math.min(selects.indexOf(select), choices.length - 1));
}

selects.forEach((select, number) => select.addEventListener("change", () => {
  settings.models[number] = select.value;
  saveSettings();
}));

compare.addEventListener("click", () => {
  settings.compare = !settings.compare;
  saveSettings();
  drawControls();
  conversation.draw();
});

// Asking

document.getElementById("composer").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!prompt.value.trim() || conversation.running) return;
  if (!selects[0].value) await loadModels(); // the server may be there by now
  const question = prompt.value;
  if (!question.trim() || conversation.running || !selects[0].value) return;
  warn("");
  prompt.value = "";
  conversation.ask(question);
  prompt.focus();
});

prompt.addEventListener("keydown", (event) => {
  if (sends(event)) event.target.form.requestSubmit();
});
prompt.addEventListener("input", drawControls);
stop.addEventListener("click", () => {
  conversation.stop();
  prompt.focus();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (history.classList.contains("shown")) showHistory(false);
  else conversation.stop();
});

// The conversations of before

function drawHistory() {
  const all = conversations();
  document.getElementById("delete-all").disabled = !all.length;
  document.getElementById("conversations").replaceChildren(...all.map((kept) => {
    const item = element("li");
    const open = element("button", "", "open");
    open.type = "button";
    open.append(element("span", kept.title));
    if (kept.id === conversation.id) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => openConversation(kept));
    const remove = iconButton("delete", say("deleteOne", kept.title), () => {
      forget(kept.id);
      if (kept.id === conversation.id) conversation.drop();
      drawHistory();
    });
    item.append(open, remove);
    return item;
  }));
}

function openConversation(kept) {
  conversation.open(kept);
  showHistory(false);
  drawHistory();
  prompt.focus();
}

function showHistory(shown) {
  history.classList.toggle("shown", shown);
  const button = document.getElementById("history-open");
  button.setAttribute("aria-expanded", String(shown));
  if (shown) document.getElementById("new").focus();
  else if (history.contains(document.activeElement)) button.focus();
}

document.getElementById("new").addEventListener("click", () => openConversation(newConversation()));
document.getElementById("history-open").addEventListener("click", () => showHistory(true));
document.getElementById("history-close").addEventListener("click", () => showHistory(false));
document.getElementById("delete-all").addEventListener("click", () => {
  if (!confirm(say("deleteAllSure"))) return;
  forgetAll();
  conversation.drop();
  showHistory(false);
  drawHistory();
});

// Everything

function drawControls() {
  const running = Boolean(conversation.running);
  send.hidden = running;
  stop.hidden = !running;
  send.disabled = !prompt.value.trim();
  selects[1].hidden = !settings.compare;
  compare.setAttribute("aria-pressed", String(Boolean(settings.compare)));
  drawHistory();
}

startSettings(() => {
  if (secondServer() !== asked) loadModels();
  else drawControls();
  conversation.draw();
});
label(history, say("history"));
if (!allowSecond()) {
  conversation.draw();
  loadModels();
}
