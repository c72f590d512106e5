// Asks a package through transformers.js. Reads {folder, newTokens, questions: [{ids, pixels, shape}]} from the file named,
// prints {version, answers: [[id, ...]]}. Run where node finds @huggingface/transformers.
import { readFileSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { createRequire } from 'node:module';

const require = createRequire(pathToFileURL(resolve(process.argv[3], 'anything.js')));
const { AutoModelForImageTextToText, Tensor, env } = await import(pathToFileURL(require.resolve('@huggingface/transformers')));

const asked = JSON.parse(readFileSync(process.argv[2], 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = dirname(resolve(asked.folder)) + '/';
const model = await AutoModelForImageTextToText.from_pretrained(basename(resolve(asked.folder)));

const answers = [];
for (const { ids, pixels, shape } of asked.questions) {
    const size = [1, ids.length];
    const inputs = {
        input_ids: new Tensor('int64', BigInt64Array.from(ids, BigInt), size),
        attention_mask: new Tensor('int64', new BigInt64Array(ids.length).fill(1n), size),
    };
    if (pixels) inputs.pixel_values = new Tensor('float32', Float32Array.from(pixels), shape);
    const output = await model.generate({
        ...inputs,
        max_new_tokens: asked.newTokens,
        do_sample: false,
        repetition_penalty: 1.0,
        eos_token_id: asked.stops,
    });
    answers.push(Array.from(output.data, Number).slice(ids.length));
}
console.log(JSON.stringify({ version: env.version, answers }));
