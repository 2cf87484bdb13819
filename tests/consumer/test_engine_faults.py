"""When something breaks inside a shared call, the one who broke it pays, and nobody else."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from consumer.engine.device_errors import StickyDeviceError
from consumer.renderer.protocol import Drawn

WORSE = 666.0  # stands in the text of a poisoned row


@contextmanager
def broken(module, replacement):
    """Let a module's forward be `replacement(real, *args, **kwargs)` for a while."""
    real = module.forward
    module.forward = lambda *args, **kwargs: replacement(real, *args, **kwargs)
    try:
        yield
    finally:
        del module.forward


def test_a_failing_row_does_not_hurt_its_neighbours(registry, studio, task, alone, apart):
    """The group is halved until the row that raises is alone; the others are drawn as ever."""
    good = [task(f"good{i}", seed=i, steps=3) for i in range(3)]
    bad = task("bad", seed=9, steps=3, prompt="poison")
    unet = registry.get("tiny").plain["text2img"].unet
    solo = [alone(registry, t) for t in good]
    seen = {}

    def refuse(real, *args, **kwargs):
        text = kwargs["encoder_hidden_states"]
        poison = seen.setdefault("poison", registry_text(registry, "poison"))
        if any(torch.equal(row, poison) for row in text):
            raise ValueError("this row cannot be")
        return real(*args, **kwargs)

    with broken(unet, refuse):
        room = studio(registry)
        ended = room.draw(*good[:2], bad, *good[2:])

    assert ended["bad", 0].code == "render_error"
    assert "this row cannot be" in ended["bad", 0].message
    for t, expected in zip(good, solo, strict=True):
        assert isinstance(ended[t.request, 0], Drawn)
        assert apart(ended[t.request, 0].picture, expected) <= 1
    assert room.engine.counters.splits >= 1


def registry_text(registry, prompt):
    """The tiny model's embedding of a prompt."""
    pipe = registry.get("tiny").plain["text2img"]
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.inference_mode():
        return pipe.text_encoder(ids)[0][0]


def only(rows):
    """A forward that has memory for so many rows."""
    sizes = []

    def forward(real, *args, **kwargs):
        sample = kwargs.get("sample", args[0] if args else None)
        sizes.append(sample.shape[0])
        if sample.shape[0] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*args, **kwargs)

    return forward, sizes


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_memory_that_runs_out_halves_the_group_and_is_remembered(registry, studio, task, alone, apart, rows):
    """A device with room for few rows draws all the same, and is asked for too many only at first."""
    tasks = [task(f"r{i}", seed=i, steps=4) for i in range(4)]
    solo = [alone(registry, t) for t in tasks]
    forward, sizes = only(rows)
    with broken(registry.get("tiny").plain["text2img"].unet, forward):
        room = studio(registry)
        ended = room.draw(*tasks)

    for t, expected in zip(tasks, solo, strict=True):
        assert apart(ended[t.request, 0].picture, expected) <= 1
    refused = [n for n in sizes if n > rows]
    assert refused == [8, 4, 2][: len(refused)]
    assert room.engine.counters.splits == len(refused)
    assert max(sizes[len(refused) :]) <= rows


def test_an_image_that_does_not_fit_alone_is_given_up(registry, studio, task):
    """At one row nothing is left to halve: the image is answered as out of memory, for good."""
    forward, _ = only(0)
    with broken(registry.get("tiny").plain["text2img"].unet, forward):
        room = studio(registry)
        ended = room.draw(task("a"), task("b"))

    assert {(e.code, e.retry) for e in ended.values()} == {("out_of_memory", False)}
    assert isinstance(room.draw(task("c"))["c", 0], Drawn)


def test_memory_errors_of_the_libraries_below_count_too(registry, studio, task):
    """cuBLAS and cuDNN report a full device in words of their own."""
    failed = []

    def forward(real, *args, **kwargs):
        if not failed:
            failed.append(True)
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return real(*args, **kwargs)

    with broken(registry.get("tiny").plain["text2img"].unet, forward):
        ended = studio(registry).draw(task("a"), task("b"))

    assert all(isinstance(event, Drawn) for event in ended.values())


@pytest.mark.parametrize(
    "text",
    ["CUDA error: device-side assert triggered", "CUDA error: an illegal memory access was encountered"],
)
def test_a_lost_device_ends_the_engine(registry, studio, task, text):
    """After a sticky error no call can succeed, so the engine says so instead of blaming rows."""

    def forward(real, *args, **kwargs):
        raise RuntimeError(text)

    with (
        broken(registry.get("tiny").plain["text2img"].unet, forward),
        pytest.raises(StickyDeviceError, match="CUDA"),
    ):
        studio(registry).draw(task("a"), task("b"))


def test_numbers_that_are_not_finite_are_no_picture(registry, studio, task):
    """An image whose latents became NaN fails with a reason; its neighbour is drawn."""

    def forward(real, *args, **kwargs):
        (out,) = real(*args, **kwargs)
        out = out.clone()
        out[:2] = float("nan")  # the first image's two rows
        return (out,)

    with broken(registry.get("tiny").plain["text2img"].unet, forward):
        ended = studio(registry).draw(task("first", steps=2), task("second", steps=2))

    assert ended["first", 0].code == "non_finite"
    assert isinstance(ended["second", 0], Drawn)


def test_a_picture_that_is_black_all_over_is_no_success(registry, studio, task):
    """It fails and says so; a dark picture that shows something is drawn."""

    def black(real, *args, **kwargs):
        return torch.full_like(real(*args, **kwargs), -1.0)

    def dark(real, *args, **kwargs):
        picture = black(real, *args, **kwargs)
        picture[..., :8, :8] = -0.8
        return picture

    decoder = registry.get("tiny").plain["text2img"].vae.decoder
    with broken(decoder, black):
        ended = studio(registry).draw(task("one", steps=1))
    assert ended["one", 0].code == "non_finite"
    assert "black" in ended["one", 0].message
    with broken(decoder, dark):
        ended = studio(registry).draw(task("one", steps=1))
    assert isinstance(ended["one", 0], Drawn)


def test_a_decoder_that_overflows_in_half_precision_decodes_again_in_float32(make_registry, studio, task):
    """NaN from a bfloat16 VAE costs one more decode in float32; afterwards the VAE is in bfloat16 again."""
    registry = make_registry(dtype="bfloat16")
    vae = registry.get("tiny").plain["text2img"].vae
    real = vae.decoder.forward

    def decoder(z, *args, **kwargs):
        out = real(z, *args, **kwargs)
        return out * float("nan") if z.dtype == torch.bfloat16 else out

    vae.decoder.forward = decoder
    ended = studio(registry).draw(task("a", steps=2))

    assert isinstance(ended["a", 0], Drawn), ended
    assert next(vae.parameters()).dtype == torch.bfloat16


def test_a_pipeline_that_raises_fails_its_own_image(registry, studio, task):
    """An error between two device calls belongs to one image only."""
    ended = studio(registry).draw(task("odd", task="img2img", image=None), task("even"))

    assert ended["odd", 0].code == "render_error"
    assert "the pipeline failed: ValueError: the task has no picture" in ended["odd", 0].message
    assert isinstance(ended["even", 0], Drawn)


def test_a_picture_of_another_size_is_no_result(make_registry, studio, task):
    """Some pipelines round a size, or choose their own, without a word."""
    registry = make_registry()
    decoder = registry.get("tiny").plain["text2img"].vae.decoder
    with broken(decoder, lambda real, *given: real(*given)[..., 8:]):
        ended = studio(registry).draw(task("narrow"), task("given", task="img2img"))

    fields = [(ended[name, 0].code, ended[name, 0].field) for name in ("narrow", "given")]
    assert fields == [("unsupported", "width"), ("unsupported", "image")]
    assert "model 'tiny' drew 24 x 32 pixels where 32 x 32 were asked for" in ended["narrow", 0].message
    assert not ended["narrow", 0].retry
