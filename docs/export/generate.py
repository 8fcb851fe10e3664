"""Generate text with an exported run, without torch: `python generate.py FOLDER --prompt TEXT`."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder", type=Path, help="what newllm.export wrote")
parser.add_argument("--prompt", default="")
parser.add_argument("--temperature", type=float, default=1.0, help="0: the likeliest token")
parser.add_argument("--max-tokens", type=int, default=200, help="longest text, with the prompt")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

if not 0 <= options.temperature < np.inf:
    sys.exit(f"--temperature {options.temperature}: must be finite, and at least 0")
if options.seed < 0:
    sys.exit(f"--seed {options.seed}: must be at least 0")
if not (options.folder / "model.onnx").is_file():
    sys.exit(f"{options.folder}: is not what newllm.export --format onnx wrote")
if not (options.folder / "tokenizer.json").is_file():
    sys.exit(f"{options.folder}: has no tokenizer; the run was not trained on text")
model = json.loads((options.folder / "model.json").read_text(encoding="utf-8"))
session = InferenceSession(options.folder / "model.onnx", providers=["CPUExecutionProvider"])
tokenizer = Tokenizer.from_file(str(options.folder / "tokenizer.json"))
tokenizer.encode_special_tokens = True  # in a prompt, the name of a special token is text
special = model["special_tokens"]

prompt = options.prompt if model["keeps_white_space"] else " ".join(options.prompt.split())
read = [special["bos"], *tokenizer.encode(prompt, add_special_tokens=False).ids]
if model["is_of_pairs"]:
    read.append(special["bos"])  # ends the prompt
longest = min(options.max_tokens, model["max_tokens"] or options.max_tokens)
if len(read) > longest:
    sys.exit(f"the prompt has {len(read)} tokens; the maximum is {longest}")
if special["unk"] in read:
    ids = {word: tokenizer.encode(word, add_special_tokens=False).ids for word in prompt.split()}
    unknown = [word for word in ids if special["unk"] in ids[word]]
    sys.exit(f"the prompt contains unknown words: {unknown}")
sizes = {"batch": 1, "tokens": 0}  # one row, before the first token
state = {
    part["name"]: np.full(
        [sizes.get(size, size) for size in part["shape"]], part["initial"], part["dtype"]
    )
    for part in model["state"]
}
random = np.random.default_rng(options.seed)
tokens = list(read)
for position in range(longest - 1):
    fed = {model["token"]: np.array([tokens[position]]), **state}
    logits, *after = session.run(None, fed)
    state = dict(zip(state, after, strict=True))
    if position + 1 < len(tokens):
        continue  # within the prompt
    logits[0, model["never_drawn"]] = -np.inf
    scaled = (logits[0] - logits.max()).astype(float) / max(options.temperature, 1e-9)
    drawn = int(random.choice(len(scaled), p=np.exp(scaled) / np.exp(scaled).sum()))
    if drawn == special["eos"]:
        break
    tokens.append(drawn)
text = tokenizer.decode(tokens[len(read) if model["is_of_pairs"] else 1 :])
print(text if model["keeps_white_space"] else " ".join(text.split()))
