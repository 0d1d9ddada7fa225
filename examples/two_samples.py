"""One episode, two samples, by `rollout.generate: examples.two_samples:twice`: a draft, and an answer in a new context.

The reward scores the last response. Both samples get that reward.
"""

from verst.runtime.rollout.generate import Conversation, GenerateCall, Response


async def twice(call: GenerateCall) -> list[Response]:
    draft = Conversation(call)
    turn = await draft.generate()
    said = call.tokenizer.decode(turn.ids, skip_special_tokens=True)
    improve = [*call.prompt.messages, {"role": "user", "content": f"A draft: {said}\nGive a better answer."}]
    ids = call.tokenizer.apply_chat_template(
        improve, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    final = Conversation(call, ids)
    await final.generate()
    return [draft.response(), final.response()]
