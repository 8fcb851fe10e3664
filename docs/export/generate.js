// Text from a folder that `newllm.export --format onnx` wrote, token by token.

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web/wasm";

const ARRAYS = {
  bool: Uint8Array,
  float32: Float32Array,
  float64: Float64Array,
  int32: Int32Array,
  int64: BigInt64Array,
};

/** Load the folder at an address: its description, onnxruntime session and tokenizer. */
export async function load(folder) {
  const description = await json(`${folder}/model.json`);
  if (!description.tokenizer) {
    throw new Error(`${description.name} was not trained on text and has no tokenizer`);
  }
  const [session, vocabulary] = await Promise.all([
    ort.InferenceSession.create(`${folder}/model.onnx`),
    json(`${folder}/${description.tokenizer}`),
  ]);
  const tokenizer = new Tokenizer(vocabulary, { clean_up_tokenization_spaces: false });
  return { description, session, tokenizer };
}

async function json(address) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${address}: ${response.statusText || response.status}`);
  return response.json();
}

/**
 * Continue a prompt up to <EOS> or `maxTokens` tokens, including the prompt. Yields the number of
 * drawn tokens and the text so far after each token; a model of pairs gives the response alone.
 */
export async function* generate(model, prompt, { temperature, maxTokens }) {
  const { description } = model;
  const { eos } = description.special_tokens;
  const read = promptTokens(model, prompt);
  const longest = Math.min(maxTokens, description.max_tokens ?? maxTokens);
  if (read.length > longest) {
    throw new Error(`the prompt has ${read.length} tokens; the maximum is ${longest}`);
  }
  const tokens = [...read];
  const first = description.is_of_pairs ? read.length : 1;
  let state = initialState(description);
  for (let position = 0; position < tokens.length; position++) {
    let logits;
    ({ logits, state } = await step(model, tokens[position], state));
    if (position + 1 < tokens.length) continue; // within the prompt
    if (tokens.length >= longest) return;
    for (const token of description.never_drawn) logits[token] = -Infinity;
    const drawn = draw(logits, temperature);
    if (drawn === eos) return;
    tokens.push(drawn);
    yield { numDrawn: tokens.length - read.length, text: textOf(model, tokens.slice(first)) };
  }
}

/** The tokens of a prompt; an unknown word is an error. */
function promptTokens({ description, tokenizer }, prompt) {
  const { bos, unk } = description.special_tokens;
  // The library gives no id for an unknown word.
  const encode = (text) =>
    tokenizer.encode(text, { add_special_tokens: false }).ids.map((id) => id ?? unk);
  const tokens = encode(plain(description, prompt));
  if (tokens.includes(unk)) {
    const unknown = prompt.split(/\s+/).filter((word) => encode(word).includes(unk));
    throw new Error(`the prompt contains unknown words: ${unknown.join(", ")}`);
  }
  return [bos, ...tokens, ...(description.is_of_pairs ? [bos] : [])];
}

/** The state of one row before the first token, by name; `tokens` grows with each token. */
function initialState(description) {
  const sizes = { batch: 1, tokens: 0 };
  const tensors = description.state.map(({ name, dtype, shape, initial }) => {
    const dimensions = shape.map((size) => sizes[size] ?? size);
    const length = dimensions.reduce((product, size) => product * size, 1);
    const values = Array.isArray(initial) ? initial.flat(Infinity) : Array(length).fill(initial);
    const data = ARRAYS[dtype].from(values, dtype === "int64" ? BigInt : Number);
    return [name, new ort.Tensor(dtype, data, dimensions)];
  });
  return Object.fromEntries(tensors);
}

async function step({ description, session }, token, state) {
  const fed = new ort.Tensor("int64", BigInt64Array.of(BigInt(token)), [1]);
  const found = await session.run({ [description.token]: fed, ...state });
  const next = description.state.map(({ name, next_name }) => [name, found[next_name]]);
  return { logits: found[description.logits].data, state: Object.fromEntries(next) };
}

/** A token by the softmax of logits; temperature 0 takes the likeliest. */
function draw(logits, temperature) {
  const highest = logits.reduce((one, other) => Math.max(one, other));
  if (temperature === 0) return logits.indexOf(highest);
  const weights = Array.from(logits, (logit) => Math.exp((logit - highest) / temperature));
  let left = Math.random() * weights.reduce((sum, weight) => sum + weight);
  const token = weights.findIndex((weight) => (left -= weight) < 0);
  return token < 0 ? logits.indexOf(highest) : token; // the sum was rounded up
}

function textOf({ description, tokenizer }, tokens) {
  return plain(description, tokenizer.decode(tokens, { skip_special_tokens: false }));
}

/** A text with single blanks, unless all white space counts. */
function plain(description, text) {
  return description.keeps_white_space ? text : text.trim().replace(/\s+/g, " ");
}
