"""The published series by name: sizes, data and training as the series had them."""

import pytest
from conftest import Compose
from omegaconf import OmegaConf

from newllm.config.build import instantiate
from newllm.config.composed import composed_faults
from newllm.config.composing import conf_directory
from newllm.config.study_file import parted, variants_of

# Name: parameters, corpus, epochs, largest gradient norm in the first epoch.
PUBLISHED = {
    "transformer_leaky": (5_260_264, "tiny30", 50, 1.0),
    "transformer": (5_260_264, "tiny30", 50, 1.0),
    "phase1_baseline": (3_009_768, "tiny30", 50, 1.0),
    "phase1_context512": (3_272_168, "tiny30", 50, 1.0),
    "phase1_wide": (12_047_848, "tiny30", 50, 1.0),
    "phase1_wide_long": (12_047_848, "tiny30", 150, 1.0),
    "phase2_layernorm": (3_273_192, "tiny30", 50, 1.0),
    "phase2_layernorm_wide": (12_048_872, "tiny30", 50, 1.0),
    "phase2_layernorm_wide_long": (12_048_872, "tiny30", 150, 1.0),
    "phase3_gating": (4_061_160, "tiny30", 50, 0.5),
    "phase3_gating_wide": (14_148_072, "tiny30", 50, 0.5),
    "phase3_gating_wide_long": (14_148_072, "tiny30", 150, 0.5),
} | {
    f"phase5_{what}_exp{number}": (parameters, corpus, 50, 0.5)
    for number, parameters in ((1, 4_052_968), (2, 14_139_880))
    for what, corpus in (
        ("baseline", "tiny30"),
        ("cosine_annealing", "tiny30"),
        ("early_stopping", "tiny30"),
        ("context_clipping", "tiny30"),
        ("data_augmentation", "augmented124"),
        ("weight_decay", "tiny30"),
        ("final", "quality500"),
    )
}


def test_the_series_is_complete() -> None:
    names = {path.stem for path in (conf_directory() / "experiment").iterdir()}
    of_series = {name for name in names if name.startswith(("phase", "transformer", "lstm"))}
    assert of_series == set(PUBLISHED) | {"lstm"}
    assert len(of_series) == 27


@pytest.mark.parametrize("name", PUBLISHED)
def test_experiment_is_the_published_one(compose_config: Compose, name: str) -> None:
    config = compose_config(f"experiment={name}")
    parameters, corpus, epochs, largest_norm = PUBLISHED[name]
    model = instantiate(config.model)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert config.data.corpus == corpus
    assert config.trainer.max_epochs == epochs
    assert config.recipe.gradient_clip[0][1] == largest_norm
    assert config.optimizer.lr == 1e-4
    assert config.data.batch_size == 16
    countermeasure = name.removeprefix("phase5_").rpartition("_")[0]
    expected = {"final": ["quality_data", "early_stopping"], "baseline": []}.get(
        countermeasure, [countermeasure] if name.startswith("phase5") else []
    )
    assert list(config.countermeasures) == expected


def test_the_default_is_the_final_experiment(compose_config: Compose) -> None:
    default, final = (
        OmegaConf.to_container(compose_config(*overrides), resolve=True)
        for overrides in ((), ("experiment=phase5_final_exp1",))
    )
    assert isinstance(default, dict)
    assert isinstance(final, dict)
    for part in ("model", "data", "optimizer", "schedule", "recipe", "trainer"):
        assert default[part] == final[part]


def test_a_value_on_the_command_line_may_replace_what_an_experiment_sets(
    compose_config: Compose,
) -> None:
    overrides = ("experiment=phase1_wide_long", "trainer.max_epochs=3")
    assert composed_faults(compose_config(*overrides), overrides) == []
    # What such a value does not replace must still be read.
    overrides = ("experiment=phase1_wide_long", "model=transformer", "normalization=layernorm")
    assert any(
        "normalization" in line for line in composed_faults(compose_config(*overrides), overrides)
    )


EXPERIMENTS = [[f"experiment={path.stem}"] for path in (conf_directory() / "experiment").iterdir()]
STUDIES = [path.stem for path in (conf_directory() / "sweep").iterdir()]
VARIANTS = [variants_of(study)[name] for study in STUDIES for name in variants_of(study)]


@pytest.mark.parametrize("overrides", [*EXPERIMENTS, *VARIANTS], ids=" ".join)
def test_every_experiment_and_variant_composes_and_builds(
    compose_config: Compose, overrides: list[str]
) -> None:
    overrides, _ = parted(overrides)
    config = compose_config(*overrides)
    assert composed_faults(config, overrides) == []
    of_data = {"vocabulary_size": 256, "max_length": 32}
    model = instantiate(
        config.model,
        **{key: size for key, size in of_data.items() if config.model.get(key, size) is None},
    )
    optimizer = instantiate(config.optimizer)(model.parameters())
    if config.schedule:
        instantiate(config.schedule).build(optimizer, total_steps=100)


def test_the_ladder_takes_its_rungs_from_the_recipes(compose_config: Compose) -> None:
    """What is added to the original is what the modern recipe has, and the other way round."""
    modern, original = (compose_config(f"experiment={name}") for name in
                        ("modern", "phase5_final_exp1"))  # fmt: skip
    keys = {
        "initialization": "recipe.initialization", "residual": "recipe.fnn",
        "learning_rate": "optimizer.lr schedule.scheduler", "clipping": "recipe.gradient_clip",
        "adamw": "optimizer._target_ optimizer.betas optimizer.weight_decay",
        "dropout": "recipe.dropout recipe.embedding_dropout recipe.output_dropout",
        "output": "recipe.output_classes", "epochs": "recipe.max_epochs",
        "size": "model.embedding_dim model.context_dim model.hidden_dim model.num_layers",
    }  # fmt: skip
    for name, changed in keys.items():
        for what, other in (("add", modern), ("remove", original)):
            config = compose_config(*variants_of("ladder")[f"{what}_{name}"])
            for key in changed.split():
                assert OmegaConf.select(config, key) == OmegaConf.select(other, key), (name, key)
