"""Chat completions and models, in the shape of OpenAI's interface."""
