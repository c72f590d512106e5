// Asks a package through transformers.js: node ask.mjs TASK FOLDER RESULT, where FOLDER holds node_modules. The task is one of
//   {folder, newTokens, stops, questions: [{ids, pixels, shape}]}   ids and pixel values of ours: {answers: [[id, ...]]}
//   {folder, newTokens, stops, picture, text}                      everything by its own processor, and the package's template
//   {folder, texts}                                                {ids: [[id, ...]]}
import { readFileSync, writeFileSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { createRequire } from 'node:module';

const require = createRequire(pathToFileURL(resolve(process.argv[3], 'anything.js')));
const library = await import(pathToFileURL(require.resolve('@huggingface/transformers')));
const { AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, RawImage, Tensor, env } = library;

const asked = JSON.parse(readFileSync(process.argv[2], 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(asked.folder)) + '/';
if (asked.texts) {
    const words = await AutoTokenizer.from_pretrained(basename(resolve(asked.folder)));
    const ids = asked.texts.map((text) => words.encode(text, { add_special_tokens: false }));
    writeFileSync(process.argv[4], JSON.stringify({ version: env.version, ids }));
    process.exit(0);
}
const model = await AutoModelForImageTextToText.from_pretrained(basename(resolve(asked.folder)));

const greedy = { max_new_tokens: asked.newTokens, do_sample: false, repetition_penalty: 1.0 };
if (asked.picture) {
    const processor = await AutoProcessor.from_pretrained(basename(resolve(asked.folder)));
    const content = [{ type: 'image' }, { type: 'text', text: asked.text }];
    const chat_template = readFileSync(resolve(asked.folder, 'chat_template.jinja'), 'utf8');
    const text = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true, chat_template });
    const inputs = await processor(await RawImage.read(asked.picture), text, { add_special_tokens: false });
    const output = await model.generate({ ...inputs, ...greedy, eos_token_id: asked.stops });
    writeFileSync(process.argv[4], JSON.stringify({ answers: [Array.from(output.data, Number).slice(inputs.input_ids.dims[1])] }));
    process.exit(0);
}

const answers = [];
for (const { ids, pixels, shape } of asked.questions) {
    const size = [1, ids.length];
    const inputs = {
        input_ids: new Tensor('int64', BigInt64Array.from(ids, BigInt), size),
        attention_mask: new Tensor('int64', new BigInt64Array(ids.length).fill(1n), size),
    };
    if (pixels) inputs.pixel_values = new Tensor('float32', Float32Array.from(pixels), shape);
    const output = await model.generate({ ...inputs, ...greedy, eos_token_id: asked.stops });
    answers.push(Array.from(output.data, Number).slice(ids.length));
}
writeFileSync(process.argv[4], JSON.stringify({ version: env.version, answers }));
