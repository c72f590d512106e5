// The page: what each control does.

import { photograph } from "./camera.js";
import { Conversation } from "./conversation.js";
import { at, toTheEnd } from "./elements.js";
import { show } from "./facts.js";
import { Server, ServerError } from "./server.js";
import { plural } from "./timings.js";
import { Tray } from "./tray.js";

const server = new Server();
const conversation = new Conversation();
const complain = (words) => (at("problem").textContent = words);
const tray = new Tray(complain, (count) => {
  tell(count ? `${plural(count, "picture")} to be sent` : "");
  if (count && !conversation.empty) toTheEnd();
});
const tell = (words) => (at("status").textContent = words);
let model = null;
let answering = null;

async function open() {
  try {
    const health = await server.health();
    if (health.key_needed && !server.hasKey) {
      askForKey();
      return false;
    }
    const facts = await server.facts();
    model = facts.id;
    tray.most = facts.max_images;
    tray.mostBytes = facts.max_image_bytes;
    show(facts, health);
    at("key-form").hidden = true;
    complain("");
    return true;
  } catch (error) {
    if (error.status !== 401) complain(error.message);
    else askForKey();
    return false;
  }
}

function askForKey() {
  at("key-form").hidden = false;
  at("key").focus();
}

async function ask(text) {
  const pictures = tray.take();
  const body = { model, messages: conversation.with(text, pictures), ...settings() };
  const growing = conversation.ask(text, pictures);
  answering = new AbortController();
  busy(true);
  tell("Answering");
  let last, reason;
  try {
    for await (const chunk of server.stream(body, answering.signal)) {
      const [choice] = chunk.choices;
      if (choice?.delta.content) growing.add(choice.delta.content);
      reason = choice?.finish_reason ?? reason;
      last = chunk;
    }
    growing.finish(last, reason);
    if (growing.shown) conversation.keep(text, pictures, growing.text);
    tell(`Answer: ${growing.text}`);
  } catch (error) {
    if (error.name === "AbortError") {
      growing.stop();
      tell("Stopped");
      if (growing.text && growing.shown) conversation.keep(text, pictures, growing.text);
    } else {
      growing.fail(error instanceof ServerError ? error.message : String(error));
      if (error.status === 401) askForKey();
    }
    if (!growing.text && growing.shown) giveBack(text, pictures);
  } finally {
    answering = null;
    busy(false);
  }
}

/** A question that got no answer is there to be asked again. */
function giveBack(text, pictures) {
  if (!at("question").value) at("question").value = text;
  tray.put(pictures);
}

function settings() {
  const [longest, temperature] = [at("longest").valueAsNumber, at("temperature").valueAsNumber];
  return {
    ...(Number.isNaN(longest) ? {} : { max_tokens: longest }),
    ...(Number.isNaN(temperature) ? {} : { temperature }),
  };
}

function busy(now) {
  at("stop").hidden = !now;
  at("send").hidden = now;
  at("welcome").hidden = !conversation.empty;
}

function stop() {
  answering?.abort();
}

at("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = at("question");
  const text = question.value.trim();
  if (answering || !text) {
    if (!text) complain("Write a question first.");
    question.focus();
    return;
  }
  if (!model && !(await open())) return;
  complain("");
  question.value = "";
  question.focus();
  ask(text);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  at("ask").requestSubmit();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("camera").open) stop();
});
at("stop").addEventListener("click", () => {
  stop();
  at("question").focus();
});
at("anew").addEventListener("click", () => {
  stop();
  conversation.clear();
  tray.take();
  complain("");
  tell("A new conversation");
  at("welcome").hidden = false;
  at("question").focus();
});
at("choose").addEventListener("click", () => at("file").click());
at("photograph").addEventListener("click", () => photograph((file) => tray.add([file]), complain));
for (const input of [at("file"), at("capture")]) {
  input.addEventListener("change", async () => {
    await tray.add(input.files);
    input.value = "";
    at("question").focus();
  });
}
at("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  server.use(at("key").value.trim());
  if (await open()) at("question").focus();
  else complain("The server does not know this key.");
});

const narrow = matchMedia("(max-width: 52rem)");
const fold = () => (at("about").open = !narrow.matches);
narrow.addEventListener("change", fold);
fold();
tray.listen();
open();
