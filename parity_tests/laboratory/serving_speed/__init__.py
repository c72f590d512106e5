"""How fast a package is served beside llama.cpp's server, and how much many requests at a time bring."""
