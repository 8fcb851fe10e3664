"""The models that studies compare: one name and one colour in all reports.

A key is the part of a variant's name that stands for the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from newllm.reporting.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW

# Of Paul Tol's muted scheme, for what is left when those of Okabe and Ito are used up.
WINE, INDIGO, TEAL = "#882255", "#332288", "#44AA99"
OLIVE, PURPLE, SAND = "#999933", "#AA4499", "#DDCC77"


@dataclass(frozen=True)
class Model:
    """What reports show of a model.

    Attributes:
        name: in English, to be translated.
        colour: of its points and lines.
        grows: whether its state grows with the number of tokens.
    """

    name: str
    colour: str
    grows: bool = False


MODELS = {
    "gated": Model("context model, gated", ORANGE),
    "additive": Model("context model, additive", YELLOW),
    "multihead": Model("context model, several heads", WINE),
    "delta": Model("delta memory, nonlinear", INDIGO),
    "linear_delta": Model("delta memory, linear", TEAL),
    "local_hybrid": Model("context and local attention", OLIVE),
    "sparse_hybrid": Model("context and sparse attention", PURPLE, grows=True),
    "context_attention": Model("attention to contexts", SAND, grows=True),
    "transformer": Model("Transformer", BLUE, grows=True),
    "transformer_learned": Model("Transformer, learned positions", BLUE, grows=True),
    "transformer_rotary": Model("Transformer, rotary positions", SKY, grows=True),
    "transformer_nope": Model("Transformer, no positions", GREY, grows=True),
    "lstm": Model("LSTM", GREEN),
    "gru": Model("GRU", PINK),
    "mingru": Model("minGRU", BLACK),
}
NAMES = {key: model.name for key, model in MODELS.items()}
