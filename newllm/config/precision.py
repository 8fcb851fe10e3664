"""Names of floating-point precisions, checked before torch is imported."""

from typing import Any

# The full names of precisions, by all names that Lightning takes.
PRECISIONS = {
    **dict.fromkeys(("None", "32", "32-true"), "32-true"),
    **dict.fromkeys(("64", "64-true"), "64-true"),
    **dict.fromkeys(("bf16", "bf16-mixed"), "bf16-mixed"),
}
# Precisions that would not train as they say.
UNFIT_PRECISIONS = {
    **dict.fromkeys(
        ("16", "16-mixed"),
        "float16 needs scaled gradients, which clipping and grad/norm do not undo",
    ),
    **dict.fromkeys(("16-true", "bf16-true"), "weights of 16 bits lose small updates"),
}


def precision_name(setting: Any) -> str:
    """The full name of a precision: `bf16-mixed` for `bf16`.

    Raises:
        ValueError: the precision is unknown, or would not train as it says.
    """
    name = str(setting)
    if name in PRECISIONS:
        return PRECISIONS[name]
    reason = UNFIT_PRECISIONS.get(name, "not supported")
    instead = "bf16-mixed" if "16" in name else "one of: 32-true, bf16-mixed, 64-true"
    raise ValueError(f"trainer.precision={setting}: {reason}; choose {instead}")
