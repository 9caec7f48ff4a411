"""The three ways by which `ChatSpans` finds spans, one at a time."""

from rsr_trl.scoring.chat_spans import ChatSpans


def own_texts(chat: ChatSpans, messages: list[dict], first: int = 0, **kwargs) -> list[str]:
    text, spans = chat(messages, kwargs, first)
    assert text == chat.render(messages, kwargs)
    return [text[start:end] for start, end in spans]


def without_markers(chat: ChatSpans) -> ChatSpans:
    """Makes the spans come from variants of the conversation."""
    chat._marked = None
    return chat


def turn_by_turn(chat: ChatSpans) -> ChatSpans:
    """Makes the spans come from variants of the conversation, turn by turn."""
    chat._derived._between_anchors = lambda *args: None
    return without_markers(chat)


WAYS = {"markers": lambda chat: chat, "anchors": without_markers, "turns": turn_by_turn}
