"""Which part of a conversation the assistant wrote, exactly: what a stage of supervised steps trains on.

A chat template that marks it (`{% generation %}`, as transformers defines it) decides. Any other template is asked by
rendering parts of the conversation. What the model would continue (the messages before a turn, and the header of a new
one) must be the beginning of the whole text, and what follows the turn must be its end. What is between is the turn:
text, reasoning and calls of tools as the template writes them. Where that does not hold, the template writes a turn
otherwise in the middle of a conversation than at its end, and the row is refused.

Each part is tokenised by itself, as during generation, where the prompt's tokens come first and the model adds its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from verst.runtime.data.chat import Message
from verst.runtime.data.chat_template import ChatTemplate
from verst.runtime.data.records import DataError

_PROBE = "\ue000"  # of the private use area: no data has it, and no template removes it


class Part(NamedTuple):
    """A part of a rendered conversation. What is `written` by the assistant is trained on."""

    text: str
    written: bool
    # Text after a turn whose end is not marked: its first special token ends the turn, and is trained on, too.
    ends_turn: bool = False


def parts_of(
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    template: ChatTemplate,
    where: str,
    train_on: Literal["all", "last"],
    first: int = 0,
) -> list[Part]:
    """A conversation's parts in order, up to the end of its last turn. Raises DataError.

    The first part is the prompt, which is never trained on. Turns before the message with the number `first`, counted
    from 0, belong to it.
    """
    every = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    turns = [place for place in every if place >= first]
    if not turns:
        raise DataError(f"{where}: no message is of the role 'assistant', so there is nothing to train on")
    if train_on == "last" and turns[-1] != len(messages) - 1:
        raise DataError(
            f"{where} ends with a message of the role {messages[-1]['role']!r}; with train_on: last the assistant's "
            "is needed"
        )
    if not template.used:
        return _joined(messages, turns, where, train_on)
    whole = template.whole(messages, where, tools)
    marked = _marked(messages, tools, template, whole, where)
    if marked is not None:
        spans = marked
        if not spans:
            raise DataError(f"{where}: the chat template marks nothing as generated")
        if len(turns) < len(every):
            if len(spans) != len(every):
                raise DataError(
                    f"{where}: the chat template marks {len(spans)} parts as generated in {len(every)} turns of the "
                    "assistant, so it cannot be told which of them are the prompt's"
                )
            spans = spans[-len(turns) :]
    else:
        places = turns if train_on == "all" else turns[-1:]
        spans = [_span(place, messages, tools, template, whole, where) for place in places]
    if train_on == "last":
        spans = spans[-1:]
    return list(_cut(whole, spans, ends_turn=marked is None, where=where))


def _joined(
    messages: list[Message], turns: list[int], where: str, train_on: Literal["all", "last"]
) -> list[Part]:
    """Without a chat template, where only the last turn can be told from what is before it."""
    if turns[-1] != len(messages) - 1 or (train_on == "all" and len(turns) > 1) or len(messages) < 2:
        raise DataError(
            f"{where}: without a chat template only the last message can be trained on: it must be the assistant's, "
            "after at least one other, and train_on must be last if there are several turns"
        )
    texts = [message["content"] for message in messages]
    if None in texts:
        raise DataError(f"{where}: a message calls tools and has no text, and chat_template is false")
    return [Part("\n".join(texts[:-1]), False), Part(texts[-1], True), Part("", False, ends_turn=True)]


def _marked(
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    template: ChatTemplate,
    whole: str,
    where: str,
) -> list[tuple[int, int]] | None:
    """Where in the `whole` text the template says that the assistant wrote it; None if it has no such marks."""
    source = template.source(tools=bool(tools))
    if not re.search(r"\{%-?\s*generation\s*-?%\}", source):
        return None
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, spans = render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=source,
        return_assistant_tokens_mask=True,
        **template.variables,
    )
    if texts[0] != whole:
        raise DataError(f"{where}: with its marks read, the chat template writes another text")
    return [(begin, end) for begin, end in spans[0]]


def _span(
    place: int,
    messages: list[Message],
    tools: list[dict[str, Any]] | None,
    template: ChatTemplate,
    whole: str,
    where: str,
) -> tuple[int, int]:
    """Where in the `whole` text the turn at `place` begins and ends, without what ends it."""
    if all(message["role"] == "system" for message in messages[:place]):
        raise DataError(f"{where}: the assistant's message {place + 1} has no message before it to answer")
    before = template.render(messages[:place], where, tools)
    probed = [*messages[:place], {"role": "assistant", "content": _PROBE}, *messages[place + 1 :]]
    with_probe = template.whole(probed, where, tools)
    after = with_probe.rpartition(_PROBE)[2]
    begin, end = len(before), len(whole) - len(after)
    if with_probe.count(_PROBE) == 1 and whole.startswith(before) and whole.endswith(after) and begin < end:
        return begin, end
    raise DataError(
        f"{where}, message {place + 1}: the chat template writes this turn of the assistant otherwise here than where "
        "the model would generate it (such as without its reasoning), so it cannot be told what to train on: set "
        "train_on: last, or use a chat template with {% generation %} marks (chat_template_file)"
    )


def _cut(whole: str, spans: Sequence[tuple[int, int]], *, ends_turn: bool, where: str) -> Iterator[Part]:
    edges = [(0, 0), *spans, (len(whole), len(whole))]
    for number, ((_, end), (begin, next_end)) in enumerate(pairwise(edges)):
        if begin < end or next_end < begin:
            raise DataError(f"{where}: the chat template writes turns of the assistant into each other")
        yield Part(whole[end:begin], False, ends_turn and number > 0)
        if number < len(spans):
            yield Part(whole[begin:next_end], True)


class Tokens(NamedTuple):
    """A row's tokens, and which of them are trained on."""

    ids: list[int]
    mask: list[int]  # 1: trained on


def joined_tokens(parts: Sequence[Part], tokens: Sequence[list[int]], template: ChatTemplate) -> Tokens:
    """Joins the `tokens` of a row's parts. Ends with what ends the last turn. Raises DataError."""
    ids: list[int] = []
    mask: list[int] = []
    last = len(parts) - 1
    for number, (part, these) in enumerate(zip(parts, tokens, strict=True)):
        ending = template.ending(these) if part.ends_turn else 0
        if number == last and not part.written:
            these = these[:ending]  # nothing after the last turn is of use
            if part.ends_turn and not ending:
                these, ending = [template.end_of_sequence()], 1
        ids += these
        mask += [1] * len(these) if part.written else [1] * ending + [0] * (len(these) - ending)
    return Tokens(ids, mask)
