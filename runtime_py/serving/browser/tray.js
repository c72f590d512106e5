// Pictures that go with the next question: chosen, dropped, pasted or photographed. They are sent as they are.

import { at, make } from "./elements.js";

export class Tray {
  #list = at("tray");
  #pictures = [];

  /** `complain` is told in words what cannot be taken; `changed` how many there are. */
  constructor(complain, changed) {
    this.complain = complain;
    this.changed = changed;
    this.most = Infinity;
    this.mostBytes = Infinity;
  }

  /** Listen for drops and pastes anywhere on the page. */
  listen() {
    let depth = 0;
    const over = (step) => document.body.classList.toggle("dragging", (depth = Math.max(0, depth + step)) > 0);
    addEventListener("dragenter", () => over(1));
    addEventListener("dragleave", () => over(-1));
    addEventListener("dragover", (event) => event.preventDefault());
    addEventListener("drop", (event) => {
      event.preventDefault();
      over(-depth);
      this.add(event.dataTransfer.files);
    });
    addEventListener("paste", (event) => {
      if (!event.clipboardData.files.length) return;
      event.preventDefault();
      this.add(event.clipboardData.files);
    });
  }

  /** Take picture files; what is no picture or too much is said. Where one picture is all, the next one takes its place. */
  async add(files) {
    for (const file of files) {
      const name = file.name || "The picture";
      if (!file.type.startsWith("image/")) this.complain(`${name} is no picture.`);
      else if (file.size > this.mostBytes) this.complain(`${name} is larger than ${megabytes(this.mostBytes)}.`);
      else if (this.most !== 1 && this.#pictures.length >= this.most) this.complain(`At most ${this.most} pictures go with one question.`);
      else {
        const url = await dataUrl(file); // meanwhile the tray may be taken, and be another list
        if (this.most === 1) this.#pictures = [];
        this.#pictures.push({ name, url });
      }
    }
    this.#show();
  }

  /** The pictures' data URLs; the tray is empty afterwards. */
  take() {
    const taken = this.#pictures;
    this.#pictures = [];
    this.#show();
    return taken;
  }

  /** Put pictures back that were not used, before those that were added meanwhile. */
  put(pictures) {
    this.#pictures = [...pictures, ...this.#pictures];
    if (this.most === 1) this.#pictures = this.#pictures.slice(-1);
    this.#show();
  }

  #show() {
    this.#list.replaceChildren(...this.#pictures.map((picture, place) => this.#item(picture, place)));
    this.#list.hidden = this.#pictures.length === 0;
    this.changed(this.#pictures.length);
  }

  #item(picture, place) {
    const remove = make("button", { type: "button", ariaLabel: `Remove ${picture.name}`, title: "Remove" }, "×");
    remove.addEventListener("click", () => {
      this.#pictures.splice(place, 1);
      this.#show();
      at("question").focus();
    });
    return make("li", {}, make("img", { src: picture.url, alt: picture.name }), remove);
  }
}

function dataUrl(file) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });
}

const megabytes = (bytes) => `${Math.floor(bytes / 2 ** 20)} MB`;
