"""The HTTP interface: OpenAI's API, SOMA's own, authentication, limits."""
