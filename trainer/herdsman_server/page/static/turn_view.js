// Draws one turn: the question, and an answer for each model that was asked.

import { element, show } from "./rich_text.js";
import { label, say } from "./texts.js";

const SVG = "http://www.w3.org/2000/svg";

/** A button with an icon of the sprite. */
export function iconButton(icon, name, pressed) {
  const button = element("button", "", "icon");
  button.type = "button";
  const svg = document.createElementNS(SVG, "svg");
  svg.append(document.createElementNS(SVG, "use"));
  svg.firstChild.setAttribute("href", `#icon-${icon}`);
  button.append(svg);
  label(button, name);
  button.addEventListener("click", () => pressed(button));
  return button;
}

function copyButton(text) {
  return iconButton("copy", say("copy"), async (button) => {
    await copy(text());
    label(button, say("copied"));
    document.getElementById("status").textContent = say("copied");
    setTimeout(() => label(button, say("copy")), 2000);
  });
}

async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Without TLS there is no clipboard but for this old way.
  const field = element("textarea", text, "unseen");
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

/** Draw a turn; `actions` has retry() and ask(question), which are null where they make no sense. */
export function turnView(turn, actions) {
  const node = element("article", "", "turn");
  const answers = element("div", "", "answers");
  answers.append(...turn.answers.map((answer) => answerView(answer, turn.answers.length > 1, actions.retry)));
  node.append(questionView(turn.question, actions), answers);
  return node;
}

function questionView(question, { ask }) {
  const node = element("div", "", "asked");
  const text = element("div", question, "text");
  const tools = element("div", "", "tools");
  tools.append(copyButton(() => question));
  if (ask) tools.append(iconButton("edit", say("edit"), () => node.replaceChildren(editor())));
  node.append(element("span", say("you"), "unseen"), text, tools);
  return node;

  function editor() {
    const form = element("form");
    const field = element("textarea", question);
    field.rows = Math.min(10, question.split("\n").length + 1);
    label(field, say("edit"));
    const buttons = element("div", "", "row end");
    const cancel = element("button", say("cancel"));
    cancel.type = "button";
    buttons.append(element("span", say("editHint"), "small"), cancel, element("button", say("askAgain"), "primary"));
    form.append(field, buttons);
    const back = () => node.replaceWith(questionView(question, { ask }));
    cancel.addEventListener("click", back);
    field.addEventListener("keydown", (event) => {
      if (sends(event)) form.requestSubmit();
      if (event.key === "Escape") back();
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (field.value.trim()) ask(field.value);
    });
    queueMicrotask(() => field.focus());
    return form;
  }
}

/** Whether a key sends a message: Enter alone, and not the Enter that ends the input of a Chinese word. */
export function sends(event) {
  const wanted = event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
  if (wanted) event.preventDefault();
  return wanted;
}

function answerView(answer, compared, retry) {
  const node = element("section", "", "answer");
  label(node, answer.model);
  if (compared) node.append(element("div", answer.model, "name"));
  const text = element("div", "", answer.running ? "text waiting" : "text");
  show(text, answer.text);
  node.append(text);
  if (answer.error) node.append(element("p", answer.error, "wrong"));
  if (answer.running) return node;
  const tools = element("div", "", "tools");
  tools.append(copyButton(() => answer.text));
  if (retry) tools.append(iconButton("retry", say("retry"), retry));
  const notes = [];
  if (answer.reason === "stopped") notes.push(say("stopped"));
  if (answer.reason === "length") notes.push(say("cut"));
  if (answer.tokens && answer.seconds) notes.push(say("figures", answer.tokens, answer.seconds));
  tools.append(element("span", notes.join(" · "), "small"));
  node.append(tools);
  return node;
}
