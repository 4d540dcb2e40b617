"""The encoder model.name=api: features of texts are the vectors that a service answers, and a cache keeps."""
