"""Recipes: typed, with overrides, and errors that help."""

import dataclasses

import pytest

from deformscope.errors import DeformscopeError
from deformscope.from_dict import from_dict
from deformscope.training.reading import packaged_recipes, read
from deformscope.training.recipe import Recipe

MINIMAL = "name: mine\nnetwork: {architecture: small}\nexpected: {hardware: h, hours: t, result: r}\n"


@pytest.fixture
def recipe_file(tmp_path):
    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("optimizer: {lr: 1}", "optimizer: no such key; did you mean 'optimiser'?"),
        ("optimiser: {learning: 1}", "optimiser.learning: no such key; expected one of 'kind', 'lr'"),
        ("optimiser: {weight_deca: 1}", "optimiser.weight_deca: no such key; did you mean 'weight_decay'?"),
        ("optimiser: {lr: fast}", "optimiser.lr: 'fast'; expected a number"),
        ("optimiser: {lr: true}", "optimiser.lr: True; expected a number"),
        ("optimiser: {lr: .nan}", "optimiser.lr: nan; expected a number"),
        ("optimiser: {kind: adam}", "optimiser.kind: 'adam'; did you mean 'adamw'?"),
        ("optimiser: {schedule: one_cycle, warmup: 1}", "optimiser.warmup: 1; one_cycle needs 2 to 999"),
        ("run: {precision: 8}", "run.precision: 8; expected one of '32', 'bf16', '16'"),
        ("run: {steps: 1.5}", "run.steps: 1.5; expected a whole number"),
        ("run: {steps: 0}", "run.steps: 0; expected at least 1"),
        ("run: 3", "run: 3; expected keys and values"),
        ("run: {evaluate_every: 30, checkpoint_every: 20}", "run.evaluate_every: 30; expected a multiple"),
        ("run: {devices: 2, nodes: 3}", "data.batch: 8; expected a multiple of the 6 devices"),
        ("data: {canvas: [1, 2, 3]}", "data.canvas: [1, 2, 3]; expected a list of 2, each a whole number"),
        ("data: {views: [crop, photo]}", "data.views: ['crop', 'photo']; expected 'photo' alone"),
        ("data: {cache: c}", "data.cache: needs views of one size"),
        ("3: 4", "3: no such key"),
        ("x: &a [1]\ny: *a", "aliases are not allowed"),
        ("run: [", "no valid YAML"),
    ],
)
def test_an_error_names_the_key_the_value_and_what_was_expected(recipe_file, line, message):
    with pytest.raises(DeformscopeError) as error:
        read(recipe_file(MINIMAL + line))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(recipe_file):
    with pytest.raises(DeformscopeError, match=r"network\.architecture: missing; expected text"):
        read(recipe_file("name: a\nnetwork: {}\nexpected: {hardware: h, hours: t, result: r}"))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("{architecture: dense_rcnn, rois_per_image: 0}", "network.rois_per_image=0: expected at least 1"),
        ("{architecture: dense, deform_layers: -1}", "network.deform_layers=-1: expected 0 to 32"),
        ("{architecture: dense, proposals: 9}", "network.proposals, .* of dense_rcnn, not of dense; leave"),
        ("{architecture: faster_rcnn_r51_fpn}", "network.architecture='faster_rcnn_r51_fpn': expected"),
        ("{architecture: faster_rcnn_r50_fpn, deformable: c9}", "network.deformable='c9': expected a name such as"),
        ("{architecture: faster_rcnn_r50_fpn, masks: true}", "network.masks: a setting of small, dense"),
    ],
)
def test_a_network_takes_only_what_it_has(recipe_file, network, message):
    with pytest.raises(DeformscopeError, match=message):
        read(recipe_file(MINIMAL), [f"network={network}"])


def test_a_precision_may_be_written_as_the_number_it_looks_like(recipe_file):
    assert read(recipe_file(MINIMAL), ["run.precision=32"]).run.precision == "32"


def test_numbers_without_a_point_are_numbers(recipe_file):
    recipe = read(recipe_file(MINIMAL + "optimiser: {lr: 1e-3, grad_clip_norm: 10}"))
    assert recipe.optimiser.lr == 0.001
    assert recipe.optimiser.grad_clip_norm == 10.0
    assert isinstance(recipe.optimiser.grad_clip_norm, float)


def test_overrides_come_last_and_are_yaml(recipe_file):
    path = recipe_file(MINIMAL + "run: {steps: 5, seed: 1}")
    recipe = read(path, ["run.steps=7", "data.views=[whole, crop]", "optimiser.grad_clip_norm=null"])
    assert (recipe.run.steps, recipe.run.seed, recipe.data.views) == (7, 1, ("whole", "crop"))
    with pytest.raises(DeformscopeError, match="expected an override such as"):
        read(path, ["run.steps"])


def test_a_base_gives_what_a_recipe_does_not_say(recipe_file):
    recipe_file(MINIMAL + "run: {steps: 5, seed: 1}", "base.yaml")
    recipe = read(recipe_file("base: base.yaml\nname: other\nrun: {seed: 2}", "over.yaml"))
    assert (recipe.name, recipe.run.steps, recipe.run.seed) == ("other", 5, 2)
    recipe_file("base: b.yaml", "a.yaml")
    with pytest.raises(DeformscopeError, match="at most four deep"):
        read(recipe_file("base: a.yaml", "b.yaml"))


def test_every_packaged_recipe_can_be_read_and_says_what_it_gives():
    names = packaged_recipes()
    modes = ("none", "feature", "kernel", "full")
    assert {f"table1_coco/{kind}_{mode}" for kind in ("faster", "mask") for mode in modes} < set(names)
    for name in names:
        recipe = read(name)
        assert all(dataclasses.astuple(recipe.expected)), name
        assert recipe.network.offset_mode == (name.rsplit("_", 1)[1] if "table1" in name else "full")


def test_the_table1_recipes_are_the_papers_settings():
    faster, mask = read("table1_coco/faster_full"), read("table1_coco/mask_none")
    assert (faster.data.batch, mask.data.batch) == (8, 4)
    assert faster.optimiser.lr / faster.data.batch == pytest.approx(0.02 / 16)
    assert mask.optimiser.lr / mask.data.batch == pytest.approx(0.02 / 16)
    # 12 epochs of the 117,266 photos with objects, the rate falling after 8 and 11.
    for recipe in (faster, mask):
        assert recipe.run.steps * recipe.data.batch / 117_266 == pytest.approx(12, abs=1e-3)
        epochs = [m * recipe.data.batch / 117_266 for m in recipe.optimiser.milestones]
        assert epochs == pytest.approx([8, 11], abs=1e-3)
        assert recipe.optimiser.grad_clip_norm is None
        assert recipe.optimiser.offset_lr == 1


def test_a_name_like_no_other_lists_the_recipes():
    with pytest.raises(DeformscopeError, match=r"expected one of 'animals', 'animals_masks', .* 'table1_coco/"):
        read("coco-2017-mine-for-later")


def test_values_make_the_same_recipe_again():
    recipe = read("animals")
    assert from_dict(Recipe, recipe.to_dict()) == recipe


def test_the_fingerprint_changes_with_what_decides_the_numbers_only():
    recipe = read("shapes")
    assert (
        read("shapes", ["expected.hours=three", "data.workers=2", "run.log_every=7"]).fingerprint == recipe.fingerprint
    )
    for override in ("run.seed=1", "network.offset_mode=none", "data.shapes.difficulty=0.1", "run.steps=7000"):
        assert read("shapes", [override]).fingerprint != recipe.fingerprint


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("run: {seed: 010}", 10),
        ("run: {seed: 0o10}", 8),
        ("run: {seed: 0x1F}", 31),
        ("run: {seed: +7}", 7),
    ],
)
def test_whole_numbers_are_yaml_1_2s(recipe_file, line, found):
    assert read(recipe_file(MINIMAL + line)).run.seed == found


@pytest.mark.parametrize("text", ["1:30", "1_000", "0b11", "yes", "2026-12-01"])
def test_what_is_text_in_yaml_1_2_is_no_number(recipe_file, text):
    with pytest.raises(DeformscopeError, match=rf"run\.steps: '{text}'; expected a whole number"):
        read(recipe_file(MINIMAL + f"run: {{steps: {text}}}"))
    with pytest.raises(DeformscopeError, match=rf"run\.steps: '{text}'"):
        read(recipe_file(MINIMAL), [f"run.steps={text}"])


@pytest.mark.parametrize(
    "text", ["run: {steps: 10, steps: 20}", "run: {steps: 10}\nrun: {seed: 1}", "optimiser: {lr: 1, 'lr': 2}"]
)
def test_a_key_that_stands_twice_is_refused(recipe_file, text):
    with pytest.raises(DeformscopeError, match="stands twice; keep one"):
        read(recipe_file(MINIMAL + text))


def test_in_an_override_a_key_that_stands_twice_is_refused_and_of_two_overrides_the_later_counts(recipe_file):
    with pytest.raises(DeformscopeError, match="the key 'steps' stands twice"):
        read(recipe_file(MINIMAL), ["run={steps: 10, steps: 20}"])
    assert read(recipe_file(MINIMAL), ["run.steps=10", "run={steps: 20, seed: 4}"]).run.steps == 20


def test_a_mistyped_recipe_is_answered_with_the_nearest():
    with pytest.raises(
        DeformscopeError, match=r"recipe='shapez': no such file; for a recipe by name did you mean 'shapes'"
    ):
        read("shapez")
