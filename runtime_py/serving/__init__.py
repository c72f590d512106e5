"""An HTTP server with OpenAI's chat interface over the engine; needs the extra ``serve``."""
