"""One run as console text, Markdown, HTML, JSON and JUnit."""
