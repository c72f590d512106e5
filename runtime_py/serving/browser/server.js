// The server that this page came from, as any client of OpenAI's chat interface asks it.

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export class Server {
  #key = "";

  /** Send this key with every request from now on. */
  use(key) {
    this.#key = key;
  }

  get hasKey() {
    return this.#key !== "";
  }

  /** What the server says of its model. */
  async facts() {
    const listed = await (await this.#fetch("/v1/models", {})).json();
    return listed.data[0];
  }

  /** What the server is doing. */
  async health() {
    return (await this.#fetch("/health", {})).json();
  }

  /** The chunks of a streamed answer. */
  async *stream(body, signal) {
    const answer = await this.#fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    for await (const event of events(answer.body)) {
      if (event === "[DONE]") return;
      const chunk = JSON.parse(event);
      if (chunk.error) throw new ServerError(200, chunk.error.message);
      yield chunk;
    }
    throw new ServerError(200, "The server broke off in the middle of the answer.");
  }

  async #fetch(path, options) {
    const headers = { ...options.headers, ...(this.#key ? { Authorization: `Bearer ${this.#key}` } : {}) };
    let answer;
    try {
      answer = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(0, "The server cannot be reached.");
    }
    if (!answer.ok) throw new ServerError(answer.status, await said(answer));
    return answer;
  }
}

async function said(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `The server answers ${answer.status}.`;
  }
}

/** The data of server-sent events (WHATWG HTML, 9.2), one line each as this server writes them. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    const { done, value } = await reader.read();
    if (done) return;
    const pieces = (rest + value).split("\n\n");
    rest = pieces.pop();
    for (const piece of pieces) if (piece.startsWith("data: ")) yield piece.slice(6);
  }
}
