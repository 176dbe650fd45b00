"""vLLM: an engine in this process or a child process, and servers here or elsewhere. No other room imports vLLM."""
