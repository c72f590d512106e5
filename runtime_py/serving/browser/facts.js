// What the package is, and whether its parity with the PyTorch model was proven when it was exported.

import { at, make } from "./elements.js";

const VERDICTS = { pass: "parity passed", fail: "parity failed", "not run": "parity not checked" };

/** Fill the side of the page. */
export function show(facts, health) {
  document.title = `${facts.id} · edgeproof`;
  at("name").textContent = facts.id;
  const verdict = at("verdict");
  verdict.textContent = VERDICTS[facts.verification] ?? VERDICTS["not run"];
  verdict.className = `verdict ${facts.verification === "pass" ? "pass" : facts.verification === "fail" ? "fail" : ""}`;
  const rows = [
    ["Family", facts.variant && facts.variant !== facts.family ? `${facts.family}, ${facts.variant}` : facts.family],
    ["Precision", facts.precision],
    ["Made for", facts.target],
    ["Size", size(facts.bytes)],
    ["Context", `${facts.max_model_len.toLocaleString("en")} tokens`],
    ["Licence", facts.licence ?? "not said"],
    ["Parity with the PyTorch model", parity(facts)],
    ["Answers at a time", String(health.slots)],
    ["Manifest", facts.manifest, "code"],
    ["edgeproof", health.edgeproof],
  ];
  if (health.notice) rows.push(["Note", health.notice]);
  at("facts").replaceChildren(...rows.flatMap(([name, said, kind]) => [make("dt", {}, name), make("dd", { className: kind ?? "" }, said)]));
}

function parity({ verification, waivers }) {
  const said = {
    pass: "The export's own check held this package against the PyTorch model, and it passed.",
    fail: "The export's own check held this package against the PyTorch model, and it failed.",
  };
  const passed = waivers ? ` ${waivers} of its checks were passed over.` : "";
  return (said[verification] ?? "The export's own check was not run: python -m parity_tests --package does it.") + passed;
}

function size(bytes) {
  const [unit, name] = bytes < 2 ** 30 ? [2 ** 20, "MB"] : [2 ** 30, "GB"];
  return `${(bytes / unit).toFixed(1)} ${name}`;
}
