"""Serves chat requests of a user's agent, in the forms of OpenAI and Anthropic: tokens in, tokens out.

An agent is a user's program that talks to a model by HTTP. Here the model is the worker's engine, and what it generates
is what is trained: a turn's tokens are kept as they came from the engine, and a later request only adds the tokens of
its new messages. Nothing is rendered and tokenised twice.

`server.py` listens on loopback and knows an episode by its key. `openai_form.py` and `anthropic_form.py` read requests
and write replies; both make a `ChatRequest` (`request.py`). `session.py` holds the conversations of one episode and
finds the one that a request continues. `rendering.py` makes tokens of messages, `replies.py` messages of tokens, with
SGLang's own parsers. `agent.py` runs the function that the recipe names as `rollout.agent`.
"""
