"""What a run that was made says of what was chosen for it."""

from typing import Any

from newllm.config.naming import record_of


def record(name: str, *beside: str, study: str | None = None, seed: int = 1) -> dict[str, Any]:
    """The fields of a result, of an experiment or of a study's variant, with other choices."""
    made = [f"study={study}", f"variant={name}"] if study else [f"experiment={name}"]
    overrides = [*made, *beside, f"seed={seed}"]
    return {**record_of(overrides), "seed": seed}
