"""Names of floating-point precisions, checked before torch is imported."""

from typing import Any

# Full names of the precisions, by all names that Lightning accepts. float16 would need scaled
# gradients, which clipping does not expect, and weights of 16 bits lose small updates.
PRECISIONS = {
    **dict.fromkeys(("None", "32", "32-true"), "32-true"),
    **dict.fromkeys(("64", "64-true"), "64-true"),
    **dict.fromkeys(("bf16", "bf16-mixed"), "bf16-mixed"),
}


def precision_name(setting: Any) -> str:
    """The full name of a precision: `bf16-mixed` for `bf16`.

    Raises:
        ValueError: the precision is not supported.
    """
    if str(setting) not in PRECISIONS:
        raise ValueError(
            f"trainer.precision={setting}: not supported; choose 32-true, 64-true or bf16-mixed"
        )
    return PRECISIONS[str(setting)]
