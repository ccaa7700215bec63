"""Image GPT in and out, against the implementation of Hugging Face's transformers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling, ImageGPTImageProcessorPil

import hybrid_jax
from hybrid_jax import config as config_lib
from hybrid_jax.convert import __main__ as convert_cli
from hybrid_jax.convert import image_gpt
from hybrid_jax.models import hybrid, tokens


def write_theirs(folder, colours, side, width, depth, heads):
    """Saves an Image GPT of theirs, all of whose weights are random but the biases zero, and its image processor."""
    config = ImageGPTConfig(vocab_size=colours + 1, n_positions=side**2, n_embd=width, n_layer=depth, n_head=heads)
    theirs = ImageGPTForCausalImageModeling(config).eval()
    rng = np.random.default_rng(width)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            value = np.zeros(weight.shape) if name.endswith("bias") else rng.normal(size=weight.shape) * 0.2
            weight.copy_(torch.tensor(value + (1.0 if "ln_" in name else 0.0)))
    theirs.save_pretrained(folder)
    clusters = rng.uniform(-1, 1, (colours, 3)).astype(np.float32).tolist()
    processor = ImageGPTImageProcessorPil(clusters=clusters, size={"height": side, "width": side})
    processor.save_pretrained(folder)
    return theirs, processor


def their_log_probs(theirs, coded, **more):
    """(B, N) tokens -> (B, N) nats, all pixels scored, and their outputs."""
    coded = torch.tensor(np.asarray(coded))
    start = torch.full((len(coded), 1), theirs.config.vocab_size - 1)
    with torch.no_grad():
        found = theirs(torch.cat([start, coded[:, :-1]], dim=1), **more)
        return torch.log_softmax(found.logits, -1).gather(-1, coded[..., None])[..., 0].numpy(), found


@pytest.fixture(scope="module")
def converted(tmp_path_factory, tables_are_made_once):
    """Their model and image processor, their folder, our model, its workdir."""
    root = tmp_path_factory.mktemp("image_gpt")
    theirs, processor = write_theirs(root / "theirs", 16, 5, 24, 3, 3)
    convert_cli.from_image_gpt(root / "theirs", root / "workdir", say=lambda line: None)
    return theirs, processor, root / "theirs", hybrid_jax.load(root / "workdir"), root / "workdir"


@pytest.mark.parametrize(
    ("colours", "side", "width", "depth", "heads", "scan"),
    [(2, 1, 4, 1, 1, False), (17, 3, 8, 2, 2, False), (40, 6, 32, 4, 4, False), (9, 4, 12, 3, 3, True)],
)
def test_token_likelihoods_equal_theirs(tmp_path, colours, side, width, depth, heads, scan):
    theirs, _ = write_theirs(tmp_path, colours, side, width, depth, heads)
    fields, params, found = image_gpt.read_folder(tmp_path, scan_layers=scan)
    config = config_lib.default_config()
    config.update_from_flattened_dict(fields)
    config_lib.validate(config)
    coded = np.random.default_rng(0).integers(0, colours, (3, side**2))
    params = jax.tree.map(jnp.asarray, unflatten_dict(params, sep="/"))
    score = jax.jit(hybrid.build_model(config).apply, static_argnames="method")
    ours = score({"params": params}, coded[..., None], tokens.Palette(found, None), method="token_log_prob")
    np.testing.assert_allclose(ours[..., 0], their_log_probs(theirs, coded)[0], atol=1e-4, rtol=1e-4)


def test_images_become_the_tokens_of_their_image_processor_and_score_alike(converted):
    theirs, processor, _, ours, _ = converted
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 5, 3), dtype=np.uint8)
    coded = tokens.encode(jnp.asarray(images), ours.spec, ours.palette)[..., 0]
    given = processor(list(images), do_resize=False, input_data_format="channels_last")["input_ids"]
    np.testing.assert_array_equal(coded, np.stack(given))
    np.testing.assert_allclose(
        ours.token_log_prob(images)[..., 0], their_log_probs(theirs, coded)[0], atol=1e-4, rtol=1e-4
    )


def test_normed_layers_are_the_features_of_image_gpts_probes(converted):
    theirs, _, _, ours, _ = converted
    images = np.random.default_rng(1).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    coded = tokens.encode(jnp.asarray(images), ours.spec, ours.palette)[..., 0]
    states = their_log_probs(theirs, coded, output_hidden_states=True)[1].hidden_states
    with torch.no_grad():
        # Their last state has passed the final norm already.
        want = [block.ln_1(state).mean(1).numpy() for block, state in zip(theirs.transformer.h, states, strict=False)]
    want.append(states[-1].mean(1).numpy())
    found = ours.features(images, normed=True)
    for i, features in enumerate(want):
        np.testing.assert_allclose(found[f"decoder/{i}:normed"], features, atol=1e-4, rtol=1e-4)
    for i in (1, 2):
        np.testing.assert_allclose(found[f"decoder/{i}"], states[i].mean(1), atol=1e-4, rtol=1e-4)
    np.testing.assert_array_equal(found["decoder/3:normed"], found["decoder"])
    np.testing.assert_allclose(ours.embed(images, "decoder/1:normed"), want[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scan", [False, True])
def test_the_round_trip_is_exact_and_transformers_loads_it(converted, tmp_path, scan):
    theirs, processor, folder, _, workdir = converted
    if scan:
        convert_cli.from_image_gpt(folder, tmp_path / "scanned", scan_layers=True, say=lambda line: None)
        workdir = tmp_path / "scanned"
    flags = ["--workdir", str(workdir), "--output", str(tmp_path / "again")]
    assert convert_cli.main(["to_image_gpt", *flags]) == 0
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.shape == after[name].shape and array.tobytes() == after[name].tobytes(), name
    clusters = [
        json.loads((p / "preprocessor_config.json").read_text())["clusters"] for p in (folder, tmp_path / "again")
    ]
    assert clusters[0] == clusters[1]
    if scan:
        return
    loaded, about = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not any(about.values())
    coded = np.random.default_rng(0).integers(0, 16, (2, 25))
    np.testing.assert_array_equal(*(their_log_probs(model.eval(), coded)[0] for model in (theirs, loaded)))
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    once, twice = (p(image)["input_ids"] for p in (processor, type(processor).from_pretrained(tmp_path / "again")))
    np.testing.assert_array_equal(once, twice)
