// What llama.cpp says: greedy answers and probabilities of GGUF models, with adapters or without.
//
//   node answers.mjs REQUEST ANSWER
//
// Both are JSON files. The request is a list of jobs, done one after the other:
//   {"model": PATH, "adapters": [PATH, ...],
//    "prompts": [[TOKEN, ...], ...], "most": 24, "stop": [TOKEN, ...],   // greedy answers of these
//    "texts": [[TOKEN, ...], ...], "last": [COUNT, ...]}                 // what may come next in these
// "last" is of how many places of each text, counted from its end; of all where it is missing. With
// "whole": true the answer has probabilities, over the vocabulary in its order; with "among":
// [[[TOKEN, ...], ...], ...], for each of those places, only of these; without either the best token.
// The answer is one object for each job, {"answers": [[TOKEN, ...], ...]} and {"next": [[PLACE, ...],
// ...]}, or {"error": MESSAGE} where llama.cpp refuses a model or an adapter. node-llama-cpp is
// looked for in the folder NODE_LLAMA_CPP.
import {readFile, writeFile} from "node:fs/promises";
import {createRequire} from "node:module";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

const from = createRequire(join(process.env.NODE_LLAMA_CPP, "package.json"));
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(from.resolve("node-llama-cpp")));
const [request, answer] = process.argv.slice(2);
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});

// All of the vocabulary, as it is: no filter by rank or by probability.
const UNFILTERED = {temperature: 1, topK: 0, topP: 1, minP: 0};
// Keys and values are kept in 32 bits, as the model has them.
const EXACT = {
  flashAttention: false,
  experimentalKvCacheKeyType: "F32",
  experimentalKvCacheValueType: "F32",
};

const greedy = async (sequence, prompt, {most, stop = []}) => {
  const said = [];
  for await (const token of sequence.evaluate(prompt, {temperature: 0, yieldEogToken: true})) {
    said.push(token);
    if (stop.includes(token) || said.length >= most) break;
  }
  return said;
};

const overVocabulary = (probabilities) => {
  const each = new Array(probabilities.size);
  for (const [token, probability] of probabilities) each[token] = probability;
  return each;
};

const next = async (sequence, text, last, whole, among) => {
  const generateNext = whole || among
    ? {probabilities: true, options: UNFILTERED}
    : {token: true, options: {temperature: 0}};
  const first = text.length - last;
  const input = text.map((token, at) => (at < first ? token : [token, {generateNext}]));
  const places = await sequence.controlledEvaluate(input);
  return places.slice(first).map(({next}, at) => {
    if (among) return among[at].map((token) => next.probabilities.get(token));
    return whole ? overVocabulary(next.probabilities) : next.token;
  });
};

const done = async (job) => {
  const {prompts = [], texts = [], adapters = []} = job;
  const longest = Math.max(0, ...prompts.map((p) => p.length + job.most), ...texts.map((t) => t.length));
  const model = await llama.loadModel({modelPath: job.model, gpuLayers: 0});
  try {
    const context = await model.createContext({
      ...EXACT,
      contextSize: longest + 8,
      sequences: 1,
      threads: 1, // several wait for one another in a loop: on a busy machine ten times as long
      lora: {adapters: adapters.map((filePath) => ({filePath, scale: 1}))},
    });
    const sequence = context.getSequence();
    const found = {answers: [], next: []};
    for (const prompt of prompts) {
      await sequence.clearHistory();
      found.answers.push(await greedy(sequence, prompt, job));
    }
    for (const [at, text] of texts.entries()) {
      await sequence.clearHistory();
      const last = job.last?.[at] ?? text.length;
      found.next.push(await next(sequence, text, last, job.whole, job.among?.[at]));
    }
    await context.dispose();
    return found;
  } finally {
    await model.dispose(); // one context at a time
  }
};

const answers = [];
for (const job of JSON.parse(await readFile(request, "utf8"))) {
  try {
    answers.push(await done(job));
  } catch (error) {
    answers.push({error: String(error?.message ?? error)});
  }
}
await writeFile(answer, JSON.stringify(answers));
process.exit(0);
