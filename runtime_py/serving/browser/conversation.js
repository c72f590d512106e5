// The turns so far: as the next request carries them, and as the page shows them.

import { at, make, toTheEnd } from "./elements.js";
import { plural, timing } from "./timings.js";

export class Conversation {
  #list = at("turns");
  #messages = [];

  get empty() {
    return this.#list.childElementCount === 0;
  }

  /** The messages of a request that asks this next. */
  with(text, pictures) {
    return [...this.#messages, message(text, pictures)];
  }

  /** Show a question; returns the place where its answer grows. */
  ask(text, pictures) {
    const shown = pictures.map(({ name, url }) => make("img", { src: url, alt: name }));
    const asked = make("li", { className: "turn asked" }, heading("You"), ...shown, make("p", {}, text));
    const growing = new Growing();
    this.#list.append(asked, growing.element);
    toTheEnd();
    return growing;
  }

  /** Keep a question and its answer for the next request. */
  keep(text, pictures, answer) {
    this.#messages.push(message(text, pictures), { role: "assistant", content: answer });
  }

  clear() {
    this.#messages = [];
    this.#list.replaceChildren();
  }
}

/** An answer on its way. */
class Growing {
  #text = make("p", { className: "waiting", ariaBusy: "true" });
  #began = performance.now();
  tokens = 0;

  constructor() {
    this.element = make("li", { className: "turn answered" }, heading("Answer"), this.#text);
  }

  get text() {
    return this.#text.textContent;
  }

  /** Whether it is still a part of the conversation. */
  get shown() {
    return this.element.isConnected;
  }

  add(piece) {
    const follow = atEnd();
    this.tokens += 1;
    this.#text.append(piece);
    if (follow) toTheEnd();
  }

  /** The answer is whole; `told` is the stream's last chunk. */
  finish(told, reason) {
    this.#end();
    if (reason === "length") this.#note("It ends here because the longest answer or the context was reached.");
    if (told?.timings) this.element.append(timing(told));
    toTheEnd();
  }

  /** Nothing more comes, because the reader said so. */
  stop() {
    this.#end();
    const seconds = ((performance.now() - this.#began) / 1000).toFixed(1);
    this.#note(`Stopped after ${plural(this.tokens, "piece")} and ${seconds} s.`);
  }

  /** Nothing more comes, because something went wrong. */
  fail(why) {
    this.#end();
    this.element.append(make("p", { className: "failed" }, why));
    toTheEnd();
  }

  #end() {
    this.#text.classList.remove("waiting");
    this.#text.ariaBusy = "false";
  }

  #note(words) {
    this.element.append(make("p", { className: "small" }, words));
  }
}

const heading = (who) => make("h2", { className: "unseen" }, who);

const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 80;

function message(text, pictures) {
  const seen = pictures.map(({ url }) => ({ type: "image_url", image_url: { url } }));
  return { role: "user", content: seen.length ? [...seen, { type: "text", text }] : text };
}
