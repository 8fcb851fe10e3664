// The page: index.html?model=FOLDER, and with &prompt=TEXT&temperature=0 it starts by itself.

import { generate, load } from "./generate.js";

const PAINT = 16; // milliseconds between two pauses that let the browser paint and react
const element = (id) => document.getElementById(id);
const [form, start, stop] = [document.forms[0], element("start"), element("stop")];

function tell(status, isFault = false) {
  element("status").textContent = status;
  element("status").classList.toggle("fault", isFault);
}

async function write(model) {
  const begin = performance.now();
  let [isStopped, numTokens, painted] = [false, 0, begin];
  stop.onclick = () => (isStopped = true);
  [start.disabled, stop.disabled] = [true, false];
  element("text").textContent = "";
  tell("generating ...");
  const options = {
    temperature: element("temperature").valueAsNumber,
    maxTokens: element("longest").valueAsNumber,
  };
  try {
    for await (const { numDrawn, text } of generate(model, element("prompt").value, options)) {
      numTokens = numDrawn;
      element("text").textContent = text;
      if (performance.now() - painted > PAINT) {
        await new Promise((resume) => setTimeout(resume));
        painted = performance.now();
      }
      if (isStopped) break;
    }
    const seconds = (performance.now() - begin) / 1000;
    const speed = seconds > 0 ? `, ${Math.round(numTokens / seconds)} per second` : "";
    tell(`${isStopped ? "stopped" : "done"}: ${numTokens} tokens${speed}`);
  } catch (error) {
    tell(error.message, true);
  }
  [start.disabled, stop.disabled] = [false, true];
}

const query = new URLSearchParams(location.search);
element("temperature").value = query.get("temperature") ?? 1;
element("prompt").value = query.get("prompt") ?? "";
try {
  const model = await load(query.get("model") ?? "model");
  const { description, weights, parameters } = model.description;
  const number = parameters.toLocaleString("en");
  element("model").textContent = `${description}: ${number} parameters, ${weights}`;
  form.onsubmit = (event) => {
    event.preventDefault();
    write(model);
  };
  start.disabled = false;
  if (query.has("prompt")) form.requestSubmit();
} catch (error) {
  element("model").textContent = "no model";
  tell(error.message, true);
}
