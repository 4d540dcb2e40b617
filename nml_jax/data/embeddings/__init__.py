"""Ask a service with the interface of OpenAI's /v1/embeddings for the vectors of texts, and keep what it answers."""
