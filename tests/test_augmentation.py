"""Transforms: correct, drawn from the seed alone, with range, types and shapes kept."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from PIL import Image

from cifar_research import augmentation, config
from cifar_research.augmentation import colour, geometry, mixing

FOLDER = Path(config.config_dir(), "augmentation")
OPTIONS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# One or two of every factory's settings, and the longest composition.
TRANSFORMS = {
    "horizontal_flip": augmentation.horizontal_flip(),
    "vertical_flip": augmentation.vertical_flip(),
    "alternating_flip": augmentation.alternating_flip().apply,
    "shift_pixels": augmentation.shift(pixels=5, padding="edge"),
    "shift_fraction": augmentation.shift(fraction=0.2, padding="reflect"),
    "rotation": augmentation.rotation(degrees=30),
    "rotation_nearest": augmentation.rotation(degrees=180, interpolation="nearest", padding="zeros"),
    "crop": augmentation.crop(),
    "zoom": augmentation.zoom(low=0.5, high=2.0),
    "brightness": augmentation.brightness(amount=0.5),
    "contrast": augmentation.contrast(amount=0.5),
    "saturation": augmentation.saturation(amount=0.5),
    "cutout": augmentation.cutout(size=6),
    "mixup": augmentation.mixup(alpha=1.0),
    "cutmix": augmentation.cutmix(alpha=1.0),
    "strong": augmentation.compose(config.parse(["augmentation=[strong,mixup]"]).transforms),
}
# With the last three, a result depends on other images; with the first, on the image's pixels alone.
WITHIN_IMAGES = sorted(set(TRANSFORMS) - {"alternating_flip", "mixup", "cutmix", "strong"})
HEIGHT, WIDTH, CLASSES = 12, 16, 5
rng = np.random.default_rng(0)
IMAGES = rng.random((37, HEIGHT, WIDTH, 3), dtype=np.float32)
IMAGES[0], IMAGES[1] = 1.0, 0.0
TARGETS = np.eye(CLASSES, dtype=np.float32)[np.arange(37) % CLASSES]
SEED = (3, 14)


@pytest.fixture(scope="module", autouse=True)
def deterministic():
    tf.config.experimental.enable_op_determinism()


def apply(transform, images=IMAGES, targets=TARGETS, seed=SEED):
    images, targets = transform(tf.constant(images), tf.constant(targets), tf.constant(seed))
    return images.numpy(), targets.numpy()


def assert_same(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def traced(transform, width=WIDTH):
    return tf.function(
        transform,
        input_signature=[
            tf.TensorSpec([None, HEIGHT, width, 3]),
            tf.TensorSpec([None, CLASSES]),
            tf.TensorSpec([2], tf.int32),
        ],
    )


# What every transform promises.


@pytest.mark.parametrize("name", TRANSFORMS)
def test_same_eagerly_traced_and_in_a_dataset(name):
    transform = TRANSFORMS[name]
    call = traced(transform)
    images, targets = call.get_concrete_function().structured_outputs
    assert images.shape.as_list() == [None, HEIGHT, WIDTH, 3] and images.dtype == tf.float32
    assert targets.shape.as_list() == [None, CLASSES] and targets.dtype == tf.float32
    batches = [(IMAGES[:32], TARGETS[:32]), (IMAGES[32:36], TARGETS[32:36]), (IMAGES[36:], TARGETS[36:])]
    seeds = [(3, step) for step in range(3)]
    expected = [apply(transform, *batch, seed) for batch, seed in zip(batches, seeds, strict=True)]
    for batch, seed, eager in zip(batches, seeds, expected, strict=True):
        assert_same(call(*batch, tf.constant(seed)), eager)
    # A graph is optimized in other ways where height and width are one number.
    square, call = IMAGES[:, :, :HEIGHT], traced(transform, HEIGHT)
    assert_same(call(square, TARGETS, tf.constant(SEED)), apply(transform, square))

    dataset = tf.data.Dataset.from_tensor_slices((IMAGES[:36], TARGETS[:36], np.repeat(seeds[:2], [32, 4], axis=0)))
    dataset = dataset.batch(32).map(
        lambda images, targets, seed: transform(images, targets, tf.cast(seed[0], tf.int32)),
        num_parallel_calls=2,
    )
    assert dataset.element_spec[0].shape.as_list() == [None, HEIGHT, WIDTH, 3]
    for batch, eager in zip(dataset, expected[:2], strict=True):
        assert_same(batch, eager)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_draws_from_the_seed_alone(name):
    tf.random.set_seed(1)
    first = apply(TRANSFORMS[name])
    tf.random.set_seed(2)
    tf.random.uniform([])
    assert_same(apply(TRANSFORMS[name]), first)
    others = [apply(TRANSFORMS[name], seed=seed)[0] for seed in ((3, 15), (4, 14), (14, 3))]
    assert all((other != first[0]).any() for other in others)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [0, 1, 37])
def test_stays_in_range_and_keeps_shapes(name, size):
    for step in range(5):
        images, targets = apply(TRANSFORMS[name], IMAGES[:size], TARGETS[:size], (0, step))
        assert images.shape == (size, HEIGHT, WIDTH, 3) and images.dtype == np.float32
        assert targets.shape == (size, CLASSES) and targets.dtype == np.float32
        assert ((images >= 0) & (images <= 1)).all()
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", WITHIN_IMAGES)
def test_each_image_has_its_own_draw_that_hangs_on_its_position_alone(name):
    same = np.repeat(IMAGES[5:6], 32, axis=0)
    images, targets = apply(TRANSFORMS[name], same, TARGETS[:32])
    different = len(np.unique(images.reshape(32, -1), axis=0))
    assert different == 2 if "flip" in name else different > 16
    np.testing.assert_array_equal(targets, TARGETS[:32])
    short, _ = apply(TRANSFORMS[name], same[:7], TARGETS[:7])
    # Not to the bit: a sine may be rounded differently in a full vector register.
    np.testing.assert_allclose(short, images[:7], atol=1e-5)


# Composition.


def test_compose_applies_in_order_with_a_seed_for_each():
    flip, shift = TRANSFORMS["horizontal_flip"], TRANSFORMS["shift_pixels"]
    seeds = [tf.random.experimental.stateless_fold_in(tf.constant(SEED), i) for i in range(2)]
    for one, other in ((flip, shift), (shift, flip)):
        expected = apply(other, *apply(one, seed=seeds[0]), seed=seeds[1])
        assert_same(apply(augmentation.compose({"one": one, "other": other})), expected)
    twice = augmentation.compose({"one": flip, "other": flip})
    assert (apply(twice)[0] != IMAGES).any(), "two flips that share a seed undo each other"


def test_composition_of_nothing_is_the_identity():
    assert_same(apply(augmentation.compose({})), (IMAGES, TARGETS))


# Geometry against numpy.


@pytest.mark.parametrize(("factory", "axis"), [("horizontal_flip", 2), ("vertical_flip", 1)])
def test_flip_equals_numpy(factory, axis):
    factory = getattr(augmentation, factory)
    np.testing.assert_array_equal(apply(factory(probability=1))[0], np.flip(IMAGES, axis))
    np.testing.assert_array_equal(apply(factory(probability=0))[0], IMAGES)
    images, _ = apply(factory(probability=0.25), np.repeat(IMAGES[5:6], 2000, 0), np.repeat(TARGETS[:1], 2000, 0))
    share = (images == np.flip(IMAGES[5], axis - 1)).all((1, 2, 3)).mean()
    assert share == pytest.approx(0.25, abs=0.04)  # four standard errors


NUMPY_PADDING = {"edge": "edge", "reflect": "reflect", "zeros": "constant"}


def test_alternating_flip_shows_both_sides_in_two_epochs_and_other_halves_with_another_seed():
    flip = augmentation.alternating_flip().apply
    many = np.random.default_rng(3).random((500, 8, 8, 3), dtype=np.float32)
    targets = np.zeros((500, CLASSES), np.float32)
    turned = many[:, :, ::-1]
    epochs = [apply(flip, many, targets, (7, epoch))[0] for epoch in range(3)]
    is_turned = (epochs[0] == turned).all(axis=(1, 2, 3))
    assert 200 < is_turned.sum() < 300
    np.testing.assert_array_equal(epochs[0][~is_turned], many[~is_turned])
    np.testing.assert_array_equal(epochs[1], np.where(is_turned[:, None, None, None], many, turned))
    np.testing.assert_array_equal(epochs[2], epochs[0])
    with_another_seed = (apply(flip, many, targets, (8, 0))[0] == turned).all(axis=(1, 2, 3))
    assert 200 < (is_turned != with_another_seed).sum() < 300


def test_composition_gives_the_epoch_to_those_that_go_by_it():
    flip, shift = augmentation.alternating_flip(), TRANSFORMS["shift_pixels"]
    both = augmentation.compose({"flip": flip, "shift": shift})
    arguments = [tf.constant(IMAGES), tf.constant(TARGETS), tf.constant(SEED)]
    for epoch in range(2):
        turned = flip.apply(*arguments[:2], tf.constant([5, epoch]))
        expected = shift(*turned, tf.random.experimental.stateless_fold_in(tf.constant(SEED), 1))
        assert_same(both(*arguments, tf.constant([5, epoch])), expected)


def shifted(image, down, right, padding):
    """Return the image shifted, with its border padded by numpy."""
    margin = 11
    padded = np.pad(image, [(margin, margin), (margin, margin), (0, 0)], mode=NUMPY_PADDING[padding])
    return padded[margin - down : margin - down + HEIGHT, margin - right : margin - right + WIDTH]


@pytest.mark.parametrize("padding", NUMPY_PADDING)
def test_translate_equals_numpy_padding(padding):
    offsets = np.array([[0, 0], [3, 0], [0, -4], [-2, 5], [11, -11]], np.int32)
    got = geometry.translate(tf.constant(IMAGES[2:7]), tf.constant(offsets), padding=padding)
    expected = [shifted(image, *offset, padding) for image, offset in zip(IMAGES[2:7], offsets, strict=True)]
    np.testing.assert_array_equal(got, expected)


def test_translate_reflects_beyond_the_size_of_the_image():
    line = tf.reshape(tf.constant([0.0, 0.5, 1.0]), [1, 1, 3, 1])
    got = geometry.translate(line, tf.constant([[7, 6]]), padding="reflect")
    np.testing.assert_array_equal(np.ravel(got), np.pad([0.0, 0.5, 1.0], (6, 0), mode="reflect")[:3])


def drawn_offsets(transform, padding, limits, count=400):
    """Return the shift of each of `count` copies of an image, found by comparing all shifts."""
    possible = [(y, x) for y in range(-limits[0], limits[0] + 1) for x in range(-limits[1], limits[1] + 1)]
    known = {shifted(IMAGES[5], *offset, padding).tobytes(): offset for offset in possible}
    assert len(known) == len(possible)
    images, _ = apply(transform, np.repeat(IMAGES[5:6], count, 0), np.repeat(TARGETS[:1], count, 0))
    return [known[image.tobytes()] for image in images], possible


@pytest.mark.parametrize(
    ("transform", "padding", "limits"),
    [
        (augmentation.shift(pixels=2), "edge", (2, 2)),
        (augmentation.shift(fraction=0.1, padding="reflect"), "reflect", (1, 2)),  # 1.2 and 1.6 pixels
        (augmentation.crop(padding_pixels=1), "zeros", (1, 1)),
        (augmentation.crop(padding_pixels=1, padding="reflect"), "reflect", (1, 1)),
    ],
)
def test_shift_and_crop_move_by_every_offset_within_limits(transform, padding, limits):
    drawn, possible = drawn_offsets(transform, padding, limits)
    counts = [drawn.count(offset) for offset in possible]
    expected = len(drawn) / len(possible)
    assert min(counts) > expected / 4 and max(counts) < 2 * expected


def test_shift_by_nothing_is_the_identity():
    for transform in (
        augmentation.shift(pixels=0),
        augmentation.shift(fraction=0.0),
        augmentation.crop(padding_pixels=0),
    ):
        np.testing.assert_array_equal(apply(transform)[0], IMAGES)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("padding", ["edge", "zeros"])
def test_rotate_by_right_angles_equals_numpy(interpolation, padding):
    square = IMAGES[2:6, :, :HEIGHT]
    got = geometry.rotate(
        tf.constant(square),
        tf.constant([0, np.pi / 2, np.pi, -np.pi / 2], tf.float32),
        interpolation=interpolation,
        padding=padding,
    ).numpy()
    expected = [np.rot90(image, turns) for image, turns in zip(square, (0, 1, 2, 3), strict=True)]
    np.testing.assert_array_equal(got[0], square[0])
    # A coordinate may end a millionth outside the frame, where zeros begin to be blended in.
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_rotate_fills_corners_as_asked():
    white = tf.ones([1, 9, 9, 3])
    angle = tf.constant([np.pi / 4], tf.float32)
    assert geometry.rotate(white, angle, padding="zeros").numpy()[0, 0, 0, 0] == 0
    assert (geometry.rotate(white, angle, padding="edge").numpy() == 1).all()


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize(("padding", "fill_mode"), [("edge", "NEAREST"), ("zeros", "CONSTANT")])
def test_rotate_equals_tensorflows_projection(interpolation, padding, fill_mode):
    images, angles = tf.random.stateless_uniform([64, 9, 12, 3], [1, 2]), tf.linspace(-3.0, 3.0, 64)
    cosines, sines, zeros = tf.cos(angles), tf.sin(angles), tf.zeros(64)
    columns = 5.5 - (cosines * 5.5 - sines * 4)  # the centre stays where it is
    rows = 4 - (sines * 5.5 + cosines * 4)
    expected = tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([cosines, -sines, columns, sines, cosines, rows, zeros, zeros], 1),
        output_shape=[9, 12],
        fill_value=0.0,
        interpolation=interpolation.upper(),
        fill_mode=fill_mode,
    )
    got = geometry.rotate(images, angles, interpolation=interpolation, padding=padding)
    differ = np.abs(got - expected).max(-1) > 1e-5
    # A place half-way between two pixels may be rounded to either of them.
    assert differ.mean() < (0.01 if interpolation == "nearest" else 1e-9)


def test_rotation_stays_within_its_angle():
    # A horizontal line through the centre of a large image ends within tan(10 degrees) of its row.
    line = np.zeros((1, 101, 101, 3), np.float32)
    line[:, 50] = 1
    images, _ = apply(
        augmentation.rotation(degrees=10, interpolation="nearest", padding="zeros"),
        np.repeat(line, 200, 0), np.repeat(TARGETS[:1], 200, 0),
    )  # fmt: skip
    heights = 50 - images[:, :, 95, 0].argmax(1)  # 45 pixels right of the centre; counter-clockwise is up
    limit = 45 * np.tan(np.radians(10))
    assert np.abs(heights).max() <= limit + 1
    assert heights.max() > 0.8 * limit and heights.min() < -0.8 * limit


def test_zoom_magnifies_about_the_centre():
    image = rng.random((1, 4, 4, 3), dtype=np.float32)
    same = geometry.magnify(tf.constant(image), tf.constant([1.0]), interpolation="bilinear")
    np.testing.assert_array_equal(same, image)
    twice = geometry.magnify(tf.constant(image), tf.constant([2.0]), interpolation="nearest").numpy()
    np.testing.assert_array_equal(twice[0], image[0, 1:3, 1:3].repeat(2, 0).repeat(2, 1))
    half = geometry.magnify(tf.ones([1, 8, 8, 3]), tf.constant([0.5]), interpolation="nearest", padding="zeros")
    np.testing.assert_array_equal(half[0, :, :, 0], np.pad(np.ones((4, 4)), 2))


def test_zoom_draws_between_low_and_high():
    dot = np.zeros((200, 64, 64, 3), np.float32)
    dot[:, 24:40, 24:40] = 1
    transform = augmentation.zoom(low=0.5, high=1.5, interpolation="nearest", padding="zeros")
    images, _ = apply(transform, dot, np.repeat(TARGETS[:1], 200, 0))
    sides = images[:, 32, :, 0].sum(1)
    assert 7 <= sides.min() <= 10 and 22 <= sides.max() <= 25


# Colour.


def grey(images):
    return images @ np.array([[0.299], [0.587], [0.114]], np.float32)


def test_colour_adjustments_equal_their_formulas():
    factors = tf.constant([0.0, 0.5, 1.0, 1.5])
    images = IMAGES[2:6]
    f = factors.numpy()[:, None, None, None]
    mean_grey = grey(images).mean((1, 2), keepdims=True)
    expected = {
        colour.adjust_brightness: f * images,
        colour.adjust_contrast: mean_grey + f * (images - mean_grey),
        colour.adjust_saturation: grey(images) + f * (images - grey(images)),
    }
    for adjust, values in expected.items():
        np.testing.assert_allclose(adjust(tf.constant(images), factors), values.clip(0, 1), atol=1e-6)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_factors_lie_within_the_amount(name):
    adjust, factory = getattr(colour, f"adjust_{name}"), getattr(augmentation, name)
    # Little contrast about a middle grey: nothing is cut to [0, 1], so the factor can be read off.
    image = (0.5 + 0.1 * (IMAGES[5:6] - 0.5)).astype(np.float32)
    images, _ = apply(factory(amount=0.3), np.repeat(image, 300, 0), np.repeat(TARGETS[:1], 300, 0))
    zero = adjust(tf.constant(image), tf.constant([0.0])).numpy()
    factors = ((images - zero) * (image - zero)).sum((1, 2, 3)) / ((image - zero) ** 2).sum()
    assert 0.7 - 1e-3 <= factors.min() < 0.72 and 1.28 < factors.max() <= 1.3 + 1e-3
    np.testing.assert_allclose(apply(factory(amount=0))[0], IMAGES, atol=1e-6)


# What hides and mixes.


def test_erase_greys_a_square_and_nothing_else():
    corners = tf.constant([[3.0, 4], [-2, 14], [0, 0]])
    got = mixing.erase(tf.constant(IMAGES[2:5]), corners, size=4).numpy()
    expected = IMAGES[2:5].copy()
    expected[0, 3:7, 4:8] = expected[1, 0:2, 14:16] = expected[2, 0:4, 0:4] = 0.5
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_cutout_area(size):
    count = 3000
    images, _ = apply(
        augmentation.cutout(size=size),
        np.ones((count, HEIGHT, WIDTH, 3), np.float32),
        np.ones((count, 1), np.float32),
    )
    hidden = (images == 0.5).all(-1)
    assert (hidden | (images == 1).all(-1)).all()
    areas = hidden.sum((1, 2))
    assert areas.max() == size**2
    # Centred on any pixel: at worst in the corner.
    assert areas.min() == (size - size // 2 if size % 2 else size // 2) ** 2
    if size == 1:
        assert (hidden.sum(0) > 0).all()


def test_blend_arithmetic():
    images = tf.constant([[[[0.0]]], [[[1.0]]], [[[0.5]]]])
    order = tf.constant([1, 2, 0])
    mixed, targets = mixing.blend(images, tf.eye(3), weight=tf.constant(0.75), order=order)
    np.testing.assert_allclose(np.ravel(mixed), [0.25, 0.875, 0.375])
    np.testing.assert_allclose(targets, [[0.75, 0.25, 0], [0, 0.75, 0.25], [0.25, 0, 0.75]])


def test_paste_arithmetic():
    box = tf.constant([-2.0, 3, 4, 7])  # 4 rows and 4 columns are inside
    order = np.roll(np.arange(37), 1).astype(np.int32)
    mixed, targets = mixing.paste(tf.constant(IMAGES), tf.constant(TARGETS), box=box, order=tf.constant(order))
    expected = IMAGES.copy()
    expected[:, 0:4, 3:7] = IMAGES[order][:, 0:4, 3:7]
    np.testing.assert_array_equal(mixed, expected)
    share = 16 / (HEIGHT * WIDTH)
    np.testing.assert_allclose(targets, (1 - share) * TARGETS + share * TARGETS[order], rtol=1e-6)


def constant_images(count):
    """Constant images, and targets that identify them: both show the parts of a mixed result."""
    values = np.arange(count, dtype=np.float32) / count
    return np.broadcast_to(values[:, None, None, None], (count, HEIGHT, WIDTH, 3)).copy(), np.eye(
        count, dtype=np.float32
    )


def partners(targets):
    """Return each image's partner and its weight, from mixed targets of the unit matrix."""
    others = targets - np.diag(np.diag(targets))
    return others.argmax(1), others.max(1)


def test_mixup_blends_images_as_targets_with_one_weight_and_a_permutation():
    images, identity = constant_images(16)
    weights = []
    for step in range(200):
        mixed, targets = apply(augmentation.mixup(alpha=1.0), images, identity, (0, step))
        np.testing.assert_allclose(mixed[:, 0, 0, 0], targets @ images[:, 0, 0, 0], atol=1e-6)
        np.testing.assert_allclose(targets.sum(0), 1, rtol=1e-5, err_msg="every image is once the partner")
        own = np.diag(targets)
        alone = np.isclose(own, 1)
        assert np.ptp(own[~alone]) < 1e-6
        weights.append(own[~alone].mean())
    # Beta(1, 1) is uniform: mean 1/2 within four standard errors, and both ends occur.
    assert np.mean(weights) == pytest.approx(0.5, abs=4 * np.sqrt(1 / 12 / 200))
    assert min(weights) < 0.05 and max(weights) > 0.95


def test_mixup_weights_follow_beta():
    images, identity = constant_images(8)
    weights = [np.diag(apply(augmentation.mixup(alpha=0.2), images, identity, (1, s))[1]).min() for s in range(200)]
    # Of Beta(0.2, 0.2), 58 % lies within 0.05 of an end, and a tenth of Beta(1, 1).
    near_ends = np.mean((np.array(weights) < 0.05) | (np.array(weights) > 0.95))
    assert near_ends == pytest.approx(0.58, abs=0.14)


def test_tiny_alpha_mixes_nothing_and_gives_no_nan():
    images, identity = constant_images(8)
    for factory in (augmentation.mixup, augmentation.cutmix):
        for step in range(20):
            mixed, targets = apply(factory(alpha=1e-4), images, identity, (2, step))
            assert np.isfinite(mixed).all() and np.isfinite(targets).all()


def test_cutmix_targets_equal_the_pasted_area():
    images, identity = constant_images(16)
    shares = []
    for step in range(100):
        mixed, targets = apply(augmentation.cutmix(alpha=1.0), images, identity, (0, step))
        pasted = (mixed != images).all(-1)
        order, weight = partners(targets)
        for i in np.flatnonzero(weight > 0):
            assert weight[i] == pytest.approx(pasted[i].mean(), abs=1e-6)
            assert (mixed[i][pasted[i]] == images[order[i], 0, 0, 0]).all()
            rows, columns = np.flatnonzero(pasted[i].any(1)), np.flatnonzero(pasted[i].any(0))
            assert len(rows) * len(columns) == pasted[i].sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert not pasted[weight == 0].any()
        shares.append(weight.max())
    assert min(shares) < 0.1 and max(shares) > 0.6


# Settings and files.


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_gives_all_parameters_and_works(option):
    settings = config.parse([f"augmentation={option}"])
    for name, node in settings.content["augmentation"].items():
        factory = getattr(augmentation, node["_target_"].rpartition(".")[2])
        assert name == factory.__name__
        assert set(node) - {"_target_"} == set(inspect.signature(factory).parameters)
    images, _ = apply(augmentation.compose(settings.transforms))
    assert (images != IMAGES).any() == (option != "none")
    assert (FOLDER / f"{option}.yaml").read_text().startswith("# ")


def test_options_are_about_every_factory():
    nodes = {key for option in OPTIONS for key in yaml.safe_load((FOLDER / f"{option}.yaml").read_text())}
    returns_transform = {
        name for name, value in vars(augmentation).items()
        if inspect.isfunction(value) and name[0] != "_" and value.__annotations__.get("return") in ("BatchTransform", "Transform")
    }  # fmt: skip
    assert nodes - {"defaults"} == returns_transform


def test_options_combine_in_order_and_are_overridden():
    settings = config.parse(["augmentation=[slides,flip,cutout]", "augmentation.rotation.degrees=30"])
    assert list(settings.transforms) == ["rotation", "horizontal_flip", "vertical_flip", "shift", "cutout"]
    assert settings.content["augmentation"]["rotation"]["degrees"] == 30
    assert list(config.parse(["augmentation=[shift,flip]"]).transforms) == ["shift", "horizontal_flip"]


BAD = [
    ("horizontal_flip", {"probability": 1.5}, "probability: 1.5"),
    ("vertical_flip", {"probability": -0.1}, "probability: -0.1"),
    ("horizontal_flip", {"probability": float("nan")}, "probability: nan"),
    ("shift", {}, "pixels: give either pixels or fraction"),
    ("shift", {"pixels": 2, "fraction": 0.1}, "pixels: give either pixels or fraction"),
    ("shift", {"pixels": -1}, "pixels: -1"),
    ("shift", {"fraction": 1.1}, "fraction: 1.1"),
    ("crop", {"padding_pixels": -4}, "padding_pixels: -4"),
    ("rotation", {"degrees": 181}, "degrees: 181"),
    ("rotation", {"degrees": -5}, "degrees: -5"),
    ("zoom", {"low": 0}, "low: 0"),
    ("zoom", {"low": 1.2, "high": 1.1}, "low: 1.2 is out of range; it must be above 0 and at most 1.1"),
    ("zoom", {"high": float("inf")}, "high: inf"),
    ("brightness", {"amount": 1.1}, "amount: 1.1"),
    ("contrast", {"amount": -0.2}, "amount: -0.2"),
    ("saturation", {"amount": 2}, "amount: 2"),
    ("cutout", {"size": 0}, "size: 0"),
    ("mixup", {"alpha": 0}, "alpha: 0 is out of range; it must be above 0 and finite"),
    ("cutmix", {"alpha": -1.0}, "alpha: -1.0"),
]


def test_bad_settings_are_refused_by_name_before_tensorflow_is_imported():
    code = (
        "import sys; from cifar_research import augmentation\n"
        "for name, settings, message in eval(sys.argv[1], {'nan': float('nan'), 'inf': float('inf')}):\n"
        "    try: getattr(augmentation, name)(**settings)\n"
        "    except ValueError as error: assert str(error).startswith(message), (message, str(error))\n"
        "    else: raise AssertionError(f'{name} takes {settings}')\n"
        "augmentation.compose({'flip': augmentation.horizontal_flip()})\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, repr(BAD)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The preview.


def test_grid_lays_out_before_above_after():
    before = rng.random((5, 4, 6, 3))
    picture = augmentation.grid(before, before / 2, columns=3)
    assert picture.shape == (2 * (2 * (4 + 2) + 4), 3 * (6 + 2), 3) and picture.dtype == np.uint8
    for i, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        for down, images in ((0, before), (6, before / 2)):
            top, left = 16 * row + down + 1, 8 * column + 1
            np.testing.assert_array_equal(picture[top : top + 4, left : left + 6], np.rint(images[i] * 255))
    assert (picture[16:, 16:] == 255).all(), "places without an image are white"
    assert augmentation.grid(before, before).shape == (2 * 6 + 4, 5 * 8, 3)


def preview(*arguments, cwd):
    command = [sys.executable, "-m", "cifar_research.preview", *arguments]
    root = str(Path(__file__).resolve().parent.parent)
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONPATH": root})


def test_preview_writes_a_png(tmp_path):
    done = preview(
        "augmentation=slides", "data=synthetic", "data.train_images=100", "data.test_images=20",
        f"data.cache_dir={tmp_path / 'cache'}", "--out", "pictures/slides.png", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("slides.png") and "Traceback" not in done.stderr
    picture = np.asarray(Image.open(tmp_path / "pictures" / "slides.png"))
    assert picture.shape == (3 * 4 * (2 * 34 + 4), 3 * 8 * 34, 3)
    assert len(np.unique(picture)) > 50


def test_preview_refuses_a_bad_config_in_one_sentence(tmp_path):
    done = preview("augmentation=rotation", "augmentation.rotation.degrees=500", cwd=tmp_path)
    assert done.returncode == 2
    assert "augmentation.rotation.degrees: 500" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_xla_compiles_all_transforms_into_one_program():
    transforms = {}  # each factory with each of its settings once
    for option in OPTIONS:
        settings = config.parse([f"augmentation={option}"])
        nodes = settings.content["augmentation"]
        transforms |= {json.dumps(nodes[name]): transform for name, transform in settings.transforms.items()}
    together = augmentation.compose(transforms)
    compiled = tf.function(lambda *of: together(*of), jit_compile=True, autograph=False)
    images, targets = compiled(tf.constant(IMAGES), tf.constant(TARGETS), tf.constant(SEED), tf.constant(SEED))
    assert images.shape == IMAGES.shape and 0 <= np.min(images) <= np.max(images) <= 1
    np.testing.assert_allclose(np.sum(targets, 1), 1, rtol=1e-5)
