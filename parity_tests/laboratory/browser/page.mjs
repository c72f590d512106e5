// Runs what /task asks on this browser's GPU and posts what came of it to /result:
//   trials: [{model, feeds: [{name, type, shape, values}]}] -> the first output of each, or why there is none
//   folder, newTokens, stops, questions                      -> greedy ids by transformers.js, all graphs on the device given
const report = (value) => fetch('/result', { method: 'POST', body: JSON.stringify(value) });
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const said = (error) => String(error?.message ?? error).split('\n')[0];
const KINDS = { float32: Float32Array, int32: Int32Array, int64: BigInt64Array };

async function tried(ort, { model, feeds }) {
    try {
        const session = await ort.InferenceSession.create(bytes(model), { executionProviders: ['webgpu'] });
        const given = feeds.map(({ name, type, shape, values }) => [name, new ort.Tensor(type, KINDS[type].from(values), shape)]);
        const output = await session.run(Object.fromEntries(given));
        return { values: Array.from(await output[session.outputNames[0]].getData()) };
    } catch (error) {
        return { error: said(error) };
    }
}

// A variable declared in a loop, without a value, to which 1 is added once a round: WGSL clears it, so that [1, 1, 1, 1] is right.
const LOOP = `
@group(0) @binding(0) var<storage, read_write> seen : array<f32>;
@compute @workgroup_size(1) fn main() { for (var k = 0u; k < 4u; k++) { var a : f32; a += 1.0; seen[k] = a; } }`;

async function looped(adapter) {
    const device = await adapter.requestDevice();
    const module = device.createShaderModule({ code: LOOP });
    const pipeline = device.createComputePipeline({ layout: 'auto', compute: { module, entryPoint: 'main' } });
    const seen = device.createBuffer({ size: 16, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
    const read = device.createBuffer({ size: 16, usage: GPUBufferUsage.COPY_DST | GPUBufferUsage.MAP_READ });
    const entries = [{ binding: 0, resource: { buffer: seen } }];
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipeline);
    pass.setBindGroup(0, device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries }));
    pass.dispatchWorkgroups(1);
    pass.end();
    encoder.copyBufferToBuffer(seen, 0, read, 0, 16);
    device.queue.submit([encoder.finish()]);
    await read.mapAsync(GPUMapMode.READ);
    return Array.from(new Float32Array(read.getMappedRange()));
}

async function asked({ folder, device, newTokens, stops, questions }) {
    const library = await import('/node_modules/@huggingface/transformers/dist/transformers.web.js');
    const { AutoModelForImageTextToText, Tensor, env } = library;
    Object.assign(env, { allowRemoteModels: false, allowLocalModels: true, localModelPath: '/packages/', useBrowserCache: false });
    env.backends.onnx.wasm.wasmPaths = '/node_modules/onnxruntime-web/dist/';
    env.backends.onnx.wasm.numThreads = 1;
    const model = await AutoModelForImageTextToText.from_pretrained(folder, { device });
    const answers = [];
    for (const { ids, pixels, shape } of questions) {
        const size = [1, ids.length];
        const inputs = {
            input_ids: new Tensor('int64', BigInt64Array.from(ids, BigInt), size),
            attention_mask: new Tensor('int64', new BigInt64Array(ids.length).fill(1n), size),
        };
        if (pixels) inputs.pixel_values = new Tensor('float32', Float32Array.from(pixels), shape);
        const greedy = { max_new_tokens: newTokens, do_sample: false, repetition_penalty: 1.0, eos_token_id: stops };
        const output = await model.generate({ ...inputs, ...greedy });
        answers.push(Array.from(output.data, Number).slice(ids.length));
    }
    return { version: env.version, answers };
}

const result = {};
try {
    const task = await (await fetch('/task')).json();
    const adapter = await navigator.gpu?.requestAdapter();
    if (!adapter) throw new Error('this browser gives no WebGPU adapter');
    const { vendor, architecture, subgroupMinSize, subgroupMaxSize } = adapter.info;
    result.adapter = { vendor, architecture, subgroupMinSize, subgroupMaxSize, half: adapter.features.has('shader-f16') };
    result.loop = await looped(await navigator.gpu.requestAdapter());
    const ort = await import('onnxruntime-web/webgpu');
    ort.env.wasm.wasmPaths = '/node_modules/onnxruntime-web/dist/';
    ort.env.wasm.numThreads = 1;
    ort.env.logLevel = 'error';
    result.onnxruntime = ort.env.versions?.web;
    result.trials = [];
    for (const trial of task.trials) result.trials.push(await tried(ort, trial));
    if (task.questions) {
        try {
            Object.assign(result, await asked(task));
        } catch (error) {
            result.answersError = said(error);
        }
    }
} catch (error) {
    result.error = said(error);
}
await report(result);
