// Where an answer's time went, as the server tells it: a bar, a line, and a table of the stages.

import { make } from "./elements.js";

const STAGES = [
  ["queue", "Waiting for a slot", "queue_seconds"],
  ["image", "Seeing the picture", "image_seconds"],
  ["prefill", "Reading the prompt", "prefill_seconds"],
  ["decode", "Answering", "decode_seconds"],
];

/** A block for one answer's `timings` and `usage`. */
export function timing({ timings, usage }) {
  const stages = STAGES.map(([kind, name, field]) => ({ kind, name, seconds: timings[field] }));
  const bar = make("div", { className: "bar", ariaHidden: "true" });
  const all = stages.reduce((sum, stage) => sum + stage.seconds, 0);
  for (const { kind, seconds } of stages.filter((stage) => stage.seconds > 0)) {
    const part = make("span", { className: kind });
    part.style.flexGrow = String((100 * seconds) / all);
    bar.append(part);
  }
  const rows = stages.map(({ kind, name, seconds }) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, make("span", { className: `key ${kind}` }), name),
      make("td", {}, duration(seconds)),
    ),
  );
  const kept = usage.prompt_tokens_details.cached_tokens;
  const prompt = `${usage.prompt_tokens} tokens read${kept ? `, ${kept} of them known already` : ""}`;
  return make(
    "details",
    { className: "timing" },
    make("summary", {}, line(timings, usage), bar),
    make("table", {}, make("caption", { className: "unseen" }, "Seconds of each stage"), make("tbody", {}, ...rows)),
    make("p", {}, prompt),
  );
}

function line(timings, usage) {
  const words = [plural(usage.completion_tokens, "token"), `first one after ${duration(timings.first_token_seconds)}`];
  if (timings.decode_steps) words.splice(1, 0, `${(timings.decode_steps / timings.decode_seconds).toFixed(1)} a second`);
  return words.join(", ");
}

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

export const duration = (seconds) =>
  seconds === 0 ? "none" : seconds < 0.9995 ? `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
