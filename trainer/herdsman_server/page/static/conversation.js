// The conversation that is shown: asks, stops, asks again, and keeps what was said.

import { answer as answerOf, HERE } from "./api.js";
import { withKey } from "./key_dialog.js";
import { element, show } from "./rich_text.js";
import { sampling } from "./settings_dialog.js";
import { keep, newConversation, settings } from "./store.js";
import { say } from "./texts.js";
import { turnView } from "./turn_view.js";

const main = document.getElementById("turns");
const status = document.getElementById("status");

export class Conversation {
  /** `models()` returns whom to ask, [{server, model}, ...]; `changed()` is called when anything begins or ends. */
  constructor({ models, changed, warn }) {
    this.models = models;
    this.changed = changed;
    this.warn = warn;
    this.running = null;
    this.kept = newConversation();
  }

  get id() {
    return this.kept.id;
  }

  open(kept) {
    this.stop();
    this.kept = kept;
    this.draw();
    main.scrollTop = main.scrollHeight;
  }

  /** Leave the conversation so that it is not kept again when its answer ends. */
  drop() {
    this.kept.turns = [];
    this.open(newConversation());
  }

  stop() {
    this.running?.abort();
  }

  /** Ask a question at the end, or instead of the turn of an index and all that follow. */
  async ask(question, index = this.kept.turns.length) {
    const asked = this.models();
    if (!asked.length || this.running) return;
    const { kept } = this;
    const before = kept.turns.slice(0, index);
    const turn = { question, answers: asked.map((each) => ({ ...each, text: "" })) };
    kept.turns = [...before, turn];
    const running = (this.running = new AbortController());
    turn.answers.forEach((each) => (each.running = true));
    status.textContent = say("answering");
    this.#keep(kept);
    this.changed();
    this.draw();
    main.scrollTop = main.scrollHeight;
    main.focus(); // what was pressed is drawn anew and would lose the focus to nothing
    await Promise.all(turn.answers.map((each, number) => this.#answer(each, messages(before, question, number), running.signal)));
    this.running = null;
    if (kept.turns.includes(turn)) this.#keep(kept);
    // An answer is read out once, whole: piece by piece it could not be followed.
    status.textContent = turn.answers.map((each) => each.error || `${each.model}: ${each.text}`).join("\n");
    if (this.kept === kept) this.draw();
    this.changed();
  }

  retry() {
    const { turns } = this.kept;
    if (turns.length) this.ask(turns.at(-1).question, turns.length - 1);
  }

  #keep(kept) {
    if (!keep(kept)) this.warn(say("full"));
  }

  async #answer(answer, sent, signal) {
    const began = performance.now();
    const body = { model: answer.model, messages: sent, ...sampling() };
    let drawn = false;
    try {
      await withKey(answer.server, async () => {
        for await (const { text = "", ...end } of answerOf(answer.server, body, signal)) {
          answer.text += text;
          Object.assign(answer, end);
          if (!drawn) requestAnimationFrame(() => ((drawn = false), this.#drawText(answer)));
          drawn = true;
        }
      });
      answer.seconds = (performance.now() - began) / 1000;
    } catch (error) {
      if (signal.aborted) answer.reason = "stopped";
      else answer.error = told(error, answer);
    }
    delete answer.running;
    if (answer.text) answer.text = answer.text.trim();
    this.draw();
  }

  /** Draw everything; what a model said last stays in sight where it was in sight. */
  draw() {
    const atEnd = isAtEnd();
    const { turns } = this.kept;
    main.classList.toggle("compared", turns.some((turn) => turn.answers.length > 1));
    main.replaceChildren(...turns.map((turn, index) => turnView(turn, {
      retry: index === turns.length - 1 && !this.running ? () => this.retry() : null,
      ask: this.running ? null : (question) => this.ask(question, index),
    })));
    if (!turns.length) main.append(welcome());
    if (atEnd) main.scrollTop = main.scrollHeight;
  }

  #drawText(answer) {
    const turn = this.kept.turns.at(-1);
    const number = turn?.answers.indexOf(answer) ?? -1;
    if (number < 0 || !answer.running) return;
    const atEnd = isAtEnd();
    show(main.querySelectorAll(".turn:last-child .answer .text")[number], answer.text);
    if (atEnd) main.scrollTop = main.scrollHeight;
  }
}

const isAtEnd = () => main.scrollHeight - main.scrollTop - main.clientHeight < 80;

function welcome() {
  const node = element("div", "", "empty");
  node.append(element("strong", say("empty")));
  if (settings.compare) node.append(element("span", say("emptyCompared")));
  return node;
}

/** What is sent: the system prompt, and each turn with the answer of the same column. */
function messages(turns, question, number) {
  const sent = settings.system ? [{ role: "system", content: settings.system }] : [];
  for (const turn of turns) {
    const said = (turn.answers[number] ?? turn.answers[0]).text;
    if (said) sent.push({ role: "user", content: turn.question }, { role: "assistant", content: said });
  }
  return [...sent, { role: "user", content: question }];
}

/** What a person is told of an error. */
export function told(error, { server, text }) {
  if (error.status === 401) return say("noKey");
  if (error.status) return error.message;
  if (text) return say("brokenOff");
  return server === HERE ? say("unreachable", location.host) : say("unreachableSecond", server);
}
