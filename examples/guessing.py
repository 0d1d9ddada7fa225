"""A game that scores itself, so the recipe needs no reward: `rollout.generate: examples.guessing:guess`.

The model guesses the label in up to five turns.
"""

from verst.runtime.rewards import scores_itself
from verst.runtime.rollout.generate import Conversation, GenerateCall, Response

TURNS = 5


@scores_itself
async def guess(call: GenerateCall) -> Response:
    conversation, right, tries = Conversation(call), False, 0
    while not right and tries < TURNS:
        turn = await conversation.generate()
        tries += 1
        right = call.tokenizer.decode(turn.ids, skip_special_tokens=True).strip() == str(call.prompt.label)
        if turn.finish == "length":
            break
        conversation.add(call.tokenizer.encode(" no, try again: ", add_special_tokens=False))
    response = conversation.response()
    response.score = (TURNS + 1 - tries) / TURNS if right else 0.0
    return response
